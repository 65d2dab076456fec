"""ResNet-18 with a regression head (He et al. 2016, arXiv:1512.03385).

Shapes at 1 x 224 x 224, K = 68 (11,240,008 parameters; the trunk alone 11,176,512 at three channels):

    layers                                      output
    Conv 7x7 s2 64, BN, ReLU                    64 x 112 x 112
    MaxPool 3/2, 2 x residual (2 x Conv 3x3)    64 x 56 x 56
    2 x residual, the first at stride 2         128 x 28 x 28
    2 x residual, the first at stride 2         256 x 14 x 14
    2 x residual, the first at stride 2         512 x 7 x 7
    average pool, Dense                         2K

Other objectives get other heads on the same trunk (see `flr.models.heads`).
"""

from torch import Tensor, nn
from torch.nn import functional

from flr.models import kaiming
from flr.models.heads import make_head


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.main(x) + self.skip(x))


class ResNet18(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points), or to what another objective takes.

    Args:
        points: K.
        channels: of the input.
        size: of the input; any, since the head pools over what is left, a 32nd of the side.
        width: of the first stage; each later one is twice as wide.
        output: what the objective takes, see `flr.models.heads.make_head`.

    Raises:
        ValueError: `width` is none, or there is no head for `output`.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = ResNet18(points=68, channels=1, size=224)
        >>> sum(weight.numel() for weight in model.parameters())
        11240008
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, width: int = 64, output: str = "points") -> None:
        super().__init__()
        self.output = output
        if width < 1:
            raise ValueError(f"resnet18 needs a model.width of 1 or more, not {width}")
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
            _Residual(width, width, 1), _Residual(width, width, 1),
            _Residual(width, 2 * width, 2), _Residual(2 * width, 2 * width, 1),
            _Residual(2 * width, 4 * width, 2), _Residual(4 * width, 4 * width, 1),
            _Residual(4 * width, 8 * width, 2), _Residual(8 * width, 8 * width, 1),
        )  # fmt: skip
        self.head = make_head(output, 8 * width, points, size)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
