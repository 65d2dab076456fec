"""Residual network with a top-down path (after He et al. 2016, arXiv:1512.03385, and Lin et al. 2017, arXiv:1612.03144).

Shapes at 1 x 128 x 128, K = 68, the default widths (4,599,972 parameters):

    stage    layers                                             output
    stem     Conv 3x3 s2 32, Conv 3x3 s2 64                     64 x 32 x 32
    stages   2 residual blocks each, the first at stride 2      64 x 32, 128 x 16, 192 x 8, 256 x 4
    top-down 1x1 to 96 at each stride, added from coarse to fine, 3x3
    head     Conv 3x3 96, Conv 1x1                              K x 32 x 32 logits
"""

from torch import Tensor, nn
from torch.nn import functional


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv(inputs, outputs, stride), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.main(x) + self.skip(x))


class HeatmapFPN(nn.Module):
    """Map images (B, channels, size, size) to heatmap logits (B, points, size / 4, size / 4).

    Args:
        points: K.
        channels: of the input.
        size: of the input; a multiple of 32, since strides 4 to 32 must meet again.
        widths: of the stages at strides 4, 8, 16, 32.
        path: the width of the top-down path.
        blocks: residual blocks a stage.

    Raises:
        ValueError: `size` is not a multiple of 32, or a width is none.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = HeatmapFPN(points=68, channels=1, size=128)
        >>> sum(weight.numel() for weight in model.parameters())
        4599972
    """

    output = "heatmaps"

    def __init__(
        self, points: int, channels: int, size: int,
        widths: tuple[int, ...] = (64, 128, 192, 256), path: int = 96, blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if not widths or min(widths) < 2 or path < 1 or blocks < 1:
            raise ValueError(
                "heatmap_fpn needs model.widths of 2 or more, and model.path and model.blocks of 1 or more"
            )
        stride = 4 * 2 ** (len(widths) - 1)
        if size % stride:
            raise ValueError(f"heatmap_fpn takes sizes that are multiples of {stride}, not {size}; set data.crop.size")
        self.stem = nn.Sequential(_conv(channels, widths[0] // 2, 2), _conv(widths[0] // 2, widths[0], 2))
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Block(a, b, 1 if i == 0 else 2), *(_Block(b, b, 1) for _ in range(blocks - 1))
            )
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )  # fmt: skip
        self.laterals = nn.ModuleList(nn.Conv2d(width, path, 1) for width in widths)
        self.smooth = nn.ModuleList(_conv(path, path) for _ in widths[:-1])
        self.head = nn.Sequential(_conv(path, path), nn.Conv2d(path, points, 1))

    def forward(self, images: Tensor) -> Tensor:
        x, levels = self.stem(images), []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        top = levels.pop()
        for smooth in reversed(self.smooth):
            level = levels.pop()
            top = smooth(level + functional.interpolate(top, size=level.shape[-2:], mode="nearest"))
        return self.head(top)
