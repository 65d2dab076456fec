"""The batch engine: every stage acts on a whole batch, where the net runs."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from flr.augment.draws import uniform
from flr.errors import UserError
from flr.landmarks.geometry import compose, similarity, transform, warp_batch
from flr.landmarks.scheme import Scheme

NOISE_BANK = 1 << 20
TOP = (("mirror", 1), ("erasing", 1), ("erasing_area", 1), ("shift", 1), ("scale", 3), ("rotation", 180), ("blur", 32))


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far training faces may be bent. Every draw is a function of (seed, epoch, face index).

    Attributes:
        rotation: degrees either way, uniform.
        scale: the face grows by up to 1 + scale or shrinks by as much, log-uniform.
        shift: shares of the crop's side either way, in x and in y.
        mirror: probability of the mirror, which swaps the paired points.
        brightness: factors 1 +- brightness on the pixels.
        contrast: factors 1 +- contrast about the picture's mean.
        noise: the largest standard deviation of Gaussian noise, shares of the pixel range.
        blur: the largest standard deviation of a Gaussian blur, crop pixels.
        erasing: probability that a rectangle is painted over (Zhong et al. 2020, arXiv:1708.04896).
        erasing_area: the largest share of the crop that the rectangle covers.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    mirror: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    erasing: float = 0.0
    erasing_area: float = 0.15

    def __post_init__(self) -> None:
        for name, top in TOP:
            if not 0 <= getattr(self, name) <= top:
                raise UserError(f"augment.{name}={getattr(self, name)} lies outside 0..{top}; set it inside")
        for name in ("brightness", "contrast", "noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(f"augment.{name}={getattr(self, name)} is not a size; set 0 or more")

    @property
    def margin(self) -> float:
        """The side over the crop's that the store must keep, so that no draw looks past it."""
        angle = np.radians(min(self.rotation, 45.0))
        return float((np.cos(angle) + np.sin(angle)) * (1 + 2 * self.shift) * (1 + self.scale))

    def draw(self, seed: int, epoch: int, face: np.ndarray) -> "Draws":
        """The draws of faces (B,) int in an epoch."""
        u = uniform(seed, epoch, face, 14)
        sign = 2 * u - 1
        return Draws(
            angle=np.radians(self.rotation) * sign[:, 0],
            scale=(1 + self.scale) ** sign[:, 1],
            shift=self.shift * sign[:, 2:4],
            mirror=u[:, 4] < self.mirror,
            brightness=1 + self.brightness * sign[:, 5],
            contrast=1 + self.contrast * sign[:, 6],
            noise=self.noise * u[:, 7],
            noise_at=(u[:, 8] * NOISE_BANK).astype(np.int64),
            blur=self.blur * u[:, 9],
            erase=u[:, 10] < self.erasing,
            erase_area=self.erasing_area * (0.1 + 0.9 * u[:, 11]),
            erase_at=u[:, 12:14],
        )

    def __call__(
        self, images: Tensor, points: Tensor, labelled: Tensor, draws: "Draws", size: int, scheme: Scheme
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bend a batch.

        Args:
            images: (B, C, S, S) uint8, store pixels: the crop and its margin.
            points: (B, K, 2) float32, crop pixels.
            labelled: (B, K) bool.
            draws: of these faces.
            size: the side of the crop.
            scheme: names the pairs that a mirror swaps.

        Returns:
            Images (B, C, size, size) float in 0..1, points (B, K, 2) in their pixels, labelled (B, K), and the maps
            (B, 2, 3) from crop pixels to them.
        """
        device, margin = images.device, (images.shape[-1] - size) // 2
        affine = torch.from_numpy(draws.affine(size))
        from_store = torch.tensor([[1.0, 0.0, -margin], [0.0, 1.0, -margin]], dtype=affine.dtype)
        out = warp_batch(images, compose(affine, from_store).to(device), size)
        affine = affine.to(device=device, dtype=torch.float32)
        points = transform(affine, points)
        swap = torch.from_numpy(draws.mirror).to(device)[:, None]
        order = torch.from_numpy(scheme.mirror_order).to(device)
        points = torch.where(swap[..., None], points[:, order], points)
        labelled = torch.where(swap, labelled[:, order], labelled)
        return self._photometry(out.div_(255), draws), points, labelled, affine

    def _photometry(self, images: Tensor, draws: "Draws") -> Tensor:
        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(images)[:, None, None, None]

        if self.blur:
            images = _blur(images, column(draws.blur)[:, 0, 0], self.blur)
        if self.brightness or self.contrast:
            factor = column(draws.brightness * draws.contrast)
            mean = images.mean((1, 2, 3), keepdim=True)
            # brightness * ((x - mean) * contrast + mean), as one multiply-add
            images = images * factor + mean * (column(draws.brightness) - factor)
        if self.noise:
            images = images + column(draws.noise) * _noise(images, draws.noise_at)
        if self.erasing:
            images = torch.where(draws.rectangle(images.shape[-1]).to(images.device), 0.5, images)
        return images.clamp_(0, 1)


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of B faces; all arrays (B,), `shift` and `erase_at` (B, 2)."""

    angle: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    mirror: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    noise: np.ndarray
    noise_at: np.ndarray
    blur: np.ndarray
    erase: np.ndarray
    erase_area: np.ndarray
    erase_at: np.ndarray

    def affine(self, size: int) -> np.ndarray:
        """(B, 2, 3) from crop pixels to the bent crop's: turn and scale about the centre, shift, mirror."""
        centre = np.full((len(self.angle), 2), (size - 1) / 2)
        maps = similarity(self.angle, self.scale, centre, centre + self.shift * size)
        flip = np.where(self.mirror, -1.0, 1.0)
        maps[:, 0] *= flip[:, None]
        maps[:, 0, 2] += np.where(self.mirror, size - 1.0, 0.0)
        return maps

    def rectangle(self, size: int) -> Tensor:
        """(B, 1, size, size) bool: the pixels to erase."""
        side = np.sqrt(self.erase_area)[:, None] * size
        low = np.where(self.erase[:, None], self.erase_at * (size - side), np.inf)
        line = np.arange(size)
        inside = (line >= low[..., None]) & (line < (low + side)[..., None])
        return torch.from_numpy(inside[:, 1, :, None] & inside[:, 0, None, :])[:, None]


@cache
def _bank(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * NOISE_BANK, generator=generator).to(device)


def _noise(images: Tensor, at: np.ndarray) -> Tensor:
    """Each face takes its own stretch of one fixed bank: a draw per face, not per pixel, costs a tenth."""
    count = images[0].numel()
    bank = _bank(images.device)
    if count > NOISE_BANK:
        raise UserError(f"augment.noise serves crops of up to {NOISE_BANK} values, this one has {count}; set it to 0")
    return torch.stack([bank[i : i + count] for i in at.tolist()]).reshape(images.shape)


def _blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """(B, C, H, W) blurred by Gaussians of sigma (B, 1) up to `largest` pixels; edges repeat."""
    # One radius for every batch, so that a face's pixels do not depend on its company.
    radius = max(1, int(np.ceil(2.5 * largest)))
    line = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (line / sigma.clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    batch, channels, height, width = images.shape
    flat = images.reshape(1, batch * channels, height, width)
    pad = torch.nn.functional.pad(flat, (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(pad, kernel[:, None, None, :], groups=batch * channels)
    both = torch.nn.functional.conv2d(rows, kernel[:, None, :, None], groups=batch * channels)
    return both.reshape(batch, channels, height, width)
