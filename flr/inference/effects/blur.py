"""Faces hidden for privacy."""

from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Le

from flr.inference.effects.areas import cover, is_drawable, whole_face, window_of
from flr.inference.effects.base import Effect
from flr.landmarks.scheme import Scheme


class Blur(Effect):
    """Hide a face for privacy: each cell of a coarse grid becomes its mean, drawn without the grid's edges.

    Only a few means of the face remain, so no filter can restore it. A video shows the means of many frames, and a face
    that is not found is not hidden.

    Args:
        cells: Number of cells across the face.
    """

    def __init__(self, cells: Annotated[int, Ge(1), Le(16)] = 6) -> None:
        self.cells = cells

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        if not is_drawable(points):
            return
        face = whole_face(points, scheme)
        if (window := window_of(image, [face])) is None:
            return
        part = image[window]
        cell = np.ptp(face, axis=0).max() / self.cells
        height, width = (max(1, round(side / cell)) for side in part.shape[:2])
        means = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        hidden = cv2.resize(means, part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        # Every pixel that the outline touches is hidden whole.
        inside = cover([face], window) > 0
        part[inside] = hidden[inside]
