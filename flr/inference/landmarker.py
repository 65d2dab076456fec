"""From pictures and boxes to points, whatever runs the net: crop, net, and back to the picture. Needs no torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flr.data.boxes import Offset
from flr.data.crops import CropSettings, crop
from flr.errors import UserError
from flr.inference.detector import HaarFaces, WholePicture
from flr.landmarks.geometry import invert, tight_box, transform
from flr.landmarks.scheme import Scheme
from flr.metrics.functional import face_spread

BATCH = 64  # faces that run at once
FAR = 1e6  # pixels: no box reaches so far, and none is smaller than the inverse
LONGEST = 2**15 - 2  # pixels a side: OpenCV warps no larger picture


class Landmarker(ABC):
    """A net with what stands before and behind it.

    Args:
        scheme: of the K points.
        crop: what the net sees.
        offset: where Haar's box puts the tight one (see `flr.data.boxes.Haar.offset`); None where that is not known.
        mean_face: (K, 2) crop pixels: the mean training face.
        doubt: percent of the scheme's normaliser: a face of more uncertain points is to be distrusted, see
            `flr.metrics.functional.face_spread`; None where that is not known.
    """

    def __init__(
        self, scheme: Scheme, crop: CropSettings, offset: Offset, mean_face: np.ndarray, doubt: float | None
    ) -> None:
        self.scheme, self.crop, self.offset, self.mean_face, self.doubt = scheme, crop, offset, mean_face, doubt

    @abstractmethod
    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the net finds in crops (B, size, size, C) uint8.

        Returns:
            (B, K, 2) points, (B, K) how uncertain each is, see `Objective.spread`; both crop pixels.
        """

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray, looks: int = 1) -> np.ndarray:
        """The points (N, K, 2) of N faces, see `find`."""
        return self.find(images, boxes, looks)[0]

    def find(
        self, images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray, looks: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The points of N faces, and how uncertain each is.

        Args:
            images: N pictures, (H, W) grey or (H, W, 3) RGB, uint8, each of any size; one of two faces stands twice.
            boxes: (N, 4) left, top, right, bottom in pixels of those pictures, an integer being a pixel's centre. What
                they hold is what the run's box policy cut: for ``source=truth`` the tight box of the points.
            looks: how often the net is shown a face; from the second time on cut round the points that it found before, which
                mends what a detector's box has too much or too little.

        Returns:
            (N, K, 2) points; (N, K) how uncertain each is, NaN where the net does not tell. Both float64, pixels of the pictures.

        Raises:
            UserError: a picture or box that is none, or not one box a picture; or `looks` of a net whose boxes no points tell.
        """
        if looks > 1 and not self.by_points:
            raise UserError(
                f"looks={looks}: the net was trained on boxes of source={self.crop.policy.source}, which its points do not tell; "
                "set looks=1"
            )
        boxes = np.asarray(boxes, np.float64)
        if boxes.shape != (len(images), 4):
            raise UserError(f"{len(images)} picture(s) and boxes of shape {boxes.shape}: give one box (N, 4) a picture")
        for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
            refuse_odd(image, i)
            if not (abs(box).max() < FAR and (box[2:] - box[:2] > 1 / FAR).all()):
                raise UserError(
                    f"box {i} is {box.tolist()}; give left, top, right, bottom in pixels, with right and bottom larger"
                )
        size, channels = self.crop.size, self.crop.channels
        affine = self.crop.policy.crop(boxes, size)
        points, spread = np.zeros((len(boxes), len(self.scheme), 2)), np.zeros((len(boxes), len(self.scheme)))
        for at in range(0, len(boxes), BATCH):
            some = range(at, min(at + BATCH, len(boxes)))
            points[some], spread[some] = self.run(np.stack([crop(images[i], affine[i], size, channels) for i in some]))
        points = transform(invert(affine), points)
        if looks > 1 and len(boxes):
            return self.find(images, self.boxes(points), looks - 1)
        return points, spread / np.sqrt(np.linalg.det(affine[..., :2]))[:, None]

    def doubtful(self, points: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """(N,) bool whether faces of points (N, K, 2) and their `spread` (N, K) are to be distrusted."""
        if self.doubt is None:
            return np.zeros(len(points), bool)
        distance = self.scheme.distance(points, np.ones(points.shape[:-1], bool))
        return ~(face_spread(spread, distance) <= self.doubt)

    @property
    def by_points(self) -> bool:
        """Whether a face's box is known from its points."""
        return self.crop.policy.source in ("truth", "haar")

    def boxes(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) the tight boxes of points (N, K, 2), none without extent or out of all bounds, as a poor net's may be."""
        boxes = tight_box(points, np.ones(points.shape[:-1], bool)).clip(1 - FAR, FAR - 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        return boxes

    def detect(self, image: np.ndarray) -> np.ndarray:
        """(M, 4) boxes of a picture's faces, the largest first, as this net wants them; none where none is found.

        OpenCV's Haar cascade finds them; a net of ``policy.source=picture`` takes the whole picture as one face.

        Raises:
            UserError: it is not known where the points lie in a detected box.
        """
        policy = self.crop.policy
        refuse_odd(image, 0)
        finder = WholePicture() if policy.source == "picture" else HaarFaces(policy.haar.step, policy.haar.neighbours)
        return finder(image, "", self)[0]


def refuse_odd(image: np.ndarray, i: int) -> None:
    """Raises `UserError` where picture `i` is none."""
    if not isinstance(image, np.ndarray):
        raise UserError(f"picture {i} is a {type(image).__name__}; give an array (H, W) or (H, W, 3) RGB, uint8")
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"picture {i} is {image.dtype} of shape {image.shape}; give (H, W) or (H, W, 3) RGB, uint8")
    if max(image.shape) > LONGEST:
        raise UserError(
            f"picture {i} is {image.shape[1]} x {image.shape[0]}; give one of at most {LONGEST} pixels a side"
        )


def load(path: Path, tta: bool | None) -> Landmarker:
    """The net of a checkpoint, or of a file of `flr.export`.

    Raises:
        UserError: it is neither, or an exported net is to be averaged otherwise than it was exported.
    """
    if path.suffix != ".onnx":
        from flr.inference.predictor import Predictor

        return Predictor.load(path, tta)
    from flr.inference.onnx import OnnxPredictor

    found = OnnxPredictor.load(path)
    if tta not in (None, found.about.tta):
        raise UserError(f"tta={str(tta).lower()}: {path} was exported otherwise; export it anew, or leave tta out")
    return found
