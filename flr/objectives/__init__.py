"""An objective owns the target coding, the loss and the decoding to points, so a model and a loss are chosen apart."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional


class Objective(nn.Module, ABC):
    """Code targets, compute the loss and decode a model's output, in float32 whatever the model's precision.

    Attributes:
        takes: the kind of model output that it accepts; see a model's ``output``.
        visibility_weight: Weight of the term that learns which points can be seen; 0 for none.
    """

    takes: str
    visibility_weight: float = 0.0

    @abstractmethod
    def loss(self, raw: Tensor, points: Tensor, labelled: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the labelled points, and their count.

        Args:
            raw: Output of the model for B faces.
            points: (B, K, 2) float32, crop pixels; anything where not labelled.
            labelled: (B, K) bool.
            size: the side of the crop, pixels.
        """

    @abstractmethod
    def decode(self, raw: Tensor, size: int) -> Tensor:
        """Return the points (B, K, 2) float32 of a model's output, in crop pixels."""

    def spread(self, raw: Tensor, size: int) -> Tensor:
        """Return the standard deviation of each point, (B, K) float32 crop pixels; NaN if the objective estimates none."""
        return torch.full_like(self.decode(raw, size)[..., 0], torch.nan)

    def visibility_logits(self, raw: Tensor) -> Tensor | None:
        """Return (B, K) float32 logits that each point can be seen; None where the objective does not learn it."""
        return None

    def visibility_loss(self, raw: Tensor, visible: Tensor, labelled: Tensor) -> Tensor:
        """Return the weighted sum of the labelled points' cross-entropy; (B, K) bool both.

        A hidden point that is labelled counts with its position as well: the image around it shows where it is.
        """
        logits = self.visibility_logits(raw)
        assert logits is not None, "visibility_weight without logits"
        loss = functional.binary_cross_entropy_with_logits(logits, visible.float(), reduction="none")
        return self.visibility_weight * torch.where(labelled, loss, 0.0).sum()

    def visible(self, raw: Tensor, size: int) -> Tensor:
        """Return (B, K) float32 probabilities that each point can be seen; NaN where the objective does not learn it."""
        logits = self.visibility_logits(raw) if self.visibility_weight else None
        return torch.full_like(self.decode(raw, size)[..., 0], torch.nan) if logits is None else logits.sigmoid()
