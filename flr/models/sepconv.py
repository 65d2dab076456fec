"""Residual depthwise-separable regression network (Xception-like, after Chollet 2017, arXiv:1610.02357).

Shapes of `SepConv` at 1 x 128 x 128, K = 68 (20,553,984 parameters), LeakyReLU .2 everywhere:

    stage    layers                                                       output
    entry    Conv 3x3 32, Conv 3x3 64                                     64 x 128 x 128
             Down 64->128, 128->256, 256->728                             728 x 16 x 16
    middle   8 x residual (3 x [act, DSC 728, BN])                        728 x 16 x 16
    exit     Down 728->1024 (728->728 first)                              1024 x 8 x 8
             DSC 1536, DSC 2048                                           2048 x 8 x 8
    head     average pool, Dropout .3, Dense                              2K

`SepConvLight` (2,630,888 parameters): Down 64->128->256, 6 middle blocks of 256, exit 256->512, DSC 512, DSC 1024.
"""

from torch import Tensor, nn

SLOPE = 0.2


def _act() -> nn.Module:
    return nn.LeakyReLU(SLOPE)


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """DSC: depthwise 3x3, then pointwise 1x1, both without bias."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False)
    )


class _Down(nn.Module):
    """Two separable convolutions and a pool, added to a strided 1x1 convolution: half the side."""

    def __init__(self, inputs: int, outputs: int, act_first: bool) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *([_act()] if act_first else []),
            _separable(inputs, inputs), nn.BatchNorm2d(inputs), _act(),
            _separable(inputs, outputs), nn.BatchNorm2d(outputs),
            nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(layer for _ in range(3) for layer in (_act(), _separable(width, width), nn.BatchNorm2d(width)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class _SepConvNet(nn.Module):
    output = "points"

    def __init__(
        self, points: int, channels: int, downs: tuple[tuple[int, int, bool], ...], blocks: int,
        tail: tuple[int, int, int], dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        width = downs[-1][1]
        exit_, first, second = tail
        self.entry = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), _act(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), _act(),
            *(_Down(*down) for down in downs),
        )  # fmt: skip
        self.middle = nn.Sequential(*(_Middle(width) for _ in range(blocks)))
        self.exit = nn.Sequential(
            _Down(width, exit_, act_first=True),
            _separable(exit_, first), nn.BatchNorm2d(first), _act(),
            _separable(first, second), nn.BatchNorm2d(second), _act(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(second, 2 * points))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.exit(self.middle(self.entry(images))).mean((2, 3)))


class SepConv(_SepConvNet):
    """The published model: it maps images (B, channels, size, size) to points (B, 2 * points).

    Args:
        points: K.
        channels: of the input.
        size: of the input; any of 16 or more, since the head pools over what is left.
        dropout: before the last layer.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = SepConv(points=68, channels=1, size=128)
        >>> sum(weight.numel() for weight in model.parameters())
        20553984
    """

    def __init__(self, points: int, channels: int, size: int, dropout: float = 0.3) -> None:
        downs = ((64, 128, False), (128, 256, False), (256, 728, False))
        super().__init__(points, channels, downs, 8, (1024, 1536, 2048), dropout)


class SepConvLight(_SepConvNet):
    """Map images as `SepConv` does, with fewer layers: the earlier, lighter form.

    Args:
        points: K.
        channels: Channels of the input.
        size: Side of the input.
        dropout: Dropout before the last layer.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = SepConvLight(points=68, channels=1, size=128)
        >>> sum(weight.numel() for weight in model.parameters())
        2630888
    """

    def __init__(self, points: int, channels: int, size: int, dropout: float = 0.0) -> None:
        super().__init__(points, channels, ((64, 128, False), (128, 256, True)), 6, (512, 512, 1024), dropout)
