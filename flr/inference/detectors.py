"""Detectors of faces: the built-in one, OpenCV's Haar cascade or YuNet, BlazeFace, the boxes of a file, or the whole image as one face.

A detector returns the boxes that a model expects, which depend on the boxes that the model was trained with: for
``policy.source=truth`` the tight box of its points, which is not the detector's own box.
"""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge, Gt, Le

from flr.data.boxes import LARGEST_SIDE, TIGHT_SOURCES, Haar, Offset, from_detection
from flr.data.crops import CropSettings
from flr.data.finders.blazeface import BlazeFaceFinder, open_blazeface
from flr.data.finders.builtin import Builtin
from flr.data.finders.yunet import YuNetFinder, open_yunet
from flr.errors import UserError
from flr.files import opened
from flr.landmarks.geometry import fit_similarity, tight_box, transform
from flr.landmarks.scheme import Scheme

FIRST_WORK, SMALL = 320, 30  # of the built-in detector, pixels: the first search, and faces that make it search again
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


class BuiltinDetector:
    """The detector that comes with flr, trained on rendered scenes alone (see `flr.data.finders.builtin.Builtin`).

    Args:
        model: File of another detector that ``flr train_detector`` wrote; null for the built-in one.
        work: Side in pixels to which the longer side of an image is scaled. Most faces from 22 pixels there are found. null
            searches at 320 pixels, and at twice as many while the faces are small or none is found (see `search`).
        score: Lowest score of a face; null for that of the file. A higher one gives fewer faces and fewer false ones.
        threads: Threads for one image; 0 for one per core.
    """

    def __init__(
        self, model: str | None = None, work: Annotated[int, Ge(32), Le(8192)] | None = None,
        score: Annotated[float, Ge(0), Le(2)] | None = None, threads: Annotated[int, Ge(0)] = 1,
    ) -> None:  # fmt: skip
        self.work, self.threads = work, threads
        self.finder = Builtin(model, work or FIRST_WORK, score)
        self.offsets = self.finder.network(threads).metadata.offsets

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`.

        Raises:
            UserError: The position of the model's points in a detected box is not known.
        """
        scheme = model.scheme
        known = next((to for to in (scheme.name, *scheme.reductions) if to in self.offsets), None)
        if known is None or model.crop.policy.source not in TIGHT_SOURCES:
            raise _unknown_box(model)
        squares, scores = self.search(image)
        boxes = from_detection(squares, self.offsets[known])
        if known != scheme.name:  # from the tight box of the reduced points to that of all points, as on the mean face
            reduced = np.asarray(scheme.reduce(model.mean_face, known))
            low, side = reduced.min(0), np.ptp(reduced, axis=0)
            ends = (model.mean_face.min(0) - low) / side, (model.mean_face.max(0) - low) / side
            boxes = boxes[:, [0, 1, 0, 1]] + np.tile(boxes[:, 2:] - boxes[:, :2], 2) * np.concatenate(ends)
        return boxes, scores

    def search(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find faces as `Builtin.find`, in up to twice the size while half of the faces are small or none is found.

        Faces are small below 60 pixels, and below 30 where 1280 pixels are searched. An image is enlarged by 2 at most. While
        none is found, 640 pixels or a third of the image's longer side are searched, whichever is more.
        """
        side, work = max(image.shape[:2]), self.finder.work
        while True:
            squares, scores = replace(self.finder, work=work).find(image, self.threads)
            small = 2 * SMALL if work < 4 * FIRST_WORK else SMALL
            enough = len(squares) and np.median(squares[:, 2] - squares[:, 0]) * work >= small * side
            largest = min(2 * work, 2 * side if len(squares) else max(2 * FIRST_WORK, side // 3))
            if self.work is not None or enough or largest < 1.2 * work:
                return squares, scores
            work = largest


def _unknown_box(model: BoxTarget) -> UserError:
    return UserError(
        f"no detector is known to find the boxes of policy {model.crop.policy} for {model.scheme.name}; give boxes "
        "(detector=boxes), or take the image as one face (detector=whole)"
    )


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
        self.finder, self.smallest = Haar(step, neighbours, work=work), smallest

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`, the largest first. The cascade gives no scores, so each score is 1.

        Raises:
            UserError: The position of the model's points in a detected box is not known.
        """
        if model.offset is None:
            raise _unknown_box(model)
        boxes = self.finder.detect(image, self.smallest)
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
        self.finder = YuNetFinder(model, score, overlap)
        open_yunet(str(Path(model).absolute()), model, score, overlap)  # reports a wrong file before any image is read

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`.

        Raises:
            UserError: The model's scheme has no eyes, nose and mouth corners to fit on those of YuNet.
        """
        rows = self.finder.rows(image)
        five = rows[:, 4:14].reshape(-1, 5, 2)  # in the order of celeba5
        return _fitted(five, model.scheme.reduce(model.mean_face, "celeba5"), model), rows[:, 14]


class BlazeFace:
    """MediaPipe's detector (Bazarevsky et al. 2019, arXiv:1907.05047), from a model file that you provide.

    The tight box is derived from the detector's eyes, nose and mouth, on which the mean training face is fitted.

    Args:
        model: ``face_detection_short_range.tflite``.
        score: Minimum score of a face.
        overlap: Of two faces that overlap by more, the better one is kept.
    """

    def __init__(
        self, model: str, score: Annotated[float, Gt(0), Le(1)] = 0.5, overlap: Annotated[float, Gt(0), Le(1)] = 0.3
    ) -> None:
        self.finder = BlazeFaceFinder(model, score, overlap)
        open_blazeface(str(Path(model).absolute()), model)  # reports a wrong file before any image is read

    def __call__(self, image: np.ndarray, name: str, model: BoxTarget) -> Detections:
        """Find faces as a `Detector`.

        Raises:
            UserError: The model's scheme has no eyes, nose and mouth corners to fit on those of BlazeFace.
        """
        rows = self.finder.rows(image)
        mean = np.asarray(model.scheme.reduce(model.mean_face, "celeba5"))
        mean = np.concatenate(
            [mean[:3], mean[3:].mean(0, keepdims=True)]
        )  # the middle of the mouth, as BlazeFace has it
        return _fitted(rows[:, 4:12].reshape(-1, 4, 2), mean, model), rows[:, 16]


def _fitted(found: np.ndarray, mean: np.ndarray, model: BoxTarget) -> np.ndarray:
    """Return the tight boxes (M, 4) of the mean face, moved so that its points (P, 2) lie on those found (M, P, 2)."""
    faces = transform(fit_similarity(np.broadcast_to(mean, found.shape), found), model.mean_face)
    return tight_box(faces, np.ones(faces.shape[:2], bool))


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
        return np.array([[-0.5, -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5]]), np.ones(1)
