"""PIPNet on ResNet-18 (Jin et al. 2021, arXiv:2003.03771): all predictions by one 1x1 layer on the coarse map.

Shapes at 3 x 256 x 256, K = 68, 10 neighbours (11,978,844 parameters; the paper has 12.0 M):

    layers                                  output
    trunk of ResNet-18                      512 x 8 x 8
    Conv 1x1, K (1 + 2 + 2 * 10)            1564 x 8 x 8

Of each point and cell: a score, the point's offset inside the cell, the offsets of its neighbours. At 64 px four cells are
left, as coarse as a network for this head should be.
"""

from torch import Tensor, nn

from flr.models import kaiming
from flr.models.resnet import ResNet18


class PIPNet(nn.Module):
    """Map images (B, channels, size, size) to maps (B, points * (3 + 2 * neighbours), size / 32, size / 32).

    Args:
        points: K.
        channels: Of the input.
        size: Of the input; 64 or more.
        width: Of the first stage; each later one is twice as wide.
        neighbours: Points that each point predicts in addition, at most K - 1.

    Raises:
        ValueError: `width` or `neighbours` is none, or `size` leaves one cell.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = PIPNet(points=68, channels=3, size=256)
        >>> sum(weight.numel() for weight in model.parameters())
        11978844
    """

    output = "pixel_in_pixel"

    def __init__(self, points: int, channels: int, size: int, width: int = 64, neighbours: int = 10) -> None:
        super().__init__()
        if width < 1 or neighbours < 1:
            raise ValueError("pipnet needs a model.width and model.neighbours of 1 or more")
        if size < 64:
            raise ValueError(f"pipnet needs a size of 64 or more, not {size}; set data.crop.size")
        self.trunk = ResNet18(points, channels, size, width).trunk
        self.head = nn.Conv2d(8 * width, points * (3 + 2 * min(neighbours, points - 1)), 1)
        kaiming(self)
        nn.init.normal_(self.head.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))
