"""Heatmaps decoded by their mean (soft-argmax), trained on the coordinate and on the map itself."""

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from flr.objectives import Objective
from flr.objectives.coordinates import Loss, Positive, masked_sum


class SoftArgmax(Objective):
    """Decoding of a softmax over each point's map: its mean is the point, its deviation the uncertainty."""

    takes = "heatmaps"

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of logits (B, K, h, w)."""
        return map_mean(raw.float().flatten(2).softmax(-1), raw.shape[-2:], size)

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 the standard deviation of each map, crop pixels."""
        variances = map_covariance(raw.float().flatten(2).softmax(-1), raw.shape[-2:], size)
        return (variances[..., 0] + variances[..., 1]).clamp_min(0).sqrt()


class Heatmaps(SoftArgmax):
    """A softmax over each point's map, its mean the point (integral regression, Sun et al. 2018, arXiv:1711.08229).

    Args:
        loss: of the decoded coordinates' differences, shares of the crop's side.
        coordinate_weight: of that loss.
        heatmap_weight: of the cross-entropy to a Gaussian round the truth.
        sigma: the Gaussian's standard deviation, shares of the crop's side.
        likelihood_weight: of the truth's negative log-likelihood under the map's own mean and covariance. A map then is as wide,
            either way, as its point is uncertain: along the jaw more than across it.
        visibility_weight: Weight of the cross-entropy of which points can be seen. The level of a map, which the softmax
            ignores, is its logit, so that the model has no further output. 0 for a model that gives no visibility.
    """

    def __init__(
        self, loss: Loss, coordinate_weight: float = 128.0, heatmap_weight: float = 0.5, sigma: Positive = 1 / 32,
        likelihood_weight: float = 0.0, visibility_weight: Annotated[float, Ge(0)] = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.criterion, self.sigma = loss, sigma
        self.coordinate_weight, self.heatmap_weight = coordinate_weight, heatmap_weight
        self.likelihood_weight, self.visibility_weight = likelihood_weight, visibility_weight

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of logits (B, K, h, w) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count.

        A point that augmentation pushed outside the crop carries no loss: no map can hold it.
        """
        raw, points, labelled = fold_stacks(raw, points, labelled)
        points = torch.where(labelled[..., None], points, 0.0)  # a NaN would reach the gradient through the mask
        logs = raw.float().flatten(2).log_softmax(-1)
        shape = raw.shape[-2:]
        maps = logs.exp()
        off = map_mean(maps, shape, size) - points
        loss = self.coordinate_weight * self.criterion(off / size).mean(-1)
        if self.likelihood_weight:
            loss = loss + self.likelihood_weight * _laplace_nll(off, map_covariance(maps, shape, size))
        gauss_x, gauss_y = (gaussian(points[..., axis], shape[1 - axis], size, self.sigma * size) for axis in (0, 1))
        target = (gauss_y[..., :, None] * gauss_x[..., None, :]).flatten(2)
        loss = loss - self.heatmap_weight * (target * logs).sum(-1)
        return masked_sum(loss, labelled & inside(points, size))

    def visibility_logits(self, raw: Tensor) -> Tensor:
        """Return (B, K) float32: the log of the mean of a map's exponentials, (B, K, h, w)."""
        logits = raw.float().flatten(2)
        return logits.logsumexp(-1) - math.log(logits.shape[-1])


def fold_stacks(raw: Tensor, points: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the maps (B, S, K, h, w) of a network of S stages into the batch, so that each stage is supervised."""
    if raw.ndim == 4:
        return raw, points, labelled
    stages = raw.shape[1]
    return raw.flatten(0, 1), points.repeat_interleave(stages, 0), labelled.repeat_interleave(stages, 0)


def inside(points: Tensor, size: int) -> Tensor:
    """(B, K) bool whether points (B, K, 2) crop pixels are in the crop."""
    return ((points > -0.5) & (points < size - 0.5)).all(-1)


def map_covariance(maps: Tensor, shape: torch.Size, size: int) -> Tensor:
    """(B, K, 3) the variances in x and y of maps (B, K, h w), and their covariance, crop pixels squared."""
    centre = map_mean(maps, shape, size)
    maps = maps.unflatten(-1, shape)
    x, y = (cells(count, size, maps) - centre[..., axis, None] for axis, count in enumerate(reversed(shape)))
    xx, yy = (maps.sum(-2) * x**2).sum(-1), (maps.sum(-1) * y**2).sum(-1)
    return torch.stack([xx, yy, ((maps * x[..., None, :]).sum(-1) * y).sum(-1)], -1)


def _laplace_nll(off: Tensor, spread: Tensor) -> Tensor:
    """(B, K) the negative log-likelihood of differences (B, K, 2) under a Laplace distribution of a `map_covariance`."""
    # A map of one cell has no variance; a quarter of a pixel is less than any point is known to.
    xx, yy, xy = spread[..., 0] + 0.25, spread[..., 1] + 0.25, spread[..., 2]
    area = xx * yy - xy**2
    x, y = off.unbind(-1)
    square = (yy * x**2 - 2 * xy * x * y + xx * y**2) / area
    return (3 * square + 1e-6).sqrt() + area.log() / 2  # Kotz et al. 2001, ch. 5: in two dimensions, up to a constant


def cells(count: int, size: int, like: Tensor) -> Tensor:
    """(count,) the crop pixel at the centre of each cell."""
    return (torch.arange(count, device=like.device, dtype=torch.float32) + 0.5) * (size / count) - 0.5


def map_mean(maps: Tensor, shape: torch.Size, size: int) -> Tensor:
    """(B, K, 2) the mean of maps (B, K, h w), crop pixels."""
    maps = maps.unflatten(-1, shape)
    # Sums, not a matrix product, which autocast would take to bf16: half a pixel at 64 to 128.
    x = (maps.sum(-2) * cells(shape[1], size, maps)).sum(-1)
    y = (maps.sum(-1) * cells(shape[0], size, maps)).sum(-1)
    return torch.stack([x, y], -1)


def gaussian(centre: Tensor, count: int, size: int, sigma: float) -> Tensor:
    """(..., count) normalised Gaussians along one axis round `centre` (...), crop pixels."""
    distance = cells(count, size, centre) - centre[..., None]
    return (-0.5 * (distance / sigma) ** 2).softmax(-1)
