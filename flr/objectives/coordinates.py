"""Direct regression: the model's numbers are the coded coordinates; and the element-wise losses of coordinates."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from flr.objectives import Objective

Positive = Annotated[float, Gt(0)]
Loss = Callable[[Tensor], Tensor]  # coded differences (..., 2) -> the loss of each


class MSE:
    """x^2."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.square()


class L1:
    """|x|."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.abs()


class SmoothL1:
    """x^2 / 2 beta up to beta, then |x| - beta / 2 (Girshick 2015, arXiv:1504.08083).

    Args:
        beta: where the square ends, coded units.
    """

    def __init__(self, beta: Positive = 1.0) -> None:
        self.beta = beta

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none", beta=self.beta)


class Wing:
    """w ln(1 + |x| / e) up to w, then |x| - C (Feng et al. 2018, arXiv:1711.06753).

    Args:
        width: w, coded units. The paper's 10 pixels at 256 are .04 of the side.
        epsilon: e, coded units. The paper's 2 pixels at 256 are .008 of the side.
    """

    def __init__(self, width: Positive = 0.04, epsilon: Positive = 0.008) -> None:
        self.width, self.epsilon = width, epsilon

    def __call__(self, x: Tensor) -> Tensor:
        x = x.abs()
        offset = self.width - self.width * math.log1p(self.width / self.epsilon)
        return torch.where(x < self.width, self.width * torch.log1p(x / self.epsilon), x - offset)


class SoftWing:
    """|x| up to the start, then w ln(1 + |x| / e) - C (Lin et al. 2021, doi:10.1109/TIP.2021.3082319).

    Small errors, which labels have too, keep a constant gradient; large errors count less.

    Args:
        start: w1, where the logarithm begins, coded units. The paper's 2 pixels at 256 are .0078 of the side.
        width: w2, factor of the logarithm. The paper's 20 pixels at 256 are .078 of the side.
        epsilon: e, coded units. The paper's .5 pixels at 256 are .002 of the side.
    """

    def __init__(self, start: Positive = 2 / 256, width: Positive = 20 / 256, epsilon: Positive = 0.5 / 256) -> None:
        self.start, self.width, self.epsilon = start, width, epsilon

    def __call__(self, x: Tensor) -> Tensor:
        x = x.abs()
        offset = self.start - self.width * math.log1p(self.start / self.epsilon)
        return torch.where(x < self.start, x, self.width * torch.log1p(x / self.epsilon) + offset)


def masked_sum(loss: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over labelled points of a loss (B, K), and their number; a NaN under the mask does not leak."""
    return torch.where(labelled, loss, 0.0).sum(), labelled.sum()


class Coordinates(Objective):
    """Coded coordinates (p / size - centre) / unit, regressed; a model that puts out points.

    Args:
        loss: of coded differences.
        centre: the coded zero, shares of the crop's side.
        unit: the coded one, shares of the crop's side.
    """

    takes = "points"

    def __init__(self, loss: Loss, centre: float = 0.5, unit: Positive = 1.0) -> None:
        super().__init__()
        self.criterion, self.centre, self.unit = loss, centre, unit

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of raw outputs (B, 2K) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count."""
        points = torch.where(labelled[..., None], points, 0.0)  # a NaN would reach the gradient through the mask
        target = (points / size - self.centre) / self.unit
        loss = self.criterion(raw.float().reshape(target.shape) - target).mean(-1)
        return masked_sum(loss, labelled)

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of raw outputs (B, 2K)."""
        return (raw.float().unflatten(1, (-1, 2)) * self.unit + self.centre) * size
