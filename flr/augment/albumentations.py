"""The engine per face: our affine, then any image-only transforms of albumentations, which worker processes may run.

Its release 2.0.8 is the last under the MIT licence.
"""

import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from flr.augment.affine import Affine, Moves
from flr.augment.transfer import to_device
from flr.errors import UserError
from flr.landmarks.geometry import warp

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version

GROUPS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")  # compositions that do to an image what their parts do
PAINTERS = ("CoarseDropout", "Erasing", "GridDropout", "PixelDropout", "XYMasking")  # paint pixels over, move none
# Image-only by name, yet they move the image by up to some pixels, and points would not follow: name -> the fix.
MOVERS = {
    "Downscale": "take ImageCompression or GaussianBlur",
    "Emboss": "take Sharpen",
    "GlassBlur": "take GaussianBlur",
    "MotionBlur": "set its allow_shifted: false and direction_range: [0, 0]",
    "ZoomBlur": "take Defocus",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Albumentations(Affine):
    """How far training faces may be augmented. Every draw is a function of (seed, epoch, face index).

    Attributes:
        rotation, scale, shift, mirror: see `Affine`; they draw what they draw in `flr.augment.device.Augment`.
        transforms: of albumentations, image-only, each by its ``_target_``; also OneOf, SomeOf, RandomOrder and
            Sequential of them. They see the augmented crop, (size, size, C) uint8.

    Raises:
        UserError: a transform moves pixels, or is none.
    """

    transforms: list[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compose  # noqa: B018  # refuses invalid transforms now

    @cached_property
    def _compose(self) -> Any:
        import albumentations

        list(_leaves(self.transforms, "augment.transforms"))
        return albumentations.Compose(self.transforms)

    def check(self, size: int, channels: int) -> None:
        """Apply each transform to an image of that form, so that what cannot be shows before work starts."""
        image = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
        for where, transform in _leaves(self.transforms, "augment.transforms"):
            transform.set_random_seed(0)
            try:
                with warnings.catch_warnings(action="error", category=UserWarning):  # "does not apply to grayscale"
                    out = transform(image=image.copy(), force_apply=True)["image"]
            except Exception as error:  # whatever it is, the transform does not serve here
                raise UserError(
                    f"{where}: {type(transform).__name__} cannot serve crops of {size} x {size} x {channels} ({error}); "
                    "leave it out"
                ) from error
            if out.shape != image.shape or out.dtype != np.uint8:
                raise UserError(
                    f"{where}: {type(transform).__name__} makes a crop {out.dtype} {out.shape}, and it must stay uint8 "
                    f"{image.shape}; leave it out (data.pixels sets the range, data.crop.channels the colours)"
                )

    def augment_image(self, image: np.ndarray, affine: np.ndarray, key: int, size: int) -> np.ndarray:
        """Augment one face. By numpy and OpenCV alone, since torch's threads do not outlive the fork of a worker.

        Args:
            image: (S, S, C) uint8, store pixels: the crop and its margin.
            affine: (2, 3) from them to the augmented crop's.
            key: the face's own number in its epoch.
            size: the side of the crop.

        Returns:
            (size, size, C) uint8.

        Raises:
            UserError: a transform fails.
        """
        crop = warp(image, affine, (size, size)).reshape(size, size, -1)
        # One generator for all. `set_random_seed` would give each transform one of its own with the same numbers, and
        # two transforms of p=0.5 would always come together.
        compose = self._compose
        compose.set_random_state(np.random.default_rng(key), random.Random(key))
        try:
            return compose(image=crop)["image"]
        except Exception as error:
            raise UserError(f"augment.transforms: {type(error).__name__} {error}; leave out what fails") from error

    def pixels(self, images: Tensor, draws: Moves, size: int, levels: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        maps = draws.from_store(size, (images.shape[-1] - size) // 2)
        out = np.empty((len(images), size, size, images.shape[1]), np.uint8)
        for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
            out[i] = self.augment_image(image, maps[i], int(draws.key[i]), size)
        low, high = levels
        return to_device(images.device, out)[0].permute(0, 3, 1, 2) * ((high - low) / 255) + low


def _leaves(transforms: list[Any], path: str) -> Iterator[tuple[str, Any]]:
    """(path, transform) of all that act on pixels, inside compositions too; each of a kind that moves none.

    Raises:
        UserError: one is of another kind.
    """
    import albumentations

    for i, transform in enumerate(transforms):
        where, name = f"{path}.{i}", type(transform).__name__
        if isinstance(transform, albumentations.BaseCompose):
            if name not in GROUPS or not transform.transforms:
                raise UserError(
                    f"{where}: {name} is not accepted here; name some transforms, or {', '.join(GROUPS)} of some"
                )
            if not 0 <= transform.p <= 1:
                raise UserError(f"{where}.p={transform.p} is no probability; set it inside 0..1")
            yield from _leaves(transform.transforms, f"{where}.transforms")
        elif isinstance(transform, albumentations.ImageOnlyTransform) or name in PAINTERS:
            centred = name == "MotionBlur" and not transform.allow_shifted and set(transform.direction_range) == {0}
            if name in MOVERS and not centred:
                raise UserError(f"{where}: {name} moves pixels, and points would not follow; {MOVERS[name]}")
            yield where, transform
        elif isinstance(transform, albumentations.BasicTransform):
            raise UserError(
                f"{where}: {name} moves pixels, and points would not follow; geometry is augment.rotation, "
                "augment.scale, augment.shift and augment.mirror"
            )
        else:
            raise UserError(f"{where}={transform} is no transform; write {{_target_: albumentations.NAME, ...}}")
