"""The detector that comes with flr."""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Ge, Le

from flr.data.finders.network import FaceNetwork, open_network
from flr.data.finders.votes import find_votes, merge


@dataclass(frozen=True)
class Builtin:
    """The detector that was trained on rendered scenes alone (see `flr.data.finders.votes`).

    Attributes:
        model: File of another detector that ``flr train_detector`` wrote; null for the built-in one.
        work: Side in pixels to which the longer side of an image is scaled, by at most 2 if that enlarges it. Faces from 15
            pixels of the scaled image are found, most of those from 22 pixels. The time grows with the square.
        score: Lowest score of a face; null for that of the file. A higher one gives fewer faces and fewer false ones.
        missed: See `flr.data.boxes.Haar.missed`.
        offset: See `flr.data.boxes.Haar.offset`.
    """

    model: str | None = None
    work: Annotated[int, Ge(32), Le(8192)] = 320
    score: Annotated[float, Ge(0)] | None = None
    missed: Literal["truth", "picture", "leave_out"] = "truth"
    offset: tuple[float, float, float, float] | None = None

    def __str__(self) -> str:
        keys = {"model": self.model, "work": self.work, "score": self.score}
        return "-".join(["builtin", *(f"{key}:{value}" for key, value in keys.items() if value is not None)])

    @property
    def identity(self) -> tuple[str | float | int | None, ...]:
        """What the boxes depend on."""
        return self.network().digest, self.work, self.score

    def network(self, threads: int = 1) -> FaceNetwork:
        """Load the detector's file."""
        return open_network(self.model, threads)

    def usual_offset(self, scheme: str) -> tuple[float, float, float, float]:
        """Return the place of a scheme's tight box in the detected square, as on rendered faces."""
        return self.network().metadata.offsets.get(scheme, self.offset or (0.0, 0.0, 1.0, 1.0))

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return the squares (M, 4) of an image; see `find`."""
        return self.find(image)[0]

    def find(self, image: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the faces of an image (H, W) or (H, W, 3) RGB uint8.

        Returns:
            (M, 4) squares about as large as the larger side of the tight box of 68 points; (M,) scores, the best first.
        """
        network = self.network(threads)
        factor = min(self.work / max(image.shape[:2]), 2.0)
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(image, (width, height), interpolation=shrink)
        grey = scaled if scaled.ndim == 2 else cv2.cvtColor(scaled, cv2.COLOR_RGB2GRAY)
        least = network.metadata.threshold if self.score is None else self.score
        faces = merge(find_votes(grey, network), least)
        scale = np.array([image.shape[1] / width, image.shape[0] / height])
        middle, half = (faces[:, :2] + 0.5) * scale - 0.5, faces[:, 2:3] * scale.mean() / 2
        return np.concatenate([middle - half, middle + half], 1), faces[:, 3]
