"""Four-block CNN with wide dense layers, published for 68 points on YouTube Faces.

Shapes at 1 x 224 x 224, K = 68 (151,995,936 parameters, 97 % of them in the first dense layer), convolutions valid:

    layers                                     output
    Conv 3x3 32, BN, ReLU, MaxPool 2           32 x 111 x 111
    Conv 3x3 64, BN, ReLU, MaxPool 2           64 x 54 x 54
    Conv 3x3 128, BN, ReLU, MaxPool 2          128 x 26 x 26
    Conv 3x3 256, BN, ReLU, MaxPool 2          256 x 12 x 12
    Flatten, Dense 4000, BN, ReLU, Dropout .4  4000
    Dense 1000, BN, ReLU, Dropout .4           1000
    Dense                                      2K
"""

from torch import Tensor, nn


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2))


def _dense(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)
    )


class YtfCNNWide(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input, 46 or more.
        dropout: after the two wide dense layers.

    Raises:
        ValueError: `size` leaves no cell after four blocks.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = YtfCNNWide(points=68, channels=1, size=224)
        >>> sum(weight.numel() for weight in model.parameters())
        151995936
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, dropout: float = 0.4) -> None:
        super().__init__()
        side = size
        for _ in range(4):
            side = (side - 2) // 2
        if side < 1:
            raise ValueError(f"ytf_cnn_wide takes sizes of 46 or more, not {size}; set data.crop.size")
        self.trunk = nn.Sequential(_conv(channels, 32), _conv(32, 64), _conv(64, 128), _conv(128, 256))
        self.head = nn.Sequential(
            nn.Flatten(), _dense(256 * side**2, 4000, dropout), _dense(4000, 1000, dropout), nn.Linear(1000, 2 * points)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
