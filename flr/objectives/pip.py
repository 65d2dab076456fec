"""Pixel-in-pixel: the cell of a point, its place inside the cell, and the places of its neighbours."""

import numpy as np
import torch
from torch import Tensor

from flr.objectives import Objective
from flr.objectives.coordinates import Positive, masked_sum
from flr.objectives.heatmaps import inside


class PixelInPixel(Objective):
    """Objective of PIPNet (Jin et al. 2021, arXiv:2003.03771).

    A coarse map scores the cells; at a point's cell, offsets give the place of the point and of its nearest points in the mean
    face. A point is decoded as the mean of its own prediction and of those that name it as a neighbour; their deviation
    is the uncertainty.

    Args:
        mean_face: (K, 2), from which the neighbours follow.
        score_weight: Weight of the squared error of the scores; offsets have weight 1.
    """

    takes = "pixel_in_pixel"
    nearest: Tensor

    def __init__(self, mean_face: np.ndarray, score_weight: Positive = 10.0) -> None:
        super().__init__()
        distance = np.linalg.norm(mean_face[:, None] - mean_face[None], axis=-1)
        np.fill_diagonal(distance, -1)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, 1:]
        self.register_buffer("nearest", torch.from_numpy(nearest), persistent=False)
        self.score_weight = score_weight

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of maps (B, K (3 + 2N), h, w) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count.

        A point that augmentation pushed outside the crop carries no loss: no cell can hold it.
        """
        points = torch.where(labelled[..., None], points, 0.0)
        scores, offsets = self._split(raw)
        rows, columns = scores.shape[-2:]
        place = torch.stack([(points[..., 0] + 0.5) * (columns / size), (points[..., 1] + 0.5) * (rows / size)], -1)
        cell = torch.stack([place[..., 0].floor().clamp(0, columns - 1), place[..., 1].floor().clamp(0, rows - 1)], -1)
        index = (cell[..., 1] * columns + cell[..., 0]).long()
        held = labelled & inside(points, size)
        score = (scores.flatten(2) - _one_hot(index, rows * columns)).square().mean(-1)
        near = self.nearest[:, : offsets.shape[2] - 1]
        true = torch.cat([place[:, :, None], place[:, near]], 2) - cell[:, :, None]
        known = torch.cat([held[:, :, None], labelled[:, near]], 2)
        off = torch.where(known, (_take(offsets, index) - true).abs().sum(-1), 0.0)
        own, neighbours = off[..., 0], off[..., 1:].sum(-1) / known[..., 1:].sum(-1).clamp_min(1)
        return masked_sum(self.score_weight * score + own + neighbours, held)

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of maps (B, K (3 + 2N), h, w)."""
        return self._predictions(raw, size)[0]

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 the deviation of a point's predictions from their mean, crop pixels."""
        return self._predictions(raw, size)[1]

    def _predictions(self, raw: Tensor, size: int) -> tuple[Tensor, Tensor]:
        scores, offsets = self._split(raw)
        points, neighbours = offsets.shape[1], offsets.shape[2] - 1
        rows, columns = scores.shape[-2:]
        index = scores.flatten(2).argmax(-1)
        cell = torch.stack([index % columns, index // columns], -1)[:, :, None]
        place = (cell + _take(offsets, index)).flatten(1, 2)  # (B, K (1 + N), 2)
        # (K (1 + N), K) which predictions are of which point.
        who = torch.cat([torch.arange(points, device=raw.device)[:, None], self.nearest[:, :neighbours]], 1).flatten()
        weights = _one_hot(who, points)
        weights = weights / weights.sum(0)
        # Sums, not a matrix product, which autocast would take to bf16.
        mean = (place[:, :, None] * weights[..., None]).sum(1)
        square = ((place[:, :, None] - mean[:, None]).square().sum(-1) * weights).sum(1)
        decoded = torch.stack([mean[..., 0] * (size / columns), mean[..., 1] * (size / rows)], -1) - 0.5
        return decoded, square.clamp_min(0).sqrt() * (size / columns)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, K, h, w), and offsets (B, K, 1 + N, 2, h, w) in cells."""
        maps = raw.float().unflatten(1, (len(self.nearest), -1))
        return maps[:, :, 0], maps[:, :, 1:].unflatten(2, (-1, 2))


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """(..., classes) float; torch's own has the host read the index."""
    return (index[..., None] == torch.arange(classes, device=index.device)).float()


def _take(offsets: Tensor, index: Tensor) -> Tensor:
    """(B, K, 1 + N, 2) the offsets at each point's cell, by its flat index (B, K)."""
    flat = offsets.flatten(-2)
    return flat.gather(-1, index[:, :, None, None, None].expand(*flat.shape[:-1], 1))[..., 0]
