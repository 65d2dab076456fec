"""OpenCV's CNN detector (Wu et al. 2023, doi:10.1007/s11633-023-1423-y), from a model file that the user provides."""

import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flr.data.finders.model_file import ModelFile
from flr.errors import UserError


@dataclass(frozen=True)
class YuNetFinder(ModelFile):
    """Settings of YuNet: ``face_detection_yunet_2023mar.onnx`` of OpenCV's model zoo, or a later version."""

    def __str__(self) -> str:
        return f"yunet-{self.score:g}-{self.overlap:g}"

    def usual_offset(self, scheme: str) -> tuple[float, float, float, float]:
        """Return the place of a scheme's tight box in the detected box, about."""
        return 0.0, 0.2, 1.0, 1.0

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return the boxes (M, 4) of an image (H, W) or (H, W, 3) RGB uint8."""
        rows = self.rows(image)
        return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1) - 0.5

    def rows(self, image: np.ndarray) -> np.ndarray:
        """Return (M, 15) float64: left, top, width, height, five points in the order of celeba5, and score.

        Raises:
            UserError: The file is missing or not a YuNet model.
        """
        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        network, lock = open_yunet(str(Path(self.model).absolute()), self.model, self.score, self.overlap)
        try:
            with lock:
                network.setInputSize((bgr.shape[1], bgr.shape[0]))
                rows = network.detect(bgr)[1]
        except cv2.error as error:
            raise UserError(f"{self.model}: not a YuNet model ({error.err})") from error
        return np.zeros((0, 15)) if rows is None else rows.astype(np.float64)


@functools.lru_cache(4)
def open_yunet(path: str, given: str, score: float, overlap: float) -> tuple[Any, threading.Lock]:
    """Load a model, and make the lock under which it is used.

    Raises:
        UserError: The file is missing or not a YuNet model.
    """
    if not Path(path).is_file():
        raise UserError(f"detector.model={given}: no such file; OpenCV's model zoo has face_detection_yunet as .onnx")
    try:
        return cv2.FaceDetectorYN.create(path, "", (320, 320), score, overlap), threading.Lock()
    except cv2.error as error:
        raise UserError(f"detector.model={given}: not a YuNet model that OpenCV can read") from error
