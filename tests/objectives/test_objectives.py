"""Target coding, losses and decoding: values by hand, round trips, and what a mask must stop."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flr.objectives.coordinates import L1, MSE, Coordinates, SmoothL1, SoftWing, Wing, masked_sum
from flr.objectives.gaussian import AdaptiveWing, GaussianHeatmaps
from flr.objectives.heatmaps import Heatmaps
from flr.objectives.likelihood import ResidualLikelihood
from flr.objectives.pip import PixelInPixel
from flr.objectives.simcc import SimCC
from flr.objectives.star import STAR

SIZE = 128
LOSSES = {"mse": MSE(), "l1": L1(), "smooth_l1": SmoothL1(0.02), "wing": Wing()}
OBJECTIVES = {
    **{name: Coordinates(loss) for name, loss in LOSSES.items()},
    **{f"heatmaps {name}": Heatmaps(loss) for name, loss in LOSSES.items()},
    "likelihood": Heatmaps(Wing(), likelihood_weight=1.0),
    "soft_wing": Coordinates(SoftWing()),
    "dark": GaussianHeatmaps(MSE()),
    "adaptive_wing": GaussianHeatmaps(AdaptiveWing(), foreground_weight=10.0),
    "star": STAR(),
    "simcc": SimCC(),
    "residual": ResidualLikelihood(2, 8),
    "pip": PixelInPixel(np.random.default_rng(0).random((5, 2))),
}
SHAPES = {
    "points": (10,), "points_and_scales": (20,), "heatmaps": (5, 16, 16), "axes": (5, 2, 128), "pixel_in_pixel": (35, 8, 8)
}  # fmt: skip
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def raw_for(objective, batch: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *SHAPES[objective.takes]), generator=generator).requires_grad_()


def truth(batch: int = 3, points: int = 5) -> torch.Tensor:
    return 14 + 100 * torch.rand((batch, points, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("loss", "x", "expected"),
    [
        (MSE(), -3.0, 9.0),
        (L1(), -3.0, 3.0),
        (SmoothL1(2.0), -1.0, 0.25),
        (SmoothL1(2.0), 2.0, 1.0),
        (SmoothL1(2.0), -5.0, 4.0),
        (Wing(10, 2), -4.0, 10 * math.log(3)),
        (Wing(10, 2), 12.0, 12 - (10 - 10 * math.log(6))),
        (Wing(), 0.0, 0.0),
        (SoftWing(2, 20, 0.5), 1.5, 1.5),
        (SoftWing(2, 20, 0.5), -10.0, 20 * math.log(21) + 2 - 20 * math.log(5)),
        (SoftWing(), 0.0, 0.0),
    ],
)
def test_losses_by_hand(loss, x, expected):
    assert float(loss(torch.tensor([x]))) == pytest.approx(expected, rel=1e-6)
    assert float(loss(torch.tensor([-x]))) == pytest.approx(expected, rel=1e-6)


@given(st.floats(0.01, 20), st.floats(0.001, 5))
def test_wing_is_continuous_at_its_width(width, epsilon):
    low, high = Wing(width, epsilon)(torch.tensor([width * (1 - 1e-9), width * (1 + 1e-9)], dtype=torch.float64))
    assert float(high - low) == pytest.approx(0, abs=1e-6 * width * (1 + width / epsilon))
    assert float(low) == pytest.approx(width * math.log1p(width / epsilon), rel=1e-6)


def test_masked_sum_by_hand():
    total, count = masked_sum(torch.tensor([[1.0, 2], [float("nan"), 4]]), torch.tensor([[True, True], [False, True]]))
    assert (float(total), int(count)) == (7, 3)


@pytest.mark.parametrize(("centre", "unit"), [(0.5, 1.0), (0.5, 0.5), (0.0, 1.0), (0.25, 2.0)])
def test_coordinates_decode_what_they_code(centre, unit):
    objective, points = Coordinates(MSE(), centre, unit), truth()
    code = (points / SIZE - centre) / unit
    torch.testing.assert_close(objective.decode(code.flatten(1), SIZE), points)
    loss, _ = objective.loss(code.flatten(1), points, torch.ones(3, 5, dtype=torch.bool), SIZE)
    assert float(loss) == pytest.approx(0, abs=1e-10)
    zero = objective.decode(torch.zeros(1, 10), SIZE)
    assert (zero == centre * SIZE).all()


def test_coordinates_loss_by_hand():
    objective = Coordinates(L1(), 0.5, 0.5)
    points = torch.tensor([[[96.0, 64], [64, 32]]])  # coded (.5, 0) and (0, -.5)
    raw = torch.tensor([[0.0, 0, 0, 0.5]])
    loss, count = objective.loss(raw, points, torch.tensor([[True, True]]), SIZE)
    assert float(loss) == pytest.approx(0.5 / 2 + 1.0 / 2)
    assert int(count) == 2
    loss, count = objective.loss(raw, points, torch.tensor([[False, True]]), SIZE)
    assert (float(loss), int(count)) == (0.5, 1)


@every_objective
@pytest.mark.parametrize("hidden", [0.0, 1e6, float("nan")])
def test_unlabelled_points_carry_no_loss_and_no_gradient(objective, hidden):
    labelled = torch.ones(3, 5, dtype=torch.bool)
    labelled[0, 2] = labelled[2, 4] = False
    plain, points = truth(), truth()
    points[~labelled] = hidden
    raw, other = raw_for(objective), raw_for(objective)
    loss, count = objective.loss(raw, points, labelled, SIZE)
    expected, _ = objective.loss(other, plain, labelled, SIZE)
    loss.backward()
    expected.backward()
    assert int(count) == 13
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    each = raw.grad.reshape(3, 5, -1).abs().sum(-1)
    assert (each[~labelled] == 0).all()
    assert (each[labelled] > 0).all()
    torch.testing.assert_close(raw.grad, other.grad)


@every_objective
def test_a_batch_without_labels_gives_zero_and_no_nan(objective):
    raw = raw_for(objective)
    loss, count = objective.loss(raw, torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.bool), SIZE)
    loss.backward()
    assert (float(loss.detach()), int(count)) == (0, 0)
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("name", ["heatmaps l1", "dark", "star", "simcc", "pip"])
@pytest.mark.parametrize("outside", [(-3.0, 50.0), (50.0, 127.6), (200.0, -40.0)])
def test_a_point_outside_the_crop_carries_no_loss_of_a_map(name, outside):
    objective, points, labelled = OBJECTIVES[name], truth(), torch.ones(3, 5, dtype=torch.bool)
    points[1, 3] = torch.tensor(outside)
    raw = raw_for(objective)
    loss, count = objective.loss(raw, points, labelled, SIZE)
    loss.backward()
    assert int(count) == 14
    each = raw.grad.reshape(3, 5, -1)
    assert (each[1, 3] == 0).all()
    assert (each[1, 2] != 0).any()


@pytest.mark.parametrize("name", ["heatmaps wing", "dark", "star"])
def test_each_stage_of_a_network_is_supervised(name):
    stages = [raw_for(OBJECTIVES[name], seed=seed) for seed in range(3)]
    arguments = truth(), torch.ones(3, 5, dtype=torch.bool), SIZE
    total, count = OBJECTIVES[name].loss(torch.stack(stages, 1), *arguments)
    torch.testing.assert_close(total, sum(OBJECTIVES[name].loss(stage, *arguments)[0] for stage in stages))
    assert int(count) == 45


def test_points_on_the_outermost_pixels_are_inside():
    points = torch.tensor([[[0.0, 0.0], [127.0, 127.0], [127.4, -0.4]]])
    _, count = Heatmaps(L1()).loss(torch.zeros(1, 3, 16, 16), points, torch.ones(1, 3, dtype=torch.bool), SIZE)
    assert int(count) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_heatmap_loss_and_its_gradient_by_the_book(layout, kind, close):
    objective, labelled, points = Heatmaps(Wing()), torch.ones(3, 5, dtype=torch.bool), truth()
    labelled[1, 1] = False
    generator = torch.Generator().manual_seed(0)
    raw = (3 * torch.randn((3, 5, 16, 24), generator=generator)).to(kind).contiguous(memory_format=layout)
    raw.requires_grad_()
    total, count = objective.loss(raw, points, labelled, SIZE)
    (total / count).backward()

    plain = raw.detach().double().requires_grad_()
    x, y = (torch.arange(24) + 0.5) * SIZE / 24 - 0.5, (torch.arange(16) + 0.5) * SIZE / 16 - 0.5
    soft = plain.flatten(2).softmax(-1).unflatten(-1, (16, 24))
    mean = torch.stack([(soft * x).sum((2, 3)), (soft * y[:, None]).sum((2, 3))], -1)
    square = (x - points[..., :1])[:, :, None, :] ** 2 + (y - points[..., 1:])[:, :, :, None] ** 2
    target = (-square / 2 / (SIZE / 32) ** 2).flatten(2).softmax(-1)
    each = 128 * Wing()((mean - points) / SIZE).mean(-1) - 0.5 * (target * plain.flatten(2).log_softmax(-1)).sum(-1)
    expected = each[labelled].mean()
    expected.backward()
    assert float((total / count).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(raw.grad.double(), plain.grad, rtol=close, atol=close * float(plain.grad.abs().max()))
    torch.testing.assert_close(objective.decode(raw, SIZE).double(), mean.detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (16, 32)])
@given(x=st.floats(45, 82), y=st.floats(45, 82))
def test_heatmaps_decode_a_gaussian_to_its_centre(shape, x, y):
    rows = (torch.arange(shape[0]) + 0.5) * SIZE / shape[0] - 0.5
    columns = (torch.arange(shape[1]) + 0.5) * SIZE / shape[1] - 0.5
    logits = -0.5 * ((columns[None, :] - x) ** 2 + (rows[:, None] - y) ** 2) / 8.0**2
    point = Heatmaps(L1()).decode(logits[None, None], SIZE)[0, 0]
    assert math.dist(point.tolist(), (x, y)) < 0.02


def gaussian(covariance: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """(1, 1, size, size) logits of a Gaussian round (60, 70) with a cell a pixel."""
    cells = torch.arange(size) - torch.tensor([[60.0], [70.0]])
    off = torch.stack(torch.broadcast_tensors(cells[0][None, :], cells[1][:, None]), -1)
    return -0.5 * torch.einsum("hwi,ij,hwj->hw", off, covariance.inverse(), off)[None, None]


@given(st.floats(2, 9), st.floats(2, 9), st.floats(-0.9, 0.9))
def test_spread_is_the_deviation_of_the_map(wide, high, slant):
    covariance = torch.tensor([[wide**2, slant * wide * high], [slant * wide * high, high**2]])
    spread = Heatmaps(L1()).spread(gaussian(covariance), SIZE)
    assert float(spread) == pytest.approx(math.hypot(wide, high), rel=1e-3)


def test_the_likelihood_is_a_laplace_distribution_of_the_maps_covariance():
    """In any direction of its axes the density falls by e each 1 / sqrt(3) standard deviations, and it is one in all."""
    only = Heatmaps(MSE(), coordinate_weight=0.0, heatmap_weight=0.0, likelihood_weight=1.0)
    covariance, labelled = torch.tensor([[30.0, 12.0], [12.0, 20.0]]), torch.ones(1, 1, dtype=torch.bool)
    grid = torch.cartesian_prod(*(torch.arange(-57.0, 58) for _ in "xy")) + torch.tensor([60.0, 70.0])
    raw = gaussian(covariance).expand(len(grid), 1, SIZE, SIZE)
    some = grid[::7]
    surprise = torch.stack(
        [only.loss(r[None], p[None, None], labelled, SIZE)[0] for r, p in zip(raw, some, strict=False)]
    )
    off = some - torch.tensor([60.0, 70.0])
    padded = covariance + 0.25 * torch.eye(2)
    far = torch.einsum("ni,ij,nj->n", off, padded.inverse(), off)
    torch.testing.assert_close(surprise, (3 * far).sqrt() + padded.det().log() / 2, rtol=1e-3, atol=2e-3)
    # Kotz et al. 2001: 3 / (2 pi) is what makes it a density.
    total = ((-(3 * torch.einsum("ni,ij,nj->n", grid - grid.mean(0), padded.inverse(), grid - grid.mean(0))).sqrt()).exp()
             / padded.det().sqrt()).sum() * 3 / (2 * math.pi)  # fmt: skip
    assert float(total) == pytest.approx(1, abs=0.02)


def test_a_map_learns_to_be_as_wide_as_its_point_is_uncertain():
    objective = Heatmaps(L1(), coordinate_weight=0.0, heatmap_weight=0.0, likelihood_weight=1.0)
    generator = torch.Generator().manual_seed(0)
    off = torch.randn((400, 1, 2), generator=generator) * torch.tensor([12.0, 4.0])
    raw = torch.zeros(1, 1, 32, 32).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(300):
        total, count = objective.loss(raw.expand(400, 1, 32, 32), 64 + off, torch.ones(400, 1, dtype=torch.bool), SIZE)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    soft = raw.detach()[0, 0].flatten().softmax(0).unflatten(0, (32, 32))
    cells = (torch.arange(32) + 0.5) * 4 - 0.5
    wide, high = (float((soft.sum(axis) * (cells - 64) ** 2).sum().sqrt()) for axis in (0, 1))
    assert 2 < wide / high < 4 and 8 < wide < 20
    assert float(objective.decode(raw, SIZE).detach().sub(64).abs().max()) < 1


def test_a_net_of_coordinates_does_not_tell_how_uncertain_it_is():
    spread = Coordinates(MSE()).spread(torch.zeros(2, 10), SIZE)
    assert spread.shape == (2, 5) and spread.isnan().all()


def test_visibility_is_the_level_of_a_map_and_moves_no_point():
    torch.manual_seed(0)
    objective = Heatmaps(Wing(), visibility_weight=2.0)
    raw, labelled = torch.randn(4, 3, 8, 8), torch.ones(4, 3, dtype=torch.bool)
    visible = torch.tensor([True, False, True]).expand(4, 3)
    labelled[0, 1] = False
    logits = torch.log(torch.exp(raw).mean((-1, -2)))
    expected = -torch.where(visible, logits.sigmoid().log(), (-logits).sigmoid().log())[labelled].sum()
    torch.testing.assert_close(objective.visibility_loss(raw, visible, labelled), 2 * expected)
    torch.testing.assert_close(objective.visible(raw + 3, 32), (logits + 3).sigmoid())
    torch.testing.assert_close(objective.decode(raw + 3, 32), objective.decode(raw, 32), atol=1e-4, rtol=0)
    assert Heatmaps(Wing()).visible(raw, 32).isnan().all()


def test_heatmap_target_is_a_gaussian_of_sigma():
    """The cross-entropy alone, at its least, is the entropy of the Gaussian; there the softmax is that Gaussian."""
    objective = Heatmaps(MSE(), coordinate_weight=0.0, heatmap_weight=1.0, sigma=1 / 16)
    cells = (torch.arange(32) + 0.5) * 4 - 0.5
    points, labelled = torch.tensor([[[60.0, 70.0]]]), torch.ones(1, 1, dtype=torch.bool)
    square = (cells[None, :] - 60) ** 2 + (cells[:, None] - 70) ** 2
    logits = (-0.5 * square / 8.0**2)[None, None].requires_grad_()
    loss, _ = objective.loss(logits, points, labelled, SIZE)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6
    assert float(loss.detach()) == pytest.approx(math.log(2 * math.pi * math.e * (8 / 4) ** 2), abs=1e-3)


@every_objective
def test_loss_and_points_are_float32_under_autocast(objective):
    objective = copy.deepcopy(objective)
    for weights in objective.parameters():  # a new flow is the identity, in any precision
        torch.nn.init.normal_(weights, std=0.3, generator=torch.Generator().manual_seed(0))
    raw, points, labelled = raw_for(objective), truth(), torch.ones(3, 5, dtype=torch.bool)
    expected, _ = objective.loss(raw, points, labelled, SIZE)
    decoded = objective.decode(raw, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective.loss(raw, points, labelled, SIZE)
        inside = objective.decode(raw, SIZE)
        low = objective.decode(raw.bfloat16(), SIZE)
    assert loss.dtype == inside.dtype == low.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inside, decoded, rtol=1e-5, atol=1e-4)


@every_objective
def test_descent_moves_the_points_to_their_targets(objective):
    raw, points, labelled = raw_for(objective, 1), truth(1), torch.ones(1, 5, dtype=torch.bool)
    raw.data *= 0.1
    # A wide map's errors count less under STAR, and these maps begin as wide as the crop.
    optimizer = torch.optim.Adam([raw], lr=0.3 if isinstance(objective, STAR) else 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    first = (objective.decode(raw, SIZE) - points).norm(dim=-1).mean()
    for _ in range(300):
        optimizer.zero_grad()
        loss, count = objective.loss(raw, points, labelled, SIZE)
        (loss / count).backward()
        optimizer.step()
        schedule.step()
    last = (objective.decode(raw, SIZE) - points).norm(dim=-1).mean()
    assert first > 15
    assert last < 1.5
