"""Plain CNN without batch norm, published for CelebA's five points.

Shapes at 1 x 96 x 96, K = 68 (332,266 parameters; 594,410 at 200 x 200), convolutions keep the side, ReLU after each:

    layers                                   output
    Conv 1x1 1, Conv 3x3 64                  64 x 96 x 96
    MaxPool 2, 2 x Conv 3x3 16               16 x 48 x 48
    MaxPool 2, Dropout .2, 2 x Conv 3x3 32   32 x 24 x 24
    MaxPool 2, Dropout .2, 2 x Conv 3x3 64   64 x 12 x 12
    MaxPool 2, Dropout .2, 2 x Conv 3x3 64   64 x 6 x 6
    MaxPool 2, Dropout .2, 2 x Conv 3x3 64   64 x 3 x 3
    MaxPool 2, Dropout .2                    64 x 1 x 1
    Flatten, Dense 512, ReLU, Dropout .4     512
    Dense                                    2K
"""

from torch import Tensor, nn

from flr.models import kaiming


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


def _block(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs), _conv(outputs, outputs), nn.MaxPool2d(2), nn.Dropout(dropout))


class CelebACNN(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input; the first layer makes one of them.
        size: of the input, 64 or more.
        dropout: after the pools.
        dense_dropout: before the last layer.

    Raises:
        ValueError: `size` leaves no cell after six pools.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = CelebACNN(points=68, channels=1, size=96)
        >>> sum(weight.numel() for weight in model.parameters())
        332266
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, dropout: float = 0.2, dense_dropout: float = 0.4) -> None:
        super().__init__()
        if size < 64:
            raise ValueError(
                f"celeba_cnn halves the side six times: sizes of 64 or more, not {size}; set data.crop.size"
            )
        grey = nn.Conv2d(channels, 1, 1)
        self.trunk = nn.Sequential(
            grey, nn.ReLU(inplace=True), _conv(1, 64), nn.MaxPool2d(2),
            _block(64, 16, dropout), _block(16, 32, dropout),
            _block(32, 64, dropout), _block(64, 64, dropout), _block(64, 64, dropout),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * (size // 64) ** 2, 512), nn.ReLU(inplace=True), nn.Dropout(dense_dropout),
            nn.Linear(512, 2 * points),
        )  # fmt: skip
        kaiming(self)
        # Start from the grey image: under a negative weight, which half of all seeds draw, the ReLU would leave
        # nothing of pixels in [0, 1], for good.
        nn.init.constant_(grey.weight, 1 / channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
