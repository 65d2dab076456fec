"""Which faces a detector finds that searches images at another size."""

from typing import NamedTuple

import numpy as np


class Reach(NamedTuple):
    """What limits a detector.

    Attributes:
        least: Side in pixels of the smallest faces that it finds in the scaled image, about.
        work: Longer side in pixels of the scaled image.
        enlarged: Largest scale.
    """

    least: float
    work: int
    enlarged: float

    def scale(self, side: float) -> float:
        """Return the scale of an image by its longer side in pixels."""
        return min(self.work / side, self.enlarged)

    def smallest_face(self, side: np.ndarray) -> np.ndarray:
        """Return the sides in pixels of the smallest faces that are found in images (M,), by their longer sides.

        Example:
            >>> Reach(30, 1024, 1.0).smallest_face(np.array([800, 6000])).round().tolist()
            [30.0, 176.0]
        """
        return self.least / np.minimum(self.work / side, self.enlarged)

    def work_for(self, share: np.ndarray) -> int:
        """Return the `work` with which faces (M,) are found, by their sides over the longer sides of their images.

        Example:
            >>> Reach(30, 1024, 1.0).work_for(np.array([75 / 6000]))
            2400
        """
        return int(min(np.ceil(self.least / share.min() / 32) * 32, 8192))
