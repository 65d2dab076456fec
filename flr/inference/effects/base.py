"""What all effects have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from flr.errors import UserError
from flr.landmarks.scheme import Scheme


class Effect(ABC):
    """Something done to a face.

    Attributes:
        makes_labels: Whether the effect makes a label image (H, W) uint8 instead of changing the image.
    """

    makes_labels: ClassVar[bool] = False

    def check(self, scheme: Scheme) -> None:  # noqa: B027  # most effects need nothing
        """Check a scheme before work starts.

        Raises:
            UserError: The scheme lacks points that this effect needs.
        """

    @abstractmethod
    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        """Change an image in place; arguments as of `__call__`."""

    def __call__(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> np.ndarray:
        """Return a new image of a face with the effect.

        Args:
            image: (H, W, 3) RGB uint8.
            points: (K, 2) float, image pixels; the face may lie partly outside.
            scheme: Scheme of the points.

        Returns:
            (H, W, 3) RGB uint8.

        Raises:
            UserError: The scheme lacks points that this effect needs.
        """
        return apply([self], image, points[None], scheme)


def apply(effects: Sequence[Effect], image: np.ndarray, faces: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Apply one effect after another to all faces of an image.

    Args:
        effects: In their order; `Mask` comes last, since it makes a label image.
        image: (H, W, 3) RGB uint8.
        faces: (N, K, 2) float, image pixels.
        scheme: Scheme of the points.

    Returns:
        (H, W, 3) RGB uint8, or with `Mask` (H, W) uint8; a new image, also where there is no face.

    Raises:
        UserError: The scheme lacks points that an effect needs, or an effect comes after `Mask`.
    """
    check(effects, scheme)
    labels = bool(effects) and effects[-1].makes_labels
    out = np.zeros(image.shape[:2], np.uint8) if labels else image.copy()
    for effect in effects[-1:] if labels else effects:  # nothing shows through a label image
        for points in faces:
            effect.draw(out, np.asarray(points, np.float64), scheme)
    return out


def check(effects: Iterable[Effect], scheme: Scheme) -> None:
    """Check effects before work starts.

    Raises:
        UserError: The scheme lacks points that an effect needs, or an effect comes after `Mask`.
    """
    effects = list(effects)
    for effect in effects:
        effect.check(scheme)
    if any(effect.makes_labels for effect in effects[:-1]):
        raise UserError("effect: mask makes a label image, so it must come last; move it to the end")
