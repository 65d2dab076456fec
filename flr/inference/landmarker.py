"""From images and boxes to points with any back end: crop, run the model, map the points back. Needs no torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flr.data.boxes import TIGHT_SOURCES, Offset
from flr.data.crops import CropSettings, crop
from flr.errors import UserError
from flr.inference.detectors import MAX_COORDINATE, BuiltinDetector, Detector, HaarFaces, WholeImage
from flr.landmarks.geometry import compose, invert, similarity, tight_box, transform
from flr.landmarks.scheme import Scheme
from flr.metrics.conformal import radii
from flr.metrics.functional import face_uncertainty

BATCH_SIZE = 64  # faces
MAX_SIDE = 2**15 - 2  # pixels: OpenCV warps no larger image
# Both chosen on 300-W's training photos with the included model (experiments/box/README.md).
SECOND_CROP = 0.8  # size of the second crop that a refinement starts from, relative to the first
CERTAINTY_POWER = 8  # of two results, each weighs as its uncertainty to the power of minus this


class Located(NamedTuple):
    """What a model finds on N faces; see `Landmarker.find`."""

    points: np.ndarray
    spread: np.ndarray
    visible: np.ndarray
    radius90: np.ndarray


class Landmarker(ABC):
    """A model with its preprocessing and postprocessing.

    Args:
        scheme: Scheme of the K points.
        crop: Size, channels and box policy of the model's input.
        offset: Position of the tight box in Haar's box (see `flr.data.boxes.Haar.offset`); None where it is not known.
        mean_face: (K, 2) crop pixels, the mean training face.
        uncertainty_threshold: Percent of the scheme's normaliser. A face whose points are more uncertain should not be
            relied on (see `flr.metrics.functional.face_uncertainty`). None where the model gives no uncertainty.
        radius_factors: (K,) see `flr.metrics.conformal.calibrate`; None for a model without calibration.
    """

    def __init__(
        self, scheme: Scheme, crop: CropSettings, offset: Offset, mean_face: np.ndarray,
        uncertainty_threshold: float | None, radius_factors: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.radius_factors = radius_factors
        self.scheme, self.crop, self.offset, self.mean_face = scheme, crop, offset, mean_face
        self.uncertainty_threshold = uncertainty_threshold

    @abstractmethod
    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run the model on crops (B, size, size, C) uint8.

        Returns:
            (B, K, 2) points and (B, K) the uncertainty of each (see `Objective.spread`), both in crop pixels; (B, K) the
            probability that each is visible, NaN where the model gives none.
        """

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray, *, refine: int = 0) -> np.ndarray:
        """Return the points (N, K, 2) of N faces; see `find`."""
        return self.find(images, boxes, refine=refine)[0]

    def find(self, images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray, *, refine: int = 0) -> Located:
        """Find the points of N faces.

        Args:
            images: N images, (H, W) grey or (H, W, 3) RGB, uint8, of any size; an image with two faces is passed twice.
            boxes: (N, 4) left, top, right, bottom in pixels of those images; an integer is a pixel's centre. The boxes
                must follow the run's box policy: for ``source=truth`` the tight box of the points.
            refine: Number of further passes, see `find_in_crops`. One pass corrects the error of a detector's box.

        Returns:
            (N, K, 2) points in image pixels; (N, K) the uncertainty of each, the probability that each is visible, and the
            radius that holds the true point in 90 % of cases (see `flr.metrics.conformal`), NaN where the model gives none.

        Raises:
            UserError: An invalid image or box, a number of boxes other than that of the images, or `refine` with a model
                whose boxes do not follow from its points.
        """
        boxes = _validate_boxes(boxes, len(images))
        for i, image in enumerate(images):
            validate_image(image, i)
        return self.find_in_crops(images, self.crop.policy.crop(boxes, self.crop.size), refine)

    def find_in_crops(self, images: Sequence[np.ndarray] | np.ndarray, to_crop: np.ndarray, refine: int = 0) -> Located:
        """Find the points of N faces whose crops are known.

        Args:
            images: See `find`.
            to_crop: (N, 2, 3) maps from image to crop pixels.
            refine: Number of further passes, each on a crop around the points of the pass before. A model that gives
                uncertainties makes all passes from a second crop too, `SECOND_CROP` times as large, in case a detector's
                box holds more than the face. The result is the mean of both, weighted by their certainty for each face.

        Returns:
            As `find`.
        """
        if not refine:
            return self._pass(images, to_crop)
        if not self.refines:
            raise UserError(
                f"refine={refine}: the model was trained on boxes of source={self.crop.policy.source}, which do not "
                "follow from its points; set refine=0"
            )
        if len(self.scheme) == 1 or self.uncertainty_threshold is None:
            return self._refined(images, to_crop, refine)
        starts = np.concatenate([to_crop, compose(_zoom(self.crop.size, 1 / SECOND_CROP), to_crop)])
        both = self._refined([*images, *images], starts, refine)
        first, second = (Located(*half) for half in zip(*(np.split(values, 2) for values in both), strict=True))
        share = self._share_of_second(first, second)
        return Located(*(
            one + (other - one) * share.reshape(-1, *[1] * (one.ndim - 1)) for one, other in zip(first, second, strict=True)
        ))  # fmt: skip

    def _refined(self, images: Sequence[np.ndarray] | np.ndarray, to_crop: np.ndarray, refine: int) -> Located:
        found = self._pass(images, to_crop)
        for _ in range(refine):
            found = self._pass(images, self.crop.policy.crop(self.boxes(found.points), self.crop.size))
        return found

    def _pass(self, images: Sequence[np.ndarray] | np.ndarray, to_crop: np.ndarray) -> Located:
        """Find the points of N faces in one pass over their crops."""
        size, channels = self.crop.size, self.crop.channels
        points = np.zeros((len(to_crop), len(self.scheme), 2))
        spread, visible = np.zeros(points.shape[:2]), np.zeros(points.shape[:2])
        for start in range(0, len(to_crop), BATCH_SIZE):
            batch = range(start, min(start + BATCH_SIZE, len(to_crop)))
            crops = np.stack([crop(images[i], to_crop[i], size, channels) for i in batch])
            points[batch], spread[batch], visible[batch] = self.run(crops)
        scale = np.sqrt(np.linalg.det(to_crop[..., :2]))[:, None]
        radius = radii(self.radius_factors, spread, size) / scale
        return Located(transform(invert(to_crop), points), spread / scale, visible, radius)

    def _share_of_second(self, first: Located, second: Located) -> np.ndarray:
        """Return the weight (N,) of the second of two results, from 0 to 1: the less certain, the less."""
        one, other = (self._uncertainty(found.points, found.spread) for found in (first, second))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            share = 1 / (1 + (other / one) ** CERTAINTY_POWER)
        return np.where(np.isfinite(share), share, 0.0)

    def _uncertainty(self, points: np.ndarray, spread: np.ndarray) -> np.ndarray:
        return face_uncertainty(spread, self.scheme.distance(points, np.ones(points.shape[:-1], bool)))

    def is_uncertain(self, points: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Return (N,) bool whether faces of points (N, K, 2) with uncertainties (N, K) exceed the threshold."""
        if self.uncertainty_threshold is None or len(self.scheme) == 1:  # one point has no size to compare with
            return np.zeros(len(points), bool)
        return ~(self._uncertainty(points, spread) <= self.uncertainty_threshold)

    @property
    def refines(self) -> bool:
        """Whether a face's box follows from its points."""
        return self.crop.policy.source in TIGHT_SOURCES

    def boxes(self, points: np.ndarray) -> np.ndarray:
        """Return the tight boxes (N, 4) of points (N, K, 2), with positive sides even where the points are poor."""
        boxes = tight_box(points, np.ones(points.shape[:-1], bool)).clip(1 - MAX_COORDINATE, MAX_COORDINATE - 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        return boxes

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return the boxes (M, 4) of an image's faces as this model expects them, the largest first.

        The built-in detector finds them, or OpenCV's Haar cascade for a model of ``policy.source=haar``. A model of
        ``policy.source=picture`` takes the whole image as one face.

        Raises:
            UserError: The position of the points in a detected box is not known.
        """
        validate_image(image, 0)
        policy = self.crop.policy
        detector: Detector = BuiltinDetector()
        if policy.source == "picture":
            detector = WholeImage()
        elif policy.source == "haar":
            detector = HaarFaces(policy.haar.step, policy.haar.neighbours, work=policy.haar.work)
        return detector(image, "", self)[0]


def _zoom(size: int, factor: float) -> np.ndarray:
    """Return the map (2, 3) that enlarges a crop about its centre."""
    centre = np.full(2, (size - 1) / 2)
    return similarity(np.array(0.0), np.array(factor), centre, centre)


def _validate_boxes(boxes: np.ndarray, images: int) -> np.ndarray:
    try:
        boxes = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"boxes hold {type(boxes).__name__} that are not numbers; give (N, 4) numbers in pixels"
        ) from error
    if not images and not boxes.size:
        return np.zeros((0, 4))
    if boxes.shape != (images, 4):
        raise UserError(f"{images} image(s) and boxes of shape {boxes.shape}: give one box (N, 4) per image")
    for i, box in enumerate(boxes):
        if not (abs(box).max() < MAX_COORDINATE and (box[2:] - box[:2] > 1 / MAX_COORDINATE).all()):
            raise UserError(
                f"box {i} is {box.tolist()}; give left, top, right, bottom in pixels, with right and bottom larger"
            )
    return boxes


def validate_image(image: np.ndarray, index: int) -> None:
    """Check that an array is an image that the model can take.

    Raises:
        UserError: It is not (H, W) or (H, W, 3) uint8, or is too large.
    """
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {index} is a {type(image).__name__}; give an array (H, W) or (H, W, 3) RGB, uint8")
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"image {index} is {image.dtype} of shape {image.shape}; give (H, W) or (H, W, 3) RGB, uint8")
    if max(image.shape) > MAX_SIDE:
        raise UserError(
            f"image {index} is {image.shape[1]} x {image.shape[0]}; give one of at most {MAX_SIDE} pixels a side"
        )
