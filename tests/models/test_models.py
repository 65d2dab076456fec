"""The nets: their published sizes and the shape of what they put out. Shapes are worked out without memory or time."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flr.config.instantiate import build
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.models.celeba_cnn import CelebACNN
from flr.models.heatmap_fpn import HeatmapFPN
from flr.models.hourglass import Hourglass
from flr.models.hrnet import HRNet
from flr.models.mobilenet import MobileNetV2
from flr.models.muct_cnn import MuctCNN
from flr.models.pfld import PFLD
from flr.models.pipnet import PIPNet
from flr.models.resnet import ResNet18
from flr.models.rtmpose import RTMPose
from flr.models.sepconv import SepConv, SepConvLight
from flr.models.ytf_cnn import YtfCNN
from flr.models.ytf_cnn_wide import YtfCNNWide

MAPS = [HeatmapFPN, HRNet, Hourglass]
NETS = [
    SepConv, SepConvLight, CelebACNN, MuctCNN, YtfCNN, YtfCNNWide, ResNet18, MobileNetV2, PFLD, *MAPS, PIPNet, RTMPose,
]  # fmt: skip
# Quick ones: a side that the net takes and, where it has such arguments, narrow.
SMALL = {
    SepConvLight: (32, {}), HeatmapFPN: (32, {}), CelebACNN: (64, {}), MuctCNN: (32, {}), YtfCNN: (64, {}),
    YtfCNNWide: (48, {}), ResNet18: (32, {"width": 8}), MobileNetV2: (32, {"width": 0.25}), PFLD: (32, {"width": 0.25}),
    HRNet: (32, {"width": 2}), Hourglass: (32, {"width": 8, "depth": 2}), PIPNet: (64, {"width": 2, "neighbours": 2}),
    RTMPose: (32, {"width": 0.25, "hidden": 8}),
}  # fmt: skip


def parameters(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def shapes(net: nn.Module, of: list[nn.Module], channels: int, size: int) -> list[tuple[int, ...]]:
    """What some modules of a net on the meta device put out for one image, in the order of their work."""
    found: list[tuple[int, ...]] = []
    for module in of:
        module.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:])))
    net(torch.empty(2, channels, size, size, device="meta"))
    return found


@pytest.mark.parametrize(
    ("net", "points", "size", "count"),
    [
        (CelebACNN, 68, 96, 332_266), (CelebACNN, 68, 200, 594_410), (MuctCNN, 15, 96, 2_105_342),
        (YtfCNN, 68, 224, 3_375_880), (YtfCNNWide, 68, 224, 151_995_936),
        (SepConv, 68, 128, 20_553_984), (SepConvLight, 68, 128, 2_630_888),
    ],
)  # fmt: skip
def test_published_parameter_counts(net, points, size, count):
    with torch.device("meta"):
        assert parameters(net(points=points, channels=1, size=size)) == count


@pytest.mark.parametrize(
    ("net", "points", "arguments", "count"),
    [
        (HRNet, 98, {}, 9_662_528), (HRNet, 68, {}, 9_654_398),
        (Hourglass, 16, {}, 6_730_912), (Hourglass, 16, {"stacks": 4}, 13_018_816),
        (PIPNet, 68, {}, 11_978_844),
    ],
)  # fmt: skip
def test_counts_of_the_authors_code_at_three_channels(net, points, arguments, count):
    """HRNet/HRNet-Facial-Landmark-Detection, bearpaw/pytorch-pose and jhb86253817/PIPNet."""
    with torch.device("meta"):
        assert parameters(net(points=points, channels=3, size=256, **arguments)) == count


@pytest.mark.parametrize(
    ("net", "size", "side", "dense"),
    [
        (CelebACNN, 96, [96, 96, 48, 48, 48, 24, 24, 24, 12, 12, 12, 6, 6, 6, 3, 3, 3, 1], [64, 512, 136]),
        (MuctCNN, 96, [94, 94, 47, 47, 23, 23, 11], [15488, 128, 128, 136]),
        (YtfCNN, 224, [220, 73, 71, 23, 21, 7], [6272, 512, 136]),
        (YtfCNNWide, 224, [222, 111, 109, 54, 52, 26, 24, 12], [36864, 4000, 1000, 136]),
    ],
)
def test_published_shapes(net, size, side, dense):
    """The sides after each convolution and pool, and the widths of the dense layers."""
    with torch.device("meta"):
        model = net(points=68, channels=1, size=size)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    assert [shape[-1] for shape in shapes(model, layers, 1, size)] == side
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == dense


@pytest.mark.parametrize(
    ("net", "arguments", "count"),
    [
        (ResNet18, {}, 11_176_512),
        (MobileNetV2, {}, 2_223_872),
        (MobileNetV2, {"width": 0.5}, 687_680),
        (MobileNetV2, {"width": 0.35}, 396_128),
    ],
)
def test_trunks_have_the_counts_of_the_nets_they_are_named_after(net, arguments, count):
    with torch.device("meta"):
        assert parameters(net(points=68, channels=3, size=224, **arguments).trunk) == count


@pytest.mark.parametrize(("size", "sides"), [(112, (14, 7)), (224, (28, 14)), (90, (12, 6)), (24, (3, 2))])
def test_pfld_joins_three_scales_at_any_size(size, sides):
    with torch.device("meta"):
        model = PFLD(points=68, channels=1, size=size)
    scales = [model.fine, model.middle, model.coarse, model.head]
    expected = [(16, sides[0], sides[0]), (32, sides[1], sides[1]), (128, 1, 1), (136,)]
    assert shapes(model, scales, 1, size) == expected and model.head.in_features == 176


@pytest.mark.parametrize(
    ("net", "points", "size"), [(HeatmapFPN, 68, 128), (ResNet18, 68, 224), (MobileNetV2, 68, 224), (PFLD, 68, 112)]
)
def test_a_net_without_a_published_size_says_its_count(net, points, size):
    said = re.search(r"\(([\d,]+) parameters", sys.modules[net.__module__].__doc__)
    with torch.device("meta"):
        assert parameters(net(points=points, channels=1, size=size)) == int(said[1].replace(",", ""))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("points", "channels", "size"), [(68, 1, 128), (5, 3, 96)])
def test_output_shape(net, points, channels, size):
    with torch.device("meta"):
        model = net(points=points, channels=channels, size=size)
        out = model(torch.empty(2, channels, size, size))
    maps = (2, *([2] if net is Hourglass else []), points, size // 4, size // 4)
    coarse = (2, points * (3 + 2 * min(10, points - 1)), size // 32, size // 32)
    expected = {"points": (2, 2 * points), "heatmaps": maps, "axes": (2, points, 2, 2 * size), "pixel_in_pixel": coarse}
    assert out.shape == expected[model.output]


@pytest.mark.parametrize(
    ("output", "shape"), [("points_and_scales", (20,)), ("heatmaps", (5, 16, 16)), ("axes", (5, 2, 80))]
)
def test_one_backbone_has_a_head_for_each_objective(output, shape):
    with torch.device("meta"):  # 40 is no multiple of the stride
        model = ResNet18(points=5, channels=1, size=40, width=4, output=output)
        assert model.output == output and model(torch.empty(2, 1, 40, 40)).shape == (2, *shape)
        with pytest.raises(ValueError, match="no head puts out pixel_in_pixel; choose an objective= that takes points"):
            ResNet18(points=5, channels=1, size=32, output="pixel_in_pixel")


def test_an_hourglass_supervises_each_stack_and_evaluates_the_last():
    torch.manual_seed(0)
    model = Hourglass(points=3, channels=1, size=32, stacks=3, width=8, depth=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    images = torch.randn(2, 1, 32, 32)
    stages = model.train()(images)
    assert stages.shape == (2, 3, 3, 8, 8) and not torch.allclose(stages[:, 0], stages[:, 2])
    assert model.eval()(images).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("net", SMALL)
def test_every_weight_learns_and_evaluation_repeats(net):
    torch.manual_seed(0)
    size, arguments = SMALL[net]
    model, images = net(points=5, channels=1, size=size, **arguments), torch.randn(2, 1, size, size)
    out = model(images)
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
        torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [net for net in SMALL if net not in (SepConvLight, *MAPS, PIPNet, RTMPose)])
def test_a_few_steps_learn_eight_faces(net):
    """Better than their mean face, which is all that a net could say without looking. Dropout would only slow this."""
    size, arguments = SMALL[net]
    faces = [render(0, i, size=size, face=0.5) for i in range(8)]
    images = torch.from_numpy(np.stack([face.image for face in faces])).float()[:, None] / 127.5 - 1
    points = torch.from_numpy(np.stack([face.points for face in faces])) / size - 0.5
    torch.manual_seed(0)
    model = net(points=68, channels=1, size=size, **arguments)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(30):
        loss = (model(images).reshape(points.shape) - points).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * (points - points.mean(0)).square().mean() and losses[-1] < losses[0] / 10


@pytest.mark.parametrize(("net", "least"), [(CelebACNN, 64), (MuctCNN, 10), (YtfCNN, 55), (YtfCNNWide, 46)])
def test_a_size_that_leaves_no_cell_is_named_with_its_mend(net, least):
    with torch.device("meta"):
        assert net(points=5, channels=3, size=least)(torch.empty(2, 3, least, least)).shape == (2, 10)
    for size in (least - 1, 1):
        with pytest.raises(ValueError, match=rf"{least} or more, not {size}; set data\.crop\.size"):
            net(points=5, channels=3, size=size)


@pytest.mark.parametrize("channels", [1, 3])
def test_celeba_cnn_sees_its_picture_from_any_seed(channels):
    images = torch.rand(4, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    images[2:] /= 4
    for seed in range(8):
        torch.manual_seed(seed)
        net = CelebACNN(points=5, channels=channels, size=64).eval()
        assert net(images).std(0).mean() > 1e-3, seed


def test_ytf_cnn_leaves_out_channels_and_starts_from_kaimings_weights():
    torch.manual_seed(0)
    net = YtfCNN(points=5, channels=1, size=64)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout2d)] == [0.1, 0.2, 0.3]
    assert not any(isinstance(module, nn.Dropout) for module in net.modules())
    for layer in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1) and not layer.bias.any()


def test_the_relu_head_of_muct_cnn_only_cuts():
    def out(head: str) -> Tensor:
        torch.manual_seed(0)
        return MuctCNN(points=15, channels=1, size=32, head=head).eval()(torch.ones(2, 1, 32, 32))

    assert (out("linear") < 0).any()
    torch.testing.assert_close(out("relu"), out("linear").relu())


@pytest.mark.parametrize("net", [ResNet18, MobileNetV2, PFLD])
def test_a_first_prediction_is_near_the_coded_zero(net):
    torch.manual_seed(0)
    size, arguments = SMALL[net]
    model = net(points=5, channels=1, size=size, **arguments)
    assert model(torch.randn(8, 1, size, size)).abs().mean() < 0.1


@pytest.mark.parametrize("net", [ResNet18, MobileNetV2, PFLD])
def test_a_width_of_nothing_is_refused(net):
    with pytest.raises(ValueError, match=r"model\.width"):
        net(points=5, channels=1, size=32, width=0)


@pytest.mark.parametrize("size", [100, 112, 48])
def test_heatmap_fpn_names_the_mend_of_a_size(size):
    with pytest.raises(ValueError, match=rf"multiples of 32, not {size}.*data\.crop\.size"):
        HeatmapFPN(points=5, channels=1, size=size)


def test_heatmap_fpn_takes_other_widths():
    with torch.device("meta"):
        net = HeatmapFPN(points=5, channels=1, size=48, widths=(8, 16, 24), path=8, blocks=1)
        assert net(torch.empty(1, 1, 48, 48)).shape == (1, 5, 12, 12)


@pytest.mark.parametrize(
    ("net", "arguments", "said"),
    [
        (HRNet, {"size": 48}, r"multiples of 32, not 48; set data\.crop\.size"),
        (HRNet, {"width": 0}, r"model\.width"),
        (Hourglass, {"size": 48}, r"64 or more, not 48; set data\.crop\.size or model\.depth"),
        (Hourglass, {"stacks": 0}, r"model\.stacks"),
        (PIPNet, {"size": 32}, r"64 or more, not 32; set data\.crop\.size"),
        (PIPNet, {"neighbours": 0}, r"model\.neighbours"),
        (RTMPose, {"hidden": 0}, r"model\.hidden"),
    ],
)
def test_arguments_that_leave_nothing_are_refused(net, arguments, said):
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        net(**{"points": 5, "channels": 1, "size": 64} | arguments)


TIMM = {"_target_": "flr.models.timm_backbone.TimmBackbone"}
GIVEN = {"points": 5, "channels": 3, "size": 32}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What of timm is called: a net of any size, one of a fixed size, one of another output; its calls are kept."""
    fake = ModuleType("timm")
    fake.calls = []

    def create_model(name: str, **arguments: object) -> nn.Module:
        fake.calls.append((name, dict(arguments)))
        if ("img_size" in arguments) != (name == "vit"):
            raise TypeError("unexpected keyword argument 'img_size'")
        outputs = 7 if name == "odd" else arguments["num_classes"]
        kernel = arguments.get("img_size", 4)
        conv = nn.Conv2d(arguments["in_chans"], outputs, kernel)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    names = ["resnet18", "vit", "odd"]
    fake.create_model = create_model
    fake.list_models = lambda: names
    fake.is_model = lambda name: name.split(".")[0] in names
    fake.get_pretrained_cfg = lambda name: None if name == "odd" else SimpleNamespace(fixed_input_size=name == "vit")
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


@pytest.mark.parametrize("pretrained", [False, True])
def test_timm_builds_a_regressor(timm, pretrained):
    net = build(TIMM | {"name": "resnet18", "pretrained": pretrained}, **GIVEN)
    assert timm.calls == [("resnet18", {"pretrained": pretrained, "in_chans": 3, "num_classes": 10})]
    assert all(module.training for module in net.modules())
    assert not net.net[1].running_mean.any(), "the trial picture left its trace"
    assert net.output == "points" and net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_timm_hears_the_size_where_a_net_has_one(timm):
    net = build(TIMM | {"name": "vit"}, **GIVEN)
    assert timm.calls[0][1]["img_size"] == 32 and net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("resnt18", 32, r"timm has no model\.name=resnt18 \(did you mean 'resnet18'\?\)"),
        ("hf-hub:someone/net", 32, r"timm has no model\.name=hf-hub:someone/net"),
        ("resnet18", 3, r"resnet18 cannot be built for 3 x 3 x 3 .*data\.crop\.size .*Kernel size"),
        ("odd", 32, r"odd puts out \(1, 7\), not \(1, 10\)"),
    ],
)
def test_timm_refuses_in_one_line(timm, name, size, said):
    with pytest.raises(UserError, match=said) as refusal:
        build(TIMM | {"name": name}, **(GIVEN | {"size": size}))
    assert "\n" not in str(refusal.value)


def test_a_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the extra flr\[timm\].*pip install 'flr\[timm\]'.*timm"):
        build(TIMM | {"name": "resnet18"}, **GIVEN)


def test_a_timm_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms\\ndoes not exist")')
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"built for torch .*operator torchvision::nms does not exist"):
        build(TIMM | {"name": "resnet18"}, **GIVEN)
