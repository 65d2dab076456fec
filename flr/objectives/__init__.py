"""An objective owns the target coding, the loss and the decoding to points, so a model and a loss are chosen apart."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """Coordinates and losses are float32 whatever the model's precision.

    Attributes:
        takes: the kind of net output that it understands; see a model's ``output``.
    """

    takes: str

    @abstractmethod
    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The summed loss of the labelled points, and their count.

        Args:
            raw: what the model put out for B faces.
            points: (B, K, 2) float32, crop pixels; anything where not labelled.
            labelled: (B, K) bool.
            size: the side of the crop, pixels.
        """

    @abstractmethod
    def decode(self, raw: Tensor, size: int) -> Tensor:
        """(B, K, 2) float32 crop pixels of what the model put out."""

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """(B, K) float32 how uncertain each point is, one standard deviation, crop pixels; NaN where such a model does not tell."""
        return torch.full_like(self.decode(raw, size)[..., 0], torch.nan)
