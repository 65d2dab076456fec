"""Residual log-likelihood estimation: the model gives each coordinate and its scale, a flow the shape of the errors."""

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from flr.objectives import Objective
from flr.objectives.coordinates import masked_sum

LEAST_SCALE = 1e-3  # shares of the crop's side


class Coupling(nn.Module):
    """Affine map of one coordinate whose factor and shift depend on the other one (Dinh et al. 2017, arXiv:1605.08803).

    Args:
        fixed: The coordinate that stays, 0 or 1.
        width: Of the two hidden layers.
    """

    def __init__(self, fixed: int, width: int) -> None:
        super().__init__()
        self.fixed = fixed
        last = nn.Linear(width, 2)
        self.net = nn.Sequential(nn.Linear(1, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), last)
        nn.init.zeros_(last.weight)  # a flow starts as the normal distribution
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image (N, 2) of x (N, 2), and the logarithm (N,) of the determinant."""
        fixed, moved = x[:, self.fixed], x[:, 1 - self.fixed]
        factor, shift = self.net(fixed[:, None]).unbind(-1)
        factor = factor.tanh()
        moved = (moved - shift) * factor.neg().exp()
        return torch.stack([fixed, moved] if self.fixed == 0 else [moved, fixed], -1), -factor


class ResidualLikelihood(Objective):
    """Likelihood of the scaled error under a Laplace distribution times a learned flow (Li et al. 2021, arXiv:2107.11291).

    The model puts out the coordinates and the logits of their scales. The flow is trained with the model and is not used for
    prediction.

    Args:
        layers: Coupling layers of the flow.
        width: Of their hidden layers.
    """

    takes = "points_and_scales"

    def __init__(self, layers: Annotated[int, Ge(1)] = 6, width: Annotated[int, Ge(1)] = 64) -> None:
        super().__init__()
        self.flow = nn.ModuleList(Coupling(i % 2, width) for i in range(layers))

    def log_density(self, x: Tensor) -> Tensor:
        """(N,) the flow's logarithmic density at x (N, 2)."""
        total = torch.zeros_like(x[:, 0])
        for layer in self.flow:
            x, logarithm = layer(x)
            total = total + logarithm
        return total - x.square().sum(-1) / 2 - math.log(2 * math.pi)

    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The loss of raw outputs (B, 4K) for points (B, K, 2) crop pixels, labelled (B, K): its sum and its count."""
        points = torch.where(labelled[..., None], points, 0.0)
        with torch.autocast(raw.device.type, enabled=False):
            mean, scale = _split(raw)
            error = (points / size - 0.5 - mean) / scale
            flow = self.log_density(error.flatten(0, 1)).unflatten(0, labelled.shape)
            laplace = (scale.log() + math.log(2) + error.abs()).sum(-1)
            return masked_sum(laplace - flow, labelled)

    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of raw outputs (B, 4K)."""
        return (_split(raw)[0] + 0.5) * size

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 the standard deviation of the Laplace distributions of both coordinates, crop pixels."""
        return _split(raw)[1].square().sum(-1).mul(2).sqrt() * size


def _split(raw: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, 2) coded coordinates and (B, K, 2) their scales, shares of the crop's side, of raw outputs (B, 4K)."""
    mean, scale = raw.float().unflatten(1, (-1, 2, 2)).unbind(2)
    return mean, scale.sigmoid() + LEAST_SCALE
