"""BlazeFace (Bazarevsky et al. 2019, arXiv:1907.05047) of MediaPipe, from a model file that the user provides."""

import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Gt, Le

from flr.data.finders.model_file import ModelFile
from flr.errors import UserError

SIDE = 128  # pixels of the network's input
GRIDS = ((16, 2), (8, 6))  # cells along a side, and boxes that each cell proposes


@dataclass(frozen=True)
class BlazeFaceFinder(ModelFile):
    """Settings of BlazeFace: ``face_detection_short_range.tflite``, which sees faces of a fifth of the image or more."""

    score: Annotated[float, Gt(0), Le(1)] = 0.5

    def __str__(self) -> str:
        return f"blazeface-{self.score:g}-{self.overlap:g}"

    def usual_offset(self, scheme: str) -> tuple[float, float, float, float]:
        """Return the place of a scheme's tight box in the detected box, about: of 68 points, 150 training photos of 300-W."""
        return 0.02, 0.08, 0.99, 1.01

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return the boxes (M, 4) of an image (H, W) or (H, W, 3) RGB uint8."""
        return self.rows(image)[:, :4]

    def rows(self, image: np.ndarray) -> np.ndarray:
        """Return (M, 17) float64: left, top, right, bottom, six points, score; the best first.

        The points are the eyes (the one on the left of the image first), the tip of the nose, the middle of the mouth
        and the ears.

        Raises:
            UserError: The file is missing or not a BlazeFace model.
        """
        height, width = image.shape[:2]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
        square = cv2.copyMakeBorder(rgb, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT)
        raw, logits = self._run(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        score = 1 / (1 + np.exp(-logits.clip(-100, 100)))
        keep = score >= self.score
        # Centre, size and six points: the size in pixels of the network, the rest from the middle of the cell.
        places = raw[keep].reshape(-1, 8, 2) / SIDE
        places[:, [0, *range(2, 8)]] += _middles()[keep, None]
        corners = places[:, 0] - places[:, 1] / 2
        best = cv2.dnn.NMSBoxes(
            np.hstack([corners, places[:, 1]]).tolist(), score[keep].tolist(), self.score, self.overlap
        )
        rows = np.concatenate([corners[:, None], places[:, :1] + places[:, 1:2] / 2, places[:, 2:]], 1)[
            np.array(best, int)
        ]
        # An edge of the square is half a pixel before the centre of its first pixel.
        rows = rows * side - 0.5 - (left, top)
        return np.hstack([rows.reshape(len(rows), 16), score[keep][np.array(best, int), None]])

    def _run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        network, lock = open_blazeface(str(Path(self.model).absolute()), self.model)
        with lock:
            network.setInput(cv2.dnn.blobFromImage(pixels, 1 / 127.5, mean=(127.5,) * 3))
            raw, logits = network.forward(["regressors", "classificators"])
        return raw[0].astype(np.float64), logits[0, :, 0].astype(np.float64)


@functools.cache
def _middles() -> np.ndarray:
    """Return the middles (896, 2) of the cells that the proposals are relative to, as shares of the image."""
    cells = []
    for count, proposals in GRIDS:
        at = (np.arange(count) + 0.5) / count
        cells.append(np.repeat(np.stack(np.meshgrid(at, at), 2).reshape(-1, 2), proposals, 0))
    return np.concatenate(cells)


@functools.lru_cache(4)
def open_blazeface(path: str, given: str) -> tuple[Any, threading.Lock]:
    """Load a model, and make the lock under which it is used.

    Raises:
        UserError: The file is missing or not MediaPipe's short-range BlazeFace.
    """
    if not Path(path).is_file():
        raise UserError(
            f"detector.model={given}: no such file; MediaPipe's wheel of version 0.10.14 holds face_detection_short_range.tflite"
        )
    wrong = f"detector.model={given}: not MediaPipe's face_detection_short_range.tflite"
    try:
        network = cv2.dnn.readNetFromTFLite(path)
        network.setInput(np.zeros((1, 3, SIDE, SIDE), np.float32))
        shapes = [out.shape for out in network.forward(["regressors", "classificators"])]
    except cv2.error as error:
        raise UserError(wrong) from error
    if shapes != [(1, len(_middles()), 16), (1, len(_middles()), 1)]:
        raise UserError(wrong)
    return network, threading.Lock()
