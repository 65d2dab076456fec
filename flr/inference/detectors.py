"""Detectors of faces: OpenCV's Haar cascade or YuNet, the boxes of a file, or the whole image as one face.

A detector returns the boxes that a model expects, which depend on the boxes that the model was trained with: for
``policy.source=truth`` the tight box of its points, which is not the detector's own box.
"""

import csv
import io
import threading
from pathlib import Path
from typing import Annotated, Protocol

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from flr.data.boxes import LARGEST_SIDE, Haar, Offset, from_detection
from flr.data.crops import CropSettings
from flr.errors import UserError
from flr.files import opened
from flr.landmarks.geometry import fit_similarity, tight_box, transform
from flr.landmarks.scheme import Scheme

MAX_COORDINATE = 1e6  # pixels: no box reaches further, and no side is shorter than the inverse

Detections = tuple[np.ndarray, np.ndarray]  # (M, 4) boxes as the model expects them, (M,) scores, the best face first


class BoxTarget(Protocol):
    """What a detector needs to know of a model; see `flr.inference.landmarker.Landmarker` for the attributes."""

    scheme: Scheme
    crop: CropSettings
    offset: Offset
    mean_face: np.ndarray


class Detector(Protocol):
    """Find the faces of an image (H, W) or (H, W, 3) RGB uint8, whose path or frame number is `name`."""

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections: ...


class HaarFaces:
    """OpenCV's frontal-face cascade (see `flr.data.boxes.Haar`).

    Args:
        step: Factor between two scales of the image.
        neighbours: Number of detections that must agree. A higher number gives fewer faces and fewer false ones.
        smallest: Smallest face, as a share of the image's shorter side. A lower share finds more faces and takes longer.
        work: Longer side in pixels of the image that is searched; a larger image is shrunk to it. Faces from about 30 pixels
            of the shrunk image are found. The time grows with the square.
    """

    def __init__(
        self, step: Annotated[float, Ge(1.01), Le(2)] = 1.1, neighbours: Annotated[int, Ge(0), Le(1000)] = 5,
        smallest: Annotated[float, Ge(0), Le(1)] = 0.0, work: Annotated[int, Ge(32), Le(8192)] = LARGEST_SIDE,
    ) -> None:  # fmt: skip
        self.haar, self.smallest, self.work = Haar(step, neighbours), smallest, work

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`, the largest first. The cascade gives no scores, so each score is 1.

        Raises:
            UserError: The position of the model's points in a detected box is not known.
        """
        if model.offset is None:
            raise UserError(
                f"no detector is known to find the boxes of policy {model.crop.policy} for {model.scheme.name}; give boxes "
                "(detector=boxes), or take the image as one face (detector=whole)"
            )
        boxes = self.haar.detect(image, self.smallest, self.work)
        order = np.argsort(boxes[:, 0] - boxes[:, 2], kind="stable")
        return from_detection(boxes[order], model.offset), np.ones(len(boxes))


class YuNet:
    """OpenCV's CNN detector (Wu et al. 2023, doi:10.1007/s11633-023-1423-y), from a model file that you provide.

    The tight box is derived from the detector's five points, on which the mean training face is fitted, not from its box.

    Args:
        model: ``face_detection_yunet_2023mar.onnx`` of OpenCV's model zoo, or a later version.
        score: Minimum score of a face.
        overlap: Of two faces that overlap by more, the better one is kept.
    """

    def __init__(
        self, model: str, score: Annotated[float, Gt(0), Le(1)] = 0.7, overlap: Annotated[float, Gt(0), Le(1)] = 0.3
    ) -> None:
        self.path, self._lock = Path(model).absolute(), threading.Lock()
        if not self.path.is_file():
            raise UserError(
                f"detector.model={model}: no such file; OpenCV's model zoo has face_detection_yunet as .onnx"
            )
        try:
            self.network = cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), score, overlap)
        except cv2.error as error:
            raise UserError(f"detector.model={model}: not a YuNet model that OpenCV can read") from error

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`.

        Raises:
            UserError: The model's scheme has no eyes, nose and mouth corners to fit on those of YuNet.
        """
        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        try:
            with self._lock:
                self.network.setInputSize((bgr.shape[1], bgr.shape[0]))
                rows = self.network.detect(bgr)[1]
        except cv2.error as error:
            raise UserError(f"{self.path}: not a YuNet model ({error.err})") from error
        if rows is None:
            return np.zeros((0, 4)), np.zeros(0)
        five = rows[:, 4:14].reshape(-1, 5, 2).astype(np.float64)  # in the order of celeba5
        mean_five = np.asarray(model.scheme.reduce(model.mean_face, "celeba5"))
        fitted = transform(fit_similarity(np.broadcast_to(mean_five, five.shape), five), model.mean_face)
        return tight_box(fitted, np.ones(fitted.shape[:2], bool)), rows[:, 14].astype(np.float64)


class FileBoxes:
    """The boxes of a file, as the model expects them: for ``policy.source=truth`` the tight boxes of the points.

    Args:
        file: CSV with the columns image, left, top, right, bottom and optionally score; one row per face. An image is
            named by its path below the source's folder, or by its file name; a video frame by NAME#NUMBER, from 0.
    """

    def __init__(self, file: str) -> None:
        self.file, self.rows = file, dict[str, list[tuple[float, ...]]]()
        try:
            with opened(Path(file)) as binary:
                reader = csv.DictReader(io.TextIOWrapper(binary, "utf-8-sig", newline=""), strict=True)
                missing = {"image", "left", "top", "right", "bottom"} - set(reader.fieldnames or ())
                if missing:
                    raise UserError(f"detector.file={file}: its first line lacks {', '.join(sorted(missing))}")
                for row in reader:
                    box = _parse_box(row, f"detector.file={file}, line {reader.line_num}")
                    self.rows.setdefault(row["image"], []).append(box)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"detector.file={file}: cannot be read as CSV ({error})") from error

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Return the boxes of an image, as a `Detector`."""
        rows = self.rows.get(name, self.rows.get(Path(name).name, []))
        found = np.array(sorted(rows, key=lambda row: -row[4])).reshape(-1, 5)
        return found[:, :4], found[:, 4]


def _parse_box(row: dict[str, str], where: str) -> tuple[float, ...]:
    """Return left, top, right, bottom and score of a row."""
    try:
        left, top, right, bottom = box = [float(row[key]) for key in ("left", "top", "right", "bottom")]
        score = float(row.get("score") or 1)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: expected five fields, four of them numbers") from error
    if not (max(map(abs, box)) < MAX_COORDINATE and min(right - left, bottom - top) > 1 / MAX_COORDINATE):
        raise UserError(f"{where}: not a box; right and bottom must be larger than left and top")
    if not np.isfinite(score):
        raise UserError(f"{where}: score={score}: not a finite number")
    return (*box, score)


class WholeImage:
    """The whole image as one face."""

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Return one box, as a `Detector`."""
        return np.array([[-0.5, -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5]]), np.ones(1)
