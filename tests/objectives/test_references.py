"""The field's objectives against independent references: eigendecompositions, densities, loops, numeric gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flr.objectives.coordinates import MSE, SoftWing
from flr.objectives.gaussian import AdaptiveWing, GaussianHeatmaps, _newton_step, _smooth
from flr.objectives.likelihood import ResidualLikelihood
from flr.objectives.pip import PixelInPixel
from flr.objectives.simcc import SimCC
from flr.objectives.star import STAR, axes

SIZE = 64


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(batch: int = 2, count: int = 4) -> torch.Tensor:
    return 8 + 48 * torch.rand((batch, count, 2), generator=torch.Generator().manual_seed(1))


def everywhere(truth: torch.Tensor) -> torch.Tensor:
    return torch.ones(truth.shape[:-1], dtype=torch.bool)


def numeric_gradient(function, x: torch.Tensor, entries: list[int], step: float = 1e-2) -> list[float]:
    slopes = []
    for entry in entries:
        moved = [x.detach().clone() for _ in range(2)]
        for sign, each in zip((1, -1), moved, strict=True):
            each.flatten()[entry] += sign * step
        slopes.append(float((function(moved[0]) - function(moved[1])) / (2 * step)))
    return slopes


@pytest.mark.parametrize(
    ("objective", "shape"),
    [
        (STAR(), (2, 4, 12, 12)), (SimCC(), (2, 4, 2, 128)), (ResidualLikelihood(2, 8), (2, 16)),
        (GaussianHeatmaps(AdaptiveWing(), foreground_weight=10.0), (2, 4, 12, 12)),
        (PixelInPixel(np.random.default_rng(0).random((4, 2))), (2, 4 * 7, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)  # fmt: skip
def test_gradients_are_those_of_the_loss(objective, shape):
    torch.manual_seed(0)
    for weights in objective.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    raw, truth = some(*shape).requires_grad_(), points()
    objective.loss(raw, truth, everywhere(truth), SIZE)[0].backward()
    entries = raw.grad.flatten().abs().topk(5).indices.tolist()
    slopes = numeric_gradient(lambda x: objective.loss(x, truth, everywhere(truth), SIZE)[0].detach(), raw, entries)
    assert slopes == pytest.approx(raw.grad.flatten()[entries].tolist(), rel=0.05)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-0.95, 0.95))
def test_axes_are_those_of_the_eigendecomposition(xx, yy, slant):
    assume(abs(xx - yy) > 0.01)  # a round one has no axes
    xy, error = slant * math.sqrt(xx * yy), some(2).double()
    values, vectors = torch.linalg.eigh(torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64))
    found, squares = axes(*(torch.tensor(v, dtype=torch.float64) for v in (xx, yy, xy)), error)
    torch.testing.assert_close(found, values.flip(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares, (vectors.T @ error).square().flip(0), rtol=1e-5, atol=1e-5)


def test_star_and_its_gradient_by_eigendecomposition():
    raw, truth, objective = (2 * some(2, 4, 12, 12)).requires_grad_(), points(), STAR()
    total, count = objective.loss(raw, truth, everywhere(truth), SIZE)
    total.backward()
    plain = raw.detach().double().requires_grad_()
    cells = (torch.arange(12).double() + 0.5) / 6 - 1  # half sides from the crop's centre
    maps = plain.flatten(2).softmax(-1).unflatten(2, (12, 12))
    mean = torch.stack([(maps.sum(2) * cells).sum(-1), (maps.sum(3) * cells).sum(-1)], -1)
    off = torch.stack(torch.broadcast_tensors(cells, cells[:, None]), -1) - mean[:, :, None, None]
    covariance = torch.einsum("bkhw,bkhwi,bkhwj->bkij", maps, off, off)
    values, vectors = torch.linalg.eigh(covariance)
    error = mean - ((truth.double() + 0.5) * 2 / SIZE - 1)
    along = torch.einsum("bkij,bki->bkj", vectors, error)
    distance = torch.nn.functional.smooth_l1_loss(along, torch.zeros_like(along), reduction="none", beta=0.01)
    expected = (distance / (values + 1e-5).sqrt()).sum() + values.sum()
    expected.backward()
    assert int(count) == 8 and float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(raw.grad.double(), plain.grad, rtol=1e-3, atol=1e-5)


def test_a_round_map_and_a_sure_map_have_gradients():
    for raw in (torch.zeros(1, 1, 12, 12), 100 * torch.eye(12)[5][:, None].mul(torch.eye(12)[5])[None, None]):
        raw.requires_grad_()
        STAR().loss(raw, points(1, 1), torch.ones(1, 1, dtype=torch.bool), SIZE)[0].backward()
        assert raw.grad.isfinite().all()


@pytest.mark.parametrize("height", [0.0, 0.3, 1.0])
def test_adaptive_wing_by_hand_and_smooth_at_its_threshold(height):
    loss, power = AdaptiveWing(), 2.1 - height

    def of(x: float) -> float:
        return float(loss(torch.tensor(x, dtype=torch.float64), torch.tensor(height, dtype=torch.float64)))

    assert of(0.25) == of(-0.25) == pytest.approx(14 * math.log1p(0.25**power))
    assert of(0.5 + 1e-9) == pytest.approx(of(0.5 - 1e-9), abs=1e-6)
    slopes = [(of(0.5 + sign * 2e-6) - of(0.5 + sign * 1e-6)) / (sign * 1e-6) for sign in (-1, 1)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
    assert of(1.5) - of(1.0) == pytest.approx(slopes[1] / 2, rel=1e-4)  # linear from there
    x = torch.zeros(3, requires_grad=True)
    loss(x, torch.full((3,), height)).sum().backward()
    assert x.grad.isfinite().all()


def test_the_cells_near_a_point_weigh_more():
    """Those of a height of .2 or more, and their neighbours; here the point's cell alone is that high."""
    centres = (torch.arange(16) + 0.5) * 4 - 0.5
    bell = (-((centres - centres[8]) ** 2) / 2 / 2.0**2).exp()
    assert bell[7] < 0.2 < bell[8]
    truth, objective = centres[8].expand(1, 1, 2), GaussianHeatmaps(MSE(), 0.5, foreground_weight=10.0)
    for cell, weight in {(8, 8): 11, (7, 9): 11, (9, 8): 11, (6, 8): 1, (1, 1): 1}.items():
        raw = bell[:, None] * bell
        raw[cell] += 0.5
        loss, _ = objective.loss(raw[None, None], truth, everywhere(truth), SIZE)
        assert float(loss) == pytest.approx(weight * 0.25 / 16**2)


@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
@given(x=st.floats(14, 50), y=st.floats(14, 50))
def test_dark_finds_a_gaussians_peak_between_the_cells(shape, x, y):
    across, down = ((torch.arange(n) + 0.5) * SIZE / n - 0.5 for n in reversed(shape))
    square = (across[None, :] - x) ** 2 + (down[:, None] - y) ** 2
    raw, objective = (-square / 2 / 4.0**2).exp()[None, None], GaussianHeatmaps(MSE(), sigma=1)
    assert math.dist(objective.decode(raw, SIZE)[0, 0].tolist(), (x, y)) < 0.05
    peak = (raw.flatten(2).argmax(-1) % shape[1] + 0.5) * SIZE / shape[1] - 0.5
    assert abs(float(objective.decode(raw, SIZE)[0, 0, 0]) - x) <= abs(float(peak) - x) + 0.05


@pytest.mark.parametrize("cell", [(0, 7), (1, 4), (4, 1), (6, 4), (4, 6), (7, 7)])
def test_dark_stays_at_a_cell_next_to_the_border(cell):
    raw = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 2
    raw[0, 0, *cell] = 1.0
    raw *= 100  # whose logarithms are above 0, with which the map is padded
    expected = [cell[1] * 8 + 3.5, cell[0] * 8 + 3.5]
    assert GaussianHeatmaps(MSE(), sigma=1).decode(raw, SIZE).tolist() == [[expected]]


def test_dark_steps_by_newton_to_a_peak_at_most_one_cell_away():
    y, x = torch.meshgrid(torch.arange(7.0) - 3, torch.arange(9.0) - 4, indexing="ij")
    slanted = -((x - 0.3) ** 2) - 2 * (y + 0.4) ** 2 + (x - 0.3) * (y + 0.4)
    far, bowl, saddle = -((x - 5.0) ** 2) - y**2, x**2 + y**2 + x, x**2 - y**2 + x
    logs = torch.stack([slanted, far, bowl, saddle, torch.zeros_like(x)])[None]
    step = _newton_step(logs, torch.full((1, 5), 3), torch.full((1, 5), 4))
    expected = torch.tensor([[[0.3, -0.4], [1, 0], [0, 0], [0, 0], [0, 0]]])
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-5)
    assert GaussianHeatmaps(MSE()).decode(torch.rand(1, 1, 3, 3), SIZE).isfinite().all()


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_dark_smooths_by_a_gaussian(sigma):
    impulse = torch.zeros(1, 1, 21, 31)
    impulse[0, 0, 10, 15] = 1.0
    out = _smooth(impulse, sigma)[0, 0]
    assert float(out.sum()) == pytest.approx(1)
    for along in (out.sum(1)[10:], out.sum(0)[15:]):
        expected = torch.tensor([math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(int(2 * sigma) + 1)])
        torch.testing.assert_close(along[: len(expected)] / along[0], expected)
        assert (along[len(expected) :] == 0).all()


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (16, 32)])
def test_the_target_is_as_many_cells_wide_on_a_map_of_any_size(shape):
    rows, columns = shape
    y, x = torch.meshgrid(torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2, indexing="ij")
    best = (-(x**2 + y**2) / 2 / 2.0**2).exp()
    truth = torch.tensor([[[SIZE / 2 + SIZE / columns / 2 - 0.5, SIZE / 2 + SIZE / rows / 2 - 0.5]]])
    loss, _ = GaussianHeatmaps(MSE(), sigma=2).loss(best[None, None], truth, everywhere(truth), SIZE)
    assert float(loss) < 1e-12


def test_the_spread_of_a_peak_is_that_of_the_points_that_it_averages():
    drawn, sigma = torch.randn((20000, 2), generator=torch.Generator().manual_seed(0)) * 3 + 32, 4.0
    mean = (-((drawn - 32) ** 2).sum(-1) / 2 / sigma**2).exp().mean()
    raw = torch.zeros(1, 1, 16, 16)
    raw[0, 0, 8, 8] = mean
    assert float(GaussianHeatmaps(MSE(), sigma=1).spread(raw, SIZE)) == pytest.approx(3 * 2**0.5, rel=0.03)


def test_simcc_is_the_divergence_of_two_distributions():
    raw, truth = some(2, 4, 2, 128), points()
    total, count = SimCC(sigma=1 / 32).loss(raw, truth, everywhere(truth), SIZE)
    bins = (torch.arange(128) + 0.5) / 2 - 0.5
    target = torch.distributions.Categorical(logits=-((bins - truth[..., None]) ** 2) / 2 / 2.0**2)
    divergence = torch.distributions.kl_divergence(target, torch.distributions.Categorical(logits=raw))
    assert int(count) == 8 and float(total) == pytest.approx(float(divergence.sum()), rel=1e-4)
    best = target.logits
    assert float(SimCC(sigma=1 / 32).loss(best, truth, everywhere(truth), SIZE)[0]) == pytest.approx(0, abs=1e-3)
    assert (SimCC().decode(best, SIZE) - truth).abs().max() <= 0.26
    assert float((SimCC().spread(best, SIZE) - 2 * 2**0.5).abs().max()) < 0.05


def test_the_flow_is_a_density_and_starts_as_the_normal_one():
    torch.manual_seed(0)
    objective = ResidualLikelihood(4, 8)
    grid = torch.cartesian_prod(*(torch.arange(-9, 9, 0.1) for _ in "xy"))
    with torch.no_grad():
        normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(grid)
        torch.testing.assert_close(objective.log_density(grid), normal, rtol=1e-4, atol=1e-4)
        for weights in objective.parameters():
            torch.nn.init.normal_(weights, std=0.4)
        density = objective.log_density(grid)
    assert (density - normal).abs().max() > 0.5
    assert float(density.exp().sum()) * 0.01 == pytest.approx(1, abs=0.01)


def test_the_likelihood_of_a_new_flow_by_hand():
    raw = torch.tensor([[0.25, -0.25, 0.0, 0.0]])  # one point, both scales a half and the least
    truth, scale = torch.tensor([[[56.0, 16.0]]]), 0.5 + 1e-3
    objective = ResidualLikelihood()
    total, _ = objective.loss(raw, truth, everywhere(truth), SIZE)
    error = 0.125 / scale
    expected = 2 * math.log(scale) + 2 * math.log(2) + error + error**2 / 2 + math.log(2 * math.pi)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    assert objective.decode(raw, SIZE).tolist() == [[[48.0, 16.0]]]
    assert float(objective.spread(raw, SIZE)) == pytest.approx(2 * scale * SIZE, rel=1e-5)


def test_pixel_in_pixel_decodes_what_it_codes_and_merges_the_neighbours():
    truth, face = points(1, 6), np.random.default_rng(0).random((6, 2))
    objective, cells, neighbours = PixelInPixel(face), 4, 3
    place = (truth[0] + 0.5) / SIZE * cells
    cell = place.floor().long()
    maps = torch.zeros(6, 1 + 2 * (1 + neighbours), cells, cells)
    near = [np.argsort(np.linalg.norm(face - face[i], axis=1))[1 : 1 + neighbours] for i in range(6)]
    for i, (x, y) in enumerate(cell.tolist()):
        maps[i, 0, y, x] = 1
        for j, point in enumerate([i, *near[i]]):
            maps[i, 1 + 2 * j : 3 + 2 * j, y, x] = place[point] - cell[i]
    raw, all_known = maps.flatten(0, 1)[None], torch.ones(1, 6, dtype=torch.bool)
    assert float(objective.loss(raw, truth, all_known, SIZE)[0]) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(objective.decode(raw, SIZE), truth, rtol=0, atol=1e-4)
    assert float(objective.spread(raw, SIZE).max()) < 1e-2
    # One wrong offset of a point's own moves its mean by the share that it has among its predictions.
    x, y = cell[0].tolist()
    maps[0, 1, y, x] += 0.5
    votes = 1 + sum(0 in near[i] for i in range(6))
    moved = objective.decode(maps.flatten(0, 1)[None], SIZE)[0, 0, 0] - truth[0, 0, 0]
    assert float(moved) == pytest.approx(0.5 * SIZE / cells / votes, abs=1e-3)
    assert float(objective.spread(maps.flatten(0, 1)[None], SIZE)[0, 0]) > 0.1

    def loss(known: torch.Tensor = all_known) -> float:
        return float(objective.loss(maps.flatten(0, 1)[None], truth, known, SIZE)[0])

    assert loss() == pytest.approx(0.5, abs=1e-4)
    maps[0, 1, y, x] -= 0.5
    maps[0, 3, y, x] += 0.6  # of a neighbour, whose offsets count as their mean over those that are labelled
    assert loss() == pytest.approx(0.6 / neighbours, abs=1e-4)
    known = all_known.clone()
    known[0, near[0][1]] = False
    assert loss(known) == pytest.approx(0.6 / (neighbours - 1), abs=1e-4)
    maps[0, 3, y, x] -= 0.6
    maps[0, 0, y, x] += 0.4
    assert loss() == pytest.approx(10 * 0.4**2 / cells**2, abs=1e-4)


@given(st.floats(0.001, 0.05), st.floats(0.01, 0.3), st.floats(0.001, 0.05))
def test_soft_wing_is_continuous_at_its_start(start, width, epsilon):
    low, high = SoftWing(start, width, epsilon)(torch.tensor([start * (1 - 1e-9), start * (1 + 1e-9)]).double())
    assert float(high - low) == pytest.approx(0, abs=1e-7)
    assert float(low) == pytest.approx(start, rel=1e-6)
