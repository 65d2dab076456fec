"""HRNetV2-W18 with the head for landmarks (Wang et al. 2020, arXiv:1908.07919; Sun et al. 2019, arXiv:1904.04514).

Shapes at 3 x 256 x 256, K = 68, width 18 (9,654,398 parameters; 9,662,528 with K = 98):

    stage     layers                                                    output
    stem      2 x Conv 3x3 s2 64, 4 bottlenecks 256                     256 x 64 x 64
    2         1 module of 2 branches, 4 residual blocks each            18 x 64, 36 x 32
    3         4 modules of 3 branches                                   18 x 64, 36 x 32, 72 x 16
    4         3 modules of 4 branches                                   18 x 64, 36 x 32, 72 x 16, 144 x 8
    head      branches upsampled to 64, joined: 270, Conv 1x1 270, 1x1  K x 64 x 64

After each module every branch gets the sum of all branches, halved by strided convolutions or upsampled. These are the counts
of the authors' code (HRNet/HRNet-Facial-Landmark-Detection), whose page rounds the trunk to 9.3 M.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class _Block(nn.Module):
    """Residual block: the main path, and a 1x1 convolution past it where the width changes."""

    def __init__(self, inputs: int, outputs: int, main: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.skip = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.main(x) + self.skip(x))


def _bottleneck(inputs: int, inner: int) -> _Block:
    layers = (_conv(inputs, inner, 1), _conv(inner, inner), _conv(inner, 4 * inner, 1, relu=False))
    return _Block(inputs, 4 * inner, nn.Sequential(*layers))


def _basic(width: int) -> _Block:
    return _Block(width, width, nn.Sequential(_conv(width, width), _conv(width, width, relu=False)))


def _halvings(inputs: int, outputs: int, times: int) -> nn.Sequential:
    """Halve a map some times; the last step changes the width and has no ReLU."""
    steps = [_conv(inputs, inputs, stride=2) for _ in range(times - 1)]
    return nn.Sequential(*steps, _conv(inputs, outputs, stride=2, relu=False))


class _Sum(nn.Module):
    """One branch after an exchange: the sum of all branches, brought to its size and width."""

    def __init__(self, widths: list[int], target: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _conv(width, widths[target], 1, relu=False) if i > target else
            nn.Identity() if i == target else _halvings(width, widths[target], target - i)
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.target = target

    def forward(self, maps: list[Tensor]) -> Tensor:
        total = maps[self.target]
        for i, (layer, x) in enumerate(zip(self.layers, maps, strict=True)):
            if i != self.target:
                total = total + _resized(layer(x), total)
        return functional.relu(total)


class _Module(nn.Module):
    """Residual blocks in each branch, then the exchange between the branches."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(_basic(width) for _ in range(4))) for width in widths)
        self.exchange = nn.ModuleList(_Sum(widths, target) for target in range(len(widths)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [exchange(maps) for exchange in self.exchange]


class _Stage(nn.Module):
    def __init__(self, widths: list[int], modules: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_Module(widths) for _ in range(modules))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        for module in self.steps:
            maps = module(maps)
        return maps


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class HRNet(nn.Module):
    """Map images (B, channels, size, size) to heatmaps (B, points, size / 4, size / 4).

    Args:
        points: K.
        channels: Of the input.
        size: Of the input; a multiple of 32.
        width: Of the finest branch; each coarser one is twice as wide.

    Raises:
        ValueError: `width` is none, or `size` is not a multiple of 32.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = HRNet(points=68, channels=3, size=256)
        >>> sum(weight.numel() for weight in model.parameters())
        9654398
    """

    output = "heatmaps"

    def __init__(self, points: int, channels: int, size: int, width: int = 18) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"hrnet needs a model.width of 1 or more, not {width}")
        if size % 32:
            raise ValueError(f"hrnet takes sizes that are multiples of 32, not {size}; set data.crop.size")
        widths = [width * 2**i for i in range(4)]
        self.stem = nn.Sequential(
            _conv(channels, 64, stride=2), _conv(64, 64, stride=2),
            _bottleneck(64, 64), *(_bottleneck(256, 64) for _ in range(3)),
        )  # fmt: skip
        # From each stage to the next: a new branch, half as fine. Only the stem's width changes.
        self.first = _conv(256, widths[0])
        self.new = nn.ModuleList(
            _conv(inputs, outputs, stride=2)
            for inputs, outputs in zip((256, *widths[1:3]), widths[1:], strict=True)
        )  # fmt: skip
        self.stages = nn.ModuleList(
            _Stage(widths[:branches], modules) for branches, modules in ((2, 1), (3, 4), (4, 3))
        )
        self.head = nn.Sequential(
            nn.Conv2d(sum(widths), sum(widths), 1), nn.BatchNorm2d(sum(widths)), nn.ReLU(inplace=True),
            nn.Conv2d(sum(widths), points, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        maps = [self.first(x)]
        for new, stage in zip(self.new, self.stages, strict=True):
            maps = stage([*maps, new(x)])
            x = maps[-1]
        return self.head(torch.cat([_resized(each, maps[0]) for each in maps], 1))
