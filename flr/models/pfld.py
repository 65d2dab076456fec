"""Regressor after PFLD (Guo et al. 2019, arXiv:1902.10859): inverted residuals, then three scales into one dense layer.

Shapes at 1 x 112 x 112, K = 68, width 1 (1,216,488 parameters):

    layers                                     output
    Conv 3x3 s2 64, depthwise 3x3              64 x 56 x 56
    5 x inverted residual 64, s2, t = 2        64 x 28 x 28
    inverted residual 128, s2, t = 2           128 x 14 x 14
    6 x inverted residual 128, t = 4           128 x 14 x 14
    inverted residual 16, t = 2                S1: 16 x 14 x 14
    Conv 3x3 s2 32                             S2: 32 x 7 x 7
    Conv 7x7 128 valid                         S3: 128
    averages of S1, S2 and S3, Dense     2K

As in the paper: the rows, widths, strides and expansions, three scales in the last layer, the width multiplier. Not as
in the paper: no auxiliary network that estimates the head's pose in training, and no loss weighted by it (losses are
objectives here); S1 and S2 enter by their averages; the last convolution spans whatever map the input's size leaves.
"""

import torch
from torch import Tensor, nn

from flr.models import kaiming, last_layer
from flr.models.mobilenet import InvertedResidual, conv, scaled


class PFLD(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input; any. The last convolution grows with it.
        width: the multiplier of all widths, rounded to multiples of 8; the paper has 1 and .25.

    Raises:
        ValueError: `width` is not positive.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = PFLD(points=68, channels=1, size=112)
        >>> sum(weight.numel() for weight in model.parameters())
        1216488
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, width: float = 1.0) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"pfld needs a model.width above 0, not {width}")
        low, high, s1, s2, s3 = (scaled(base, width) for base in (64, 128, 16, 32, 128))
        self.fine = nn.Sequential(
            conv(channels, low, 3, 2), conv(low, low, 3, groups=low),
            InvertedResidual(low, low, 2, 2), *(InvertedResidual(low, low, 1, 2) for _ in range(4)),
            InvertedResidual(low, high, 2, 2), *(InvertedResidual(high, high, 1, 4) for _ in range(6)),
            InvertedResidual(high, s1, 1, 2),
        )  # fmt: skip
        self.middle = conv(s1, s2, 3, 2)
        # No batch norm: one cell an image is too few to learn a spread from.
        self.coarse = nn.Sequential(nn.Conv2d(s2, s3, -(-size // 16)), nn.ReLU(inplace=True))
        self.head = last_layer(s1 + s2 + s3, points)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        middle = self.middle(fine)
        scales = (fine, middle, self.coarse(middle))
        return self.head(torch.cat([scale.mean((2, 3)) for scale in scales], 1))
