"""SimCC: a point's two coordinates as two classifications over bins finer than pixels."""

import torch
from torch import Tensor

from flr.objectives import Objective
from flr.objectives.coordinates import Positive, masked_sum
from flr.objectives.heatmaps import cells, gaussian, inside


class SimCC(Objective):
    """Divergence of each axis's distribution from a Gaussian round the coordinate (Li et al. 2022, arXiv:2107.03332).

    The number of bins is the model's; the paper has 2 or 3 a pixel. A coordinate is decoded as its likeliest bin.

    Args:
        sigma: Standard deviation of the Gaussian, shares of the crop's side.
    """

    takes = "axes"

    def __init__(self, sigma: Positive = 6 / 256) -> None:
        super().__init__()
        self.sigma = sigma

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of logits (B, K, 2, bins) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count.

        A point that augmentation pushed outside the crop carries no loss: no bin can hold it.
        """
        points = torch.where(labelled[..., None], points, 0.0)
        labelled = labelled & inside(points, size)
        points = torch.where(labelled[..., None], points, 0.0)
        target = gaussian(points, raw.shape[-1], size, self.sigma * size)
        difference = target.clamp_min(1e-12).log() - raw.float().log_softmax(-1)
        return masked_sum((target * difference).sum((-2, -1)), labelled)

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of logits (B, K, 2, bins)."""
        bins = raw.shape[-1]
        return (raw.float().argmax(-1) + 0.5) * (size / bins) - 0.5

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 the standard deviation of both distributions together, crop pixels."""
        shares, centres = raw.float().softmax(-1), cells(raw.shape[-1], size, raw)
        mean = (shares * centres).sum(-1, keepdim=True)
        return (shares * (centres - mean) ** 2).sum((-2, -1)).sqrt()
