"""What both engines share: one random affine a face, which moves its pixels and its points alike."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flr.augment.draws import keys, uniform
from flr.augment.transfer import to_device
from flr.errors import UserError
from flr.landmarks.geometry import compose, similarity, transform
from flr.landmarks.scheme import Scheme

COLUMNS = 5  # of a face's uniform draws, that the affine takes
STRETCH = 83  # the first of two more, past all that an engine takes


@dataclass(frozen=True)
class Moves:
    """What was drawn for the affines of B faces; all arrays (B,), `shift` (B, 2) and `stretch` (B, 2, 2).

    Attributes:
        angle: radians; positive turns x towards y.
        scale: factor.
        shift: shares of the crop's side.
        stretch: the matrix that makes the face longer along one line and shorter across it.
        mirror: bool.
        key: uint64, a number of the face's own, to seed further draws with.
    """

    angle: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    stretch: np.ndarray
    mirror: np.ndarray
    key: np.ndarray

    def affine(self, size: int) -> np.ndarray:
        """(B, 2, 3) from crop pixels to the augmented crop's: stretch, turn and scale about the centre, shift, mirror."""
        centre = np.full((len(self.angle), 2), (size - 1) / 2)
        maps = similarity(self.angle, self.scale, centre, centre + self.shift * size)
        stays = centre - (self.stretch @ centre[..., None])[..., 0]
        maps = compose(maps, np.concatenate([self.stretch, stays[..., None]], -1))
        flip = np.where(self.mirror, -1.0, 1.0)
        maps[:, 0] *= flip[:, None]
        maps[:, 0, 2] += np.where(self.mirror, size - 1.0, 0.0)
        return maps

    def from_store(self, size: int, margin: int) -> np.ndarray:
        """(B, 2, 3) from the pixels of a store with a margin to the augmented crop's."""
        return compose(self.affine(size), np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin]]))


@dataclass(frozen=True, kw_only=True)
class Affine(ABC):
    """How far training faces may be moved. Every draw is a function of (seed, epoch, face index).

    Attributes:
        rotation: degrees either way, uniform.
        scale: the face grows by up to 1 + scale or shrinks by as much, log-uniform.
        shift: shares of the crop's side either way, in x and in y.
        stretch: the face grows by up to 1 + stretch, log-uniform, along a line of any direction and shrinks as much across it,
            which also shears it: other people's proportions.
        mirror: probability of the mirror, which swaps the paired points.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    stretch: float = 0.0
    mirror: float = 0.0

    RANGE: ClassVar[dict[str, tuple[float, float]]] = {
        "rotation": (0, 180), "scale": (0, 3), "shift": (0, 1), "stretch": (0, 1), "mirror": (0, 1),
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name, (low, high) in self.RANGE.items():
            if not low <= getattr(self, name) <= high or np.isinf(getattr(self, name)):
                inside = f"{low}..{high}" if np.isfinite(high) else f"{low} and more"
                raise UserError(f"augment.{name}={getattr(self, name)} lies outside {inside}; set it inside")

    @property
    def margin(self) -> float:
        """The side over the crop's that the store must keep, so that no draw looks past it."""
        angle, grown = np.radians(min(self.rotation, 45.0)), 1 + self.stretch
        # Along a line of 22.5 degrees a corner goes furthest.
        stretch = grown + (np.sqrt(2) - 1) / 2 * (grown - 1 / grown)
        return float((np.cos(angle) + np.sin(angle)) * (1 + 2 * self.shift) * (1 + self.scale) * stretch)

    def draw(self, seed: int, epoch: int, face: np.ndarray) -> Moves:
        """The draws of faces (B,) int in an epoch; their affines are the same in every engine."""
        u = uniform(seed, epoch, face, COLUMNS)
        sign = 2 * u - 1
        line, length = uniform(seed, epoch, face, 2, STRETCH).T
        along = np.stack([np.cos(np.pi * line), np.sin(np.pi * line)], -1)
        grown = (1 + self.stretch) ** (2 * length - 1)
        both = along[:, :, None] * along[:, None]
        return Moves(
            angle=np.radians(self.rotation) * sign[:, 0],
            scale=(1 + self.scale) ** sign[:, 1],
            shift=self.shift * sign[:, 2:4],
            stretch=np.eye(2) / grown[:, None, None] + (grown - 1 / grown)[:, None, None] * both,
            mirror=u[:, 4] < self.mirror,
            key=keys(seed, epoch, face),
        )

    @abstractmethod
    def check(self, size: int, channels: int) -> None:
        """Refuse what crops of `size` pixels and `channels` cannot be given, before work starts.

        Raises:
            UserError: what, and the fix.
        """

    @abstractmethod
    def pixels(self, images: Tensor, draws: Moves, size: int, levels: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Store pixels (B, C, S, S) uint8, the crop and its margin, as augmented crops (B, C, size, size) float.

        Args:
            images: of the faces.
            draws: of these faces.
            size: the side of the crop.
            levels: what black and white become.
        """

    def points(
        self, points: Tensor, labelled: Tensor, draws: Moves, size: int, scheme: Scheme
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move the points of a batch.

        Args:
            points: (B, K, 2) float32, crop pixels.
            labelled: (B, K) bool; or (B, K, F), F flags of each point.
            draws: of these faces.
            size: the side of the crop.
            scheme: names the pairs that a mirror swaps.

        Returns:
            Points (B, K, 2) in the augmented crops' pixels, `labelled` in its shape, and the maps (B, 2, 3) from crop pixels to them.
        """
        affine, swap, order = to_device(points.device, draws.affine(size), draws.mirror, scheme.mirror_order)
        points = transform(affine, points)
        points = torch.where(swap[:, None, None], points[:, order], points)
        swap = swap.view(-1, *[1] * (labelled.ndim - 1))
        return points, torch.where(swap, labelled[:, order], labelled), affine

    def hidden(self, points: Tensor, draws: Moves, size: int) -> Tensor:
        """Return (B, K) bool whether `pixels` paints over points (B, K, 2) of the augmented crops, as far as that is known."""
        return torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
