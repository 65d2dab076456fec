"""What all effects have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

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
        """Return a new image of a face, points (K, 2), with the effect; see `apply`."""
        return apply([self], image, points[None], scheme)


def apply(effects: Sequence[Effect], image: np.ndarray, faces: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Apply one effect after another to all faces of an image.

    Args:
        effects: In their order; one that makes a label image is applied alone.
        image: (H, W, 3) RGB uint8.
        faces: (N, K, 2) float, image pixels.
        scheme: Scheme of the points.

    Returns:
        (H, W, 3) RGB uint8, or labels (H, W) uint8; a new image, also where there is no face.

    Raises:
        UserError: The scheme lacks points that an effect needs.
    """
    out = np.zeros(image.shape[:2], np.uint8) if any(effect.makes_labels for effect in effects) else image.copy()
    for effect in effects:
        effect.check(scheme)
        for points in faces:
            effect.draw(out, np.asarray(points, np.float64), scheme)
    return out
