"""Heatmaps regressed towards Gaussians, decoded at their peak with a Newton step (DARK)."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional

from flr.objectives import Objective
from flr.objectives.coordinates import Loss, Positive, masked_sum
from flr.objectives.heatmaps import cells, fold_stacks, inside

FOREGROUND = 0.2  # height from which a dilated Gaussian is foreground (Wang et al. 2019)


class AdaptiveWing:
    """Loss of a map's height whose curvature near 0 depends on the true height (Wang et al. 2019, arXiv:1904.07399).

    ``w ln(1 + (|x| / e)^(a - y))`` up to the threshold, then the tangent there. Near a Gaussian's peak small errors count,
    on the background they hardly do.

    Args:
        alpha: a, above 2, so that the loss is smooth at 0 wherever y is at most 1.
        omega: w, factor of the logarithm.
        epsilon: e, height.
        threshold: Height of the error at which the tangent begins.
    """

    def __init__(
        self,
        alpha: Annotated[float, Gt(2)] = 2.1,
        omega: Positive = 14.0,
        epsilon: Positive = 1.0,
        threshold: Positive = 0.5,
    ) -> None:
        self.alpha, self.omega, self.epsilon, self.threshold = alpha, omega, epsilon, threshold

    def __call__(self, x: Tensor, height: Tensor) -> Tensor:
        """Return the loss of errors x (...) where the true heights (...) are between 0 and 1."""
        x, power = x.abs(), self.alpha - height
        edge = self.threshold / self.epsilon
        grown = edge**power
        slope = self.omega * power * edge ** (power - 1) / (self.epsilon * (1 + grown))
        near = self.omega * torch.log1p((x.clamp_max(self.threshold) / self.epsilon) ** power)
        return torch.where(x < self.threshold, near, slope * (x - self.threshold) + self.omega * torch.log1p(grown))


class GaussianHeatmaps(Objective):
    """Maps whose heights are regressed towards a Gaussian of height 1 round each point.

    Decoded as DARK does (Zhang et al. 2020, arXiv:1910.06278): the map is smoothed, and a Newton step on its logarithm leads
    from its highest cell to the peak between the cells.

    Args:
        loss: Of the heights: squared error, or adaptive Wing.
        sigma: Standard deviation of the Gaussian, cells of the map: below one, the peak's neighbours no longer tell where it is.
        foreground_weight: Additional weight of the cells near a point, 0 for none; adaptive Wing's paper has 10.
    """

    takes = "heatmaps"

    def __init__(
        self, loss: Loss | AdaptiveWing, sigma: Positive = 2.0, foreground_weight: Annotated[float, Ge(0)] = 0.0
    ) -> None:
        super().__init__()
        self.criterion, self.sigma, self.foreground_weight = loss, sigma, foreground_weight

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of heights (B, K, h, w) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count.

        A point that augmentation pushed outside the crop carries no loss: no map can hold it.
        """
        raw, points, labelled = fold_stacks(raw, points, labelled)
        points = torch.where(labelled[..., None], points, 0.0)
        rows, columns = raw.shape[-2:]
        x, y = (_bell(points[..., axis], count, size, self.sigma) for axis, count in enumerate((columns, rows)))
        height = y[..., :, None] * x[..., None, :]
        off = raw.float() - height
        loss = self.criterion(off, height) if isinstance(self.criterion, AdaptiveWing) else self.criterion(off)
        if self.foreground_weight:
            loss = loss * (1 + self.foreground_weight * (functional.max_pool2d(height, 3, 1, 1) >= FOREGROUND))
        return masked_sum(loss.mean((-2, -1)), labelled & inside(points, size))

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of heights (B, K, h, w)."""
        rows, columns = raw.shape[-2:]
        peak = raw.float().flatten(2).argmax(-1)
        row, column = peak // columns, peak % columns
        offset = _newton_step(_smooth(raw.float(), self.sigma).clamp_min(1e-10).log(), row, column)
        x, y = column + 0.5 + offset[..., 0], row + 0.5 + offset[..., 1]
        return torch.stack([x * (size / columns), y * (size / rows)], -1) - 0.5

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 the standard deviation of each point, crop pixels, from the height of its peak.

        The mean of Gaussians of deviation s whose centres are themselves drawn with deviation u has the height
        s^2 / (s^2 + u^2): a peak below 1 is a point that is not certain.
        """
        height = raw.float().flatten(2).amax(-1).clamp(1e-3, 1.0)
        return self.sigma * (size / raw.shape[-1]) * (2 * (1 / height - 1)).sqrt()


def _bell(centre: Tensor, count: int, size: int, sigma: float) -> Tensor:
    """(..., count) Gaussians of height 1 and `sigma` cells along one axis round `centre` (...), crop pixels."""
    return (-0.5 * ((cells(count, size, centre) - centre[..., None]) / (sigma * size / count)) ** 2).exp()


def _smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (B, K, h, w) by a Gaussian with a standard deviation of `sigma` cells.

    Sums of shifted maps, not a convolution, which autocast would take to bf16.
    """
    radius = math.ceil(2 * sigma)
    weights = [math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-radius, radius + 1)]
    for axis in (-2, -1):
        length = maps.shape[axis]
        pad = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        padded = functional.pad(maps, pad)
        maps = sum((weight / sum(weights)) * padded.narrow(axis, shift, length) for shift, weight in enumerate(weights))  # type: ignore[assignment]
    return maps


def _newton_step(logs: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(B, K, 2) the way in x and y from a cell (B, K) to the peak of logarithms (B, K, h, w), at most one cell.

    Zero next to the border and where the map is not a peak.
    """
    rows, columns = logs.shape[-2:]
    flat = functional.pad(logs, (2, 2, 2, 2)).flatten(2)

    def at(down: int, right: int) -> Tensor:
        return flat.gather(-1, ((row + 2 + down) * (columns + 4) + column + 2 + right)[..., None])[..., 0]

    here = at(0, 0)
    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    xx, yy = (at(0, 2) - 2 * here + at(0, -2)) / 4, (at(2, 0) - 2 * here + at(-2, 0)) / 4
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    area = xx * yy - xy**2
    peaked = (area > 1e-12) & (xx < 0) & (row >= 2) & (row < rows - 2) & (column >= 2) & (column < columns - 2)
    area = area.masked_fill(~peaked, 1.0)
    step = torch.stack([xy * dy - yy * dx, xy * dx - xx * dy], -1) / area[..., None]
    return step.clamp(-1.0, 1.0) * peaked[..., None].float()
