"""The detector's network."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Depthwise and pointwise convolution with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.pointwise(self.depthwise(x))))


def _convolution(channels: int, out: int, kernel: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, out, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class DetectorNet(nn.Module):
    """Map (B, 1, H, W) grey levels of 0 to 255 to (B, 4, H / 8, W / 8).

    The channels are the logit of a face, its centre x and y from the cell's middle in cells, and the binary logarithm of
    its size over `flr.data.finders.votes.UNIT`. The size is the larger side of the tight box of its points.

    Args:
        stem: Channels at half and at a quarter of the resolution.
        width: Channels at an eighth of the resolution.
        depth: Residual blocks there.
    """

    def __init__(self, stem: tuple[int, int] = (16, 32), width: int = 96, depth: int = 7) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(1, stem[0], 5), _convolution(*stem, 3), Residual(stem[1]), _convolution(stem[1], width, 3),
            *(Residual(width) for _ in range(depth)),
        )  # fmt: skip
        self.head = nn.Conv2d(width, 4, 1)
        self.head.bias = nn.Parameter(torch.tensor([-4.0, 0, 0, 0]))  # faces are rare

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x * (4 / 255) - 2))
