"""Heads that turn a feature map into what an objective takes, so that one backbone can be trained under each of them."""

from torch import Tensor, nn

BINS = 2  # a pixel along each axis
UPSAMPLED = 256  # width of the transposed convolutions


class _PooledHead(nn.Linear):
    """Average the map (B, inputs, h, w), then a dense layer to `values` numbers per point, (B, values * points).

    It starts near 0, the coded zero: training begins at the crop's centre.
    """

    def __init__(self, inputs: int, points: int, values: int = 2) -> None:
        super().__init__(inputs, values * points)
        nn.init.normal_(self.weight, std=0.1 / inputs**0.5)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, values * points)."""
        return super().forward(features.mean((2, 3)))


class _MapHead(nn.Sequential):
    """Three transposed convolutions and a 1x1 one, from (B, inputs, h, w) to (B, points, 8 h, 8 w).

    The head of Xiao et al. 2018, arXiv:1804.06208.
    """

    def __init__(self, inputs: int, points: int) -> None:
        layers: list[nn.Module] = []
        for width in (inputs, UPSAMPLED, UPSAMPLED):
            layers += [
                nn.ConvTranspose2d(width, UPSAMPLED, 4, 2, 1, bias=False),
                nn.BatchNorm2d(UPSAMPLED), nn.ReLU(inplace=True),
            ]  # fmt: skip
        super().__init__(*layers, nn.Conv2d(UPSAMPLED, points, 1))


class _AxesHead(nn.Module):
    """A `_MapHead` whose maps are flattened, with a dense layer to the bins of each axis, (B, points, 2, bins).

    Args:
        inputs: Width of the features.
        points: K.
        cells: Cells of the map after the `_MapHead`.
        size: Of the model's input; there are two bins a pixel.
    """

    def __init__(self, inputs: int, points: int, cells: int, size: int) -> None:
        super().__init__()
        self.maps, self.bins = _MapHead(inputs, points), nn.Linear(cells, 2 * BINS * size)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, points, 2, bins)."""
        return self.bins(self.maps(features).flatten(2)).unflatten(-1, (2, -1))


def make_head(output: str, inputs: int, points: int, size: int, stride: int = 32) -> nn.Module:
    """Make the head for a kind of output.

    Args:
        output: ``points``, ``points_and_scales``, ``heatmaps`` or ``axes``: what the objective takes.
        inputs: Width of the features.
        points: K.
        size: Of the model's input.
        stride: Of the features.

    Raises:
        ValueError: There is no head for this output.

    Example:
        >>> import torch
        >>> make_head("heatmaps", inputs=512, points=68, size=96)(torch.zeros(2, 512, 3, 3)).shape
        torch.Size([2, 68, 24, 24])
    """
    if output == "points":
        return _PooledHead(inputs, points)
    if output == "points_and_scales":
        return _PooledHead(inputs, points, values=4)
    if output == "heatmaps":
        return _MapHead(inputs, points)
    if output == "axes":
        return _AxesHead(inputs, points, (8 * -(-size // stride)) ** 2, size)
    raise ValueError(
        f"no head puts out {output}; choose an objective= that takes points, points_and_scales, heatmaps or axes"
    )
