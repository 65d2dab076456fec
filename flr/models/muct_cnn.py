"""CNN on 15 points, published for the Kaggle table that its authors call "cleaned MUCT".

Shapes at 1 x 96 x 96, K = 15 (2,105,342 parameters), ReLU after each convolution, then batch norm where there is one:

    layers                                         output
    Conv 3x3 32 valid, Conv 3x3 32 same, BN        32 x 94 x 94
    MaxPool 2, Conv 3x3 64 same, BN                64 x 47 x 47
    MaxPool 2, Conv 3x3 128 same, BN               128 x 23 x 23
    MaxPool 2, Dropout .2                          128 x 11 x 11
    Flatten, Dense 128, ReLU, Dropout .2           128
    Dense 128, ReLU                                128
    Dense                                          2K
"""

from typing import Literal

from torch import Tensor, nn


class MuctCNN(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input, 10 or more.
        dropout: before the first two dense layers.
        head: what follows the last layer: nothing, or the original's ReLU. That was a fault: an output
            below zero has no gradient. It is here only to be measured, with objective.centre=0, since it cannot say a
            coordinate left of or above the coded zero.

    Raises:
        ValueError: `size` leaves no cell after three pools.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = MuctCNN(points=15, channels=1, size=96)
        >>> sum(weight.numel() for weight in model.parameters())
        2105342
    """

    output = "points"

    def __init__(
        self, points: int, channels: int, size: int,
        dropout: float = 0.2, head: Literal["linear", "relu"] = "linear",
    ) -> None:  # fmt: skip
        super().__init__()
        if size < 10:
            raise ValueError(f"muct_cnn takes sizes of 10 or more, not {size}; set data.crop.size")
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(32), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(64), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(128), nn.MaxPool2d(2),
            nn.Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * ((size - 2) // 8) ** 2, 128), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(128, 128), nn.ReLU(inplace=True),
            nn.Linear(128, 2 * points), {"linear": nn.Identity(), "relu": nn.ReLU()}[head],
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
