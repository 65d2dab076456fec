"""MobileNetV2 with a regression head (Sandler et al. 2018, arXiv:1801.04381).

Shapes at 1 x 224 x 224, K = 68, width 1 (2,397,512 parameters; the trunk alone 2,223,872 at three channels):

    layers                                     output
    Conv 3x3 s2 32                             32 x 112 x 112
    inverted residual 16, t = 1                16 x 112 x 112
    2 x inverted residual 24, s2, t = 6        24 x 56 x 56
    3 x inverted residual 32, s2, t = 6        32 x 28 x 28
    4 x inverted residual 64, s2, t = 6        64 x 14 x 14
    3 x inverted residual 96, t = 6            96 x 14 x 14
    3 x inverted residual 160, s2, t = 6       160 x 7 x 7
    inverted residual 320, t = 6               320 x 7 x 7
    Conv 1x1 1280                              1280 x 7 x 7
    average pool, Dropout .2, Dense            2K

An inverted residual is Conv 1x1 to t times the width, depthwise 3x3, Conv 1x1 without activation; each with batch norm,
ReLU6; the first block of a row has the stride, the others a skip.
"""

from torch import Tensor, nn

from flr.models import kaiming, last_layer

# Of each row: t, the expansion; width; blocks; the stride of the first.
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Wide inside, narrow outside; with a skip where the shapes allow one.

    Args:
        inputs: width.
        outputs: width.
        stride: of the depthwise convolution.
        expansion: t, the inner width over `inputs`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.main = nn.Sequential(
            *([conv(inputs, inner, 1)] if expansion > 1 else []),
            conv(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.skips else self.main(x)


def scaled(channels: int, width: float) -> int:
    """`channels` times `width` as the nearest multiple of 8, but never less than .9 of it."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels * width else nearest


def inverted_residuals(
    inputs: int, width: float, rows: tuple[tuple[int, int, int, int], ...] = ROWS
) -> tuple[list[nn.Module], int]:
    """Make the blocks of a table such as `ROWS` with a multiplier of its widths; also return the last width."""
    layers: list[nn.Module] = []
    for expansion, channels, blocks, stride in rows:
        outputs = scaled(channels, width)
        for i in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, 1 if i else stride, expansion))
            inputs = outputs
    return layers, inputs


class MobileNetV2(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input; any, since the head pools over what is left, a 32nd of the side.
        width: the multiplier of all widths; the last is never less than 1280.
        dropout: before the last layer.

    Raises:
        ValueError: `width` is not positive.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = MobileNetV2(points=68, channels=1, size=224)
        >>> sum(weight.numel() for weight in model.parameters())
        2397512
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"mobilenet_v2 needs a model.width above 0, not {width}")
        inputs, last = scaled(32, width), scaled(1280, max(width, 1.0))
        blocks, outputs = inverted_residuals(inputs, width)
        self.trunk = nn.Sequential(conv(channels, inputs, 3, 2), *blocks, conv(outputs, last, 1))
        self.head = nn.Sequential(nn.Dropout(dropout), last_layer(last, points))
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images).mean((2, 3)))
