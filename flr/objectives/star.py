"""STAR: errors measured along the axes of each heatmap's own covariance."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from flr.objectives.coordinates import Positive, masked_sum
from flr.objectives.heatmaps import SoftArgmax, fold_stacks, inside, map_covariance, map_mean

TINY = 1e-5  # variance, squared half sides: of a map that is a single cell


class STAR(SoftArgmax):
    """Smooth L1 along the two axes of a map, over the map's deviation there (Zhou et al. 2023, arXiv:2306.02763).

    A point on the jaw is ambiguous along the jaw: its map is long there, and an error along it counts less. A restriction
    keeps the maps from growing. Distances are in half sides of the crop, as in the paper. The eigenvalues of a 2 x 2 matrix
    and the squared projections on its axes have a closed form, so nothing waits for a device's decomposition.

    Args:
        beta: Where smooth L1's square ends, half sides.
        restriction: w, weight of the sum of both variances.
    """

    def __init__(self, beta: Positive = 0.01, restriction: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__()
        self.beta, self.restriction = beta, restriction

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of logits (B, K, h, w) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count.

        A point that augmentation pushed outside the crop carries no loss: no map can hold it.
        """
        raw, points, labelled = fold_stacks(raw, points, labelled)
        points = torch.where(labelled[..., None], points, 0.0)
        maps = raw.float().flatten(2).softmax(-1)
        error = (map_mean(maps, raw.shape[-2:], size) - points) * (2 / size)
        xx, yy, xy = (map_covariance(maps, raw.shape[-2:], size) * (2 / size) ** 2).unbind(-1)
        variances, squares = axes(xx, yy, xy, error)
        loss = (self._smooth_l1(squares) / (variances + TINY).sqrt()).sum(-1)
        loss = loss + self.restriction * variances.sum(-1)
        return masked_sum(loss, labelled & inside(points, size))

    def _smooth_l1(self, squares: Tensor) -> Tensor:
        """Smooth L1 as a function of the squared distance."""
        edge = self.beta**2
        linear = squares.clamp_min(edge).sqrt() - self.beta / 2
        return torch.where(squares < edge, squares / (2 * self.beta), linear)


def axes(xx: Tensor, yy: Tensor, xy: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of symmetric 2 x 2 matrices, and squared projections of errors (..., 2) on their axes.

    Args:
        xx: (...) the first diagonal entry.
        yy: (...) the second one.
        xy: (...) the entry off the diagonal.
        error: (..., 2).

    Returns:
        (..., 2) eigenvalues, the larger first; (..., 2) squares, which sum to that of the error.
    """
    mean, half = (xx + yy) / 2, (xx - yy) / 2
    radius = (half**2 + xy**2 + 1e-16).sqrt()  # of a round map it is 0, where a root has no gradient
    x, y = error.unbind(-1)
    # cos and sin of twice the angle of the long axis are half / radius and xy / radius.
    along = ((x**2 + y**2) + ((x**2 - y**2) * half + 2 * x * y * xy) / radius) / 2
    along = along.clamp_min(0)
    across = (x**2 + y**2 - along).clamp_min(0)
    return torch.stack([mean + radius, (mean - radius).clamp_min(0)], -1), torch.stack([along, across], -1)
