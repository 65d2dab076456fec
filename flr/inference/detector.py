"""Where the faces of a picture are: OpenCV's Haar cascade or YuNet, a file's boxes, or the whole picture.

Each detector gives the boxes that a net wants, which depends on what the net was trained with: for
``policy.source=truth`` the tight box of its points, which lies elsewhere than a detector's own box.
"""

import csv
import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import cv2
import numpy as np
from annotated_types import Ge, Gt, Le

from flr.data.boxes import Haar, from_detection
from flr.errors import UserError
from flr.files import opened
from flr.landmarks.geometry import fit_similarity, tight_box, transform

if TYPE_CHECKING:
    from flr.inference.landmarker import Landmarker

Found = tuple[np.ndarray, np.ndarray]  # (M, 4) boxes as the net wants them, (M,) scores, the best face first


class Detector(Protocol):
    """Finds the faces of a picture (H, W) or (H, W, 3) RGB uint8, which a file or folder knows by `name`."""

    def __call__(self, image: np.ndarray, name: str, net: "Landmarker") -> Found: ...


class HaarFaces:
    """OpenCV's frontal-face cascade (see `flr.data.boxes.Haar`).

    Args:
        step: the picture shrinks by this between two scales.
        neighbours: detections that must agree; more finds fewer faces and fewer that are none.
        smallest: the smallest face, as a share of the picture's shorter side; less finds more and takes longer.
    """

    def __init__(
        self, step: Annotated[float, Ge(1.01), Le(2)] = 1.1, neighbours: Annotated[int, Ge(0), Le(1000)] = 5,
        smallest: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:  # fmt: skip
        self.haar, self.smallest = Haar(step, neighbours), smallest

    def __call__(self, image: np.ndarray, name: str, net: "Landmarker") -> Found:
        """As `Detector`, the largest face first; each score is 1, since the cascade gives none.

        Raises:
            UserError: it is not known where the points of this net lie in a detected box.
        """
        if net.offset is None:
            raise UserError(
                f"no detector is known to find the boxes of policy {net.crop.policy} for {net.scheme.name}; give boxes "
                "(detector=boxes), or take the picture as one face (detector=whole)"
            )
        boxes = self.haar.detect(image, self.smallest)
        order = np.argsort(boxes[:, 0] - boxes[:, 2], kind="stable")
        return from_detection(boxes[order], net.offset), np.ones(len(boxes))


class YuNet:
    """OpenCV's CNN (Wu et al. 2023, doi:10.1007/s11633-023-1423-y), from a model file of yours.

    Its five points, not its box, tell where the tight box is: the mean training face is laid on them.

    Args:
        model: ``face_detection_yunet_2023mar.onnx`` of OpenCV's model zoo, or a later one.
        score: what a face must reach.
        overlap: of two faces that overlap by more, the better one stays.
    """

    def __init__(
        self, model: str, score: Annotated[float, Gt(0), Le(1)] = 0.7, overlap: Annotated[float, Gt(0), Le(1)] = 0.3
    ) -> None:
        self.path, self._one = Path(model).absolute(), threading.Lock()
        if not self.path.is_file():
            raise UserError(
                f"detector.model={model}: no such file; OpenCV's model zoo has face_detection_yunet as .onnx"
            )
        try:
            self.net = cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), score, overlap)
        except cv2.error as error:
            raise UserError(f"detector.model={model}: not a net of YuNet's form that OpenCV can read") from error

    def __call__(self, image: np.ndarray, name: str, net: "Landmarker") -> Found:
        """As `Detector`.

        Raises:
            UserError: the net's scheme has no eyes, nose and mouth corners to lay on YuNet's.
        """
        picture = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        try:
            with self._one:
                self.net.setInputSize((picture.shape[1], picture.shape[0]))
                rows = self.net.detect(picture)[1]
        except cv2.error as error:
            raise UserError(f"{self.path}: not a net of YuNet's form ({error.err})") from error
        if rows is None:
            return np.zeros((0, 4)), np.zeros(0)
        five = rows[:, 4:14].reshape(-1, 5, 2).astype(np.float64)  # celeba5's order
        face = net.mean_face
        known = np.asarray(net.scheme.reduce(face, "celeba5"))
        laid = transform(fit_similarity(np.broadcast_to(known, five.shape), five), face)
        return tight_box(laid, np.ones(laid.shape[:2], bool)), rows[:, 14].astype(np.float64)


class GivenBoxes:
    """The boxes of a file, as the net wants them: for ``policy.source=truth`` the tight boxes of the points.

    Args:
        file: CSV with the columns image, left, top, right, bottom and perhaps score; a row a face. An image is named by its
            path below the source's folder, or by its file name; a frame of a video by NAME#NUMBER, from 0.
    """

    def __init__(self, file: str) -> None:
        from flr.inference.landmarker import FAR

        path, self.rows = Path(file), dict[str, list[tuple[float, ...]]]()
        try:
            with opened(path) as binary:
                reader = csv.DictReader(io.TextIOWrapper(binary, "utf-8-sig", newline=""), strict=True)
                lacking = {"image", "left", "top", "right", "bottom"} - set(reader.fieldnames or ())
                if lacking:
                    raise UserError(f"detector.file={file}: its first line lacks {', '.join(sorted(lacking))}")
                for row in reader:
                    where = f"detector.file={file}, line {reader.line_num}"
                    try:
                        box = [float(row[key]) for key in ("left", "top", "right", "bottom")]
                        score = float(row.get("score") or 1)
                    except (TypeError, ValueError) as error:
                        raise UserError(f"{where}: five fields and four numbers are wanted") from error
                    sides = box[2] - box[0], box[3] - box[1]
                    if not (max(map(abs, box)) < FAR and min(sides) > 1 / FAR and np.isfinite(score)):
                        raise UserError(f"{where}: no box: right and bottom must be larger than left and top")
                    self.rows.setdefault(row["image"], []).append((*box, score))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"detector.file={file}: cannot be read as CSV ({error})") from error

    def __call__(self, image: np.ndarray, name: str, net: "Landmarker") -> Found:
        """As `Detector`."""
        rows = self.rows.get(name, self.rows.get(Path(name).name, []))
        found = np.array(sorted(rows, key=lambda row: -row[4])).reshape(-1, 5)
        return found[:, :4], found[:, 4]


class WholePicture:
    """The picture as one face."""

    def __call__(self, image: np.ndarray, name: str, net: "Landmarker") -> Found:
        """As `Detector`."""
        return np.array([[-0.5, -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5]]), np.ones(1)
