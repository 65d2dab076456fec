"""Compact CNN, published for 68 points on YouTube Faces.

Shapes at 1 x 224 x 224, K = 68 (3,375,880 parameters), convolutions valid:

    layers                              output
    Conv 5x5 32, ReLU                   32 x 220 x 220
    MaxPool 3, Dropout .1               32 x 73 x 73
    Conv 3x3 64, BN, ReLU               64 x 71 x 71
    MaxPool 3, Dropout .2               64 x 23 x 23
    Conv 3x3 128, ReLU                  128 x 21 x 21
    MaxPool 3, Dropout .3               128 x 7 x 7
    Flatten, Dense 512, BN, ReLU        512
    Dense                               2K

The convolutions start from Kaiming's weights; dropout leaves out whole channels, since neighbouring cells say the same.
"""

from torch import Tensor, nn

from flr.models import kaiming


class YtfCNN(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input, 55 or more.
        dropout: of the channels, after each of the three pools.

    Raises:
        ValueError: `size` leaves no cell after three pools.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = YtfCNN(points=68, channels=1, size=224)
        >>> sum(weight.numel() for weight in model.parameters())
        3375880
    """

    output = "points"

    def __init__(
        self, points: int, channels: int, size: int, dropout: tuple[float, float, float] = (0.1, 0.2, 0.3)
    ) -> None:
        super().__init__()
        side = (((size - 4) // 3 - 2) // 3 - 2) // 3
        if side < 1:
            raise ValueError(f"ytf_cnn takes sizes of 55 or more, not {size}; set data.crop.size")
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 5), nn.ReLU(inplace=True),
            nn.MaxPool2d(3), nn.Dropout2d(dropout[0]),
            nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3), nn.Dropout2d(dropout[1]),
            nn.Conv2d(64, 128, 3), nn.ReLU(inplace=True),
            nn.MaxPool2d(3), nn.Dropout2d(dropout[2]),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * side**2, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
            nn.Linear(512, 2 * points),
        )  # fmt: skip
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
