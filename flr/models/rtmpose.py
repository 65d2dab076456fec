"""A head after RTMPose (Jiang et al. 2023, arXiv:2303.07399) on a MobileNetV2 at stride 16.

Shapes at 1 x 96 x 96, K = 68 (3,411,718 parameters):

    layers                                             output
    trunk of MobileNetV2, the last halving left out    320 x 6 x 6
    Conv 7x7 K, flattened                              K x 36
    scale norm, Dense 256                              K x 256
    gated attention unit over the points               K x 256
    Dense, one for each axis                           K x 2 x 192 logits

As in the paper: the 7x7 layer, one token a point, the gated attention unit with squared ReLU (Hua et al. 2022,
arXiv:2202.10447), two bins a pixel. Not as in the paper: the backbone, which there is CSPNeXt.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from flr.models import kaiming
from flr.models.heads import BINS
from flr.models.mobilenet import ROWS, conv, inverted_residuals, scaled


class ScaleNorm(nn.Module):
    """Divide vectors by their root mean square and multiply them by one learned number.

    Example:
        >>> import torch
        >>> ScaleNorm()(torch.tensor([3.0, 4.0])).square().mean().round().item()
        1.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-5))


class GatedAttention(nn.Module):
    """Attention between tokens (B, K, width), whose values are gated.

    Args:
        width: Of the tokens.
        shared: Width of queries and keys, which share a layer.

    Example:
        >>> import torch
        >>> GatedAttention(8, 4)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, shared: int) -> None:
        super().__init__()
        self.norm, self.sizes = ScaleNorm(), [2 * width, 2 * width, shared]
        self.inputs = nn.Linear(width, sum(self.sizes), bias=False)
        self.outputs = nn.Linear(2 * width, width, bias=False)
        self.gain, self.shift = nn.Parameter(torch.rand(2, shared)), nn.Parameter(torch.rand(2, shared))
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        gate, value, base = functional.silu(self.inputs(self.norm(x))).split(self.sizes, -1)
        query, key = (base[..., None, :] * self.gain + self.shift).unbind(-2)
        weights = functional.relu(query @ key.transpose(-1, -2) / self.sizes[2] ** 0.5).square()
        return x * self.skip + self.outputs(gate * (weights @ value))


class RTMPose(nn.Module):
    """Map images (B, channels, size, size) to logits (B, points, 2, 2 * size).

    Args:
        points: K.
        channels: Of the input.
        size: Of the input; any.
        width: Multiplier of the backbone's widths.
        hidden: Width of the tokens.

    Raises:
        ValueError: `width` or `hidden` is not positive.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = RTMPose(points=68, channels=1, size=96)
        >>> model(torch.empty(2, 1, 96, 96, device="meta")).shape
        torch.Size([2, 68, 2, 192])
    """

    output = "axes"

    def __init__(self, points: int, channels: int, size: int, width: float = 1.0, hidden: int = 256) -> None:
        super().__init__()
        if width <= 0 or hidden < 1:
            raise ValueError("rtmpose needs a model.width and a model.hidden above 0")
        rows = tuple((*row[:3], 1) if row[1] == 160 else row for row in ROWS)
        layers, outputs = inverted_residuals(scaled(32, width), width, rows)
        self.trunk = nn.Sequential(conv(channels, scaled(32, width), 3, 2), *layers)
        self.tokens = nn.Conv2d(outputs, points, 7, 1, 3)
        kaiming(self)
        self.norm, self.dense = ScaleNorm(), nn.Linear((-(-size // 16)) ** 2, hidden, bias=False)
        self.attention = GatedAttention(hidden, hidden // 2)
        self.bins = nn.Linear(hidden, 2 * BINS * size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.dense(self.norm(self.tokens(self.trunk(images)).flatten(2)))
        return self.bins(self.attention(tokens)).unflatten(-1, (2, -1))
