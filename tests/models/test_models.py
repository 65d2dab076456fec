"""The nets: their published sizes and the shape of what they put out. Shapes are worked out without memory or time."""

import re

import pytest
import torch

from flr.models import heatmap_fpn
from flr.models.heatmap_fpn import HeatmapFPN
from flr.models.sepconv import SepConv, SepConvLight

NETS = [SepConv, SepConvLight, HeatmapFPN]


def parameters(net: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(("net", "count"), [(SepConv, 20_553_984), (SepConvLight, 2_630_888)])
def test_published_parameter_counts(net, count):
    with torch.device("meta"):
        assert parameters(net(points=68, channels=1, size=128)) == count


def test_heatmap_fpn_is_small_and_says_its_count():
    said = re.search(r"\(([\d,]+) parameters\)", heatmap_fpn.__doc__)
    with torch.device("meta"):
        count = parameters(HeatmapFPN(points=68, channels=1, size=128))
    assert count == int(said[1].replace(",", "")) < 5_000_000


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("points", [68, 15, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [96, 128])
def test_output_shape(net, points, channels, size):
    with torch.device("meta"):
        model = net(points=points, channels=channels, size=size)
        out = model(torch.empty(2, channels, size, size))
    expected = {"points": (2, 2 * points), "heatmaps": (2, points, size // 4, size // 4)}[model.output]
    assert out.shape == expected


@pytest.mark.parametrize("net", [SepConvLight, HeatmapFPN])
def test_every_weight_learns_and_evaluation_repeats(net):
    torch.manual_seed(0)
    model, images = net(points=5, channels=1, size=32), torch.randn(2, 1, 32, 32)
    out = model(images)
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
        torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [100, 112, 48])
def test_heatmap_fpn_names_the_mend_of_a_size(size):
    with pytest.raises(ValueError, match=rf"multiples of 32, not {size}.*data\.crop\.size"):
        HeatmapFPN(points=5, channels=1, size=size)


def test_heatmap_fpn_takes_other_widths():
    with torch.device("meta"):
        net = HeatmapFPN(points=5, channels=1, size=48, widths=(8, 16, 24), path=8, blocks=1)
        assert net(torch.empty(1, 1, 48, 48)).shape == (1, 5, 12, 12)
