"""Stacked hourglass (Newell et al. 2016, arXiv:1603.06937): maps, refined by each stage, each stage supervised.

Shapes at 3 x 256 x 256, K = 68, width 256 (6,770,952 parameters with 2 stacks, 13,112,208 with 4):

    layers                                             output
    Conv 7x7 s2 64, residual 128                       128 x 128 x 128
    MaxPool 2, 2 residuals 256                         256 x 64 x 64
    hourglass: residuals at 64, 32, 16, 8, 4 and back  256 x 64 x 64
    residual, Conv 1x1 256, Conv 1x1 K                 K x 64 x 64
    maps and features, 1x1 each, added to the next hourglass's input

With one residual a place, as in the paper's final design and in the port to PyTorch of bearpaw/pytorch-pose, whose counts
these are (6,730,912 and 13,018,816 for 16 points). Sizes that do not halve are upsampled to the size of their skip.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Residual(nn.Module):
    """Bottleneck with the norms before the convolutions (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 2
        self.main = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inner, 1),
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True), nn.Conv2d(inner, inner, 3, 1, 1),
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True), nn.Conv2d(inner, outputs, 1),
        )  # fmt: skip
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class _Hourglass(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.skip, self.down, self.up = (_Residual(width, width) for _ in range(3))
        self.inner: nn.Module = _Hourglass(width, depth - 1) if depth > 1 else _Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(x)
        x = self.up(self.inner(self.down(functional.max_pool2d(x, 2))))
        return skip + functional.interpolate(x, size=skip.shape[-2:], mode="nearest")


class Hourglass(nn.Module):
    """Map images (B, channels, size, size) to maps (B, points, size / 4, size / 4); in training of each stack, (B, stacks, ...).

    Args:
        points: K.
        channels: Of the input.
        size: Of the input; a multiple of 4.
        stacks: Number of hourglasses.
        width: Of the features, even.
        depth: Times that an hourglass halves its maps.

    Raises:
        ValueError: An argument is none, or `size` is too small for the depth or not a multiple of 4.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = Hourglass(points=68, channels=3, size=256)
        >>> sum(weight.numel() for weight in model.parameters())
        6770952
    """

    output = "heatmaps"

    def __init__(
        self, points: int, channels: int, size: int, stacks: int = 2, width: int = 256, depth: int = 4
    ) -> None:
        super().__init__()
        if stacks < 1 or depth < 1 or width < 4 or width % 4:
            raise ValueError(
                "hourglass needs model.stacks and model.depth of 1 or more, and a model.width that 4 divides"
            )
        least = 4 * 2**depth
        if size % 4 or size < least:
            raise ValueError(
                f"hourglass takes sizes that are multiples of 4, {least} or more, not {size}; set data.crop.size or model.depth"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width // 4, 7, 2, 3), nn.BatchNorm2d(width // 4), nn.ReLU(inplace=True),
            _Residual(width // 4, width // 2), nn.MaxPool2d(2), _Residual(width // 2, width), _Residual(width, width),
        )  # fmt: skip
        self.stacks = nn.ModuleList(
            nn.Sequential(
                _Hourglass(width, depth), _Residual(width, width),
                nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            )
            for _ in range(stacks)
        )  # fmt: skip
        self.maps = nn.ModuleList(nn.Conv2d(width, points, 1) for _ in range(stacks))
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(points, width, 1) for _ in range(stacks - 1))

    def forward(self, images: Tensor) -> Tensor:
        x, found = self.stem(images), []
        for i, (stack, maps) in enumerate(zip(self.stacks, self.maps, strict=True)):
            features = stack(x)
            found.append(maps(features))
            if i < len(self.from_maps):
                x = x + self.from_features[i](features) + self.from_maps[i](found[-1])
        return torch.stack(found, 1) if self.training and len(found) > 1 else found[-1]
