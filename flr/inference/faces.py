"""Faces in photos, and over video frames, where each face keeps its number and is not detected in every frame."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from flr.data.boxes import overlap
from flr.inference.detectors import Detector
from flr.inference.landmarker import Landmarker
from flr.inference.smoothing import OneEuro
from flr.landmarks.geometry import fit_similarity, tight_box, transform

MATCH_IOU = 0.3  # of a detection and a known face, from which on they are the same face
DUPLICATE_IOU = 0.6  # of two known faces, above which they are the same face
# Of a face's size: mean distance of its points from the fitted mean face, above which it is no face.
MAX_SHAPE_ERROR = 0.2
VISIBLE = 0.5  # probability from which on a point counts as visible


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image.

    Attributes:
        points: (K, 2) float64, image pixels; an integer is a pixel's centre.
        box: (4,) float64, the model's input without its margin.
        score: Score of the detector.
        spread: (K,) float64, uncertainty of each point in pixels; NaN where the model gives none.
        visible: (K,) float64, probability that each point is visible; NaN where the model gives none.
        radius90: (K,) float64, pixels, radius round each point that holds the true one in 90 % of cases (see
            `flr.metrics.conformal`); NaN where unknown.
        uncertain: Whether the face as a whole is uncertain: of validation faces 1 in 100 is. It may be half hidden, or no
            face.
        identity: Number that the face keeps over a video; None in a photo.
    """

    points: np.ndarray
    box: np.ndarray
    score: float
    spread: np.ndarray
    visible: np.ndarray
    radius90: np.ndarray
    uncertain: bool = False
    identity: int | None = None


def find_faces(
    model: Landmarker, detector: Detector, image: np.ndarray, name: str = "", *, refine: int = 0
) -> list[Face]:
    """Find all faces of an image, the best first.

    Args:
        model: Model that finds the points.
        detector: Detector that finds the faces.
        image: (H, W) or (H, W, 3) RGB uint8.
        name: Name of the image, for a detector that reads its boxes from a file.
        refine: Number of refinement passes (see `Landmarker.find`); a model whose boxes do not follow from its points does
            none.
    """
    boxes, scores = detector(image, name, model)
    found = model.find([image] * len(boxes), boxes, refine=refine if model.refines else 0)
    uncertain = model.is_uncertain(found.points, found.spread)
    rows = zip(found.points, boxes, map(float, scores), *found[1:], map(bool, uncertain), strict=True)
    return [Face(*row) for row in rows]


@dataclass
class _Track:
    """A face over frames, and when a detector last found it, in seconds."""

    face: Face
    seen: float
    smooth: Callable[[np.ndarray, float], np.ndarray] = field(default=lambda points, seconds: points)


class FaceTracker:
    """Track faces over frames: a face's next box is the tight box of its last points, and the detector runs now and then.

    Args:
        model: Model that finds the points.
        detector: Detector that finds the faces.
        every: Number of frames between two runs of the detector. It runs on each frame while there is no face, and more
            often where frames are few.
        patience: Seconds for which a face is kept without being detected, and for which the number of a lost one is kept.
        smooth: Makes the smoother of a new face; None for points as the model finds them.
    """

    def __init__(
        self, model: Landmarker, detector: Detector, every: int = 10, patience: float = 1.0,
        smooth: Callable[[], OneEuro] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.detector, self.patience, self.smooth = model, detector, patience, smooth
        # Where the next box does not follow from the points, the detector must give it.
        self.every = every if model.refines else 1
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._next_identity = self._frame = 0
        self._detected = 0.0

    def __call__(self, image: np.ndarray, name: str, seconds: float) -> list[Face]:
        """Find the faces of the next frame.

        Args:
            image: (H, W, 3) RGB uint8.
            name: Name of the frame, for a detector that reads its boxes from a file.
            seconds: Time since the first frame.
        """
        if self._frame % self.every == 0 or not self._tracks or seconds - self._detected > self.patience / 2:
            self._detected = seconds
            self._detect(image, name, seconds)
        self._frame += 1
        boxes = np.array([track.face.box for track in self._tracks]).reshape(-1, 4)
        points, spread, visible, radius = self.model.find([image] * len(boxes), boxes)
        uncertain = self.model.is_uncertain(points, spread)
        tracks: list[_Track] = []
        for i, track in enumerate(self._tracks):
            tight = tight_box(points[i], np.ones(len(points[i]), bool))
            if (
                seconds - track.seen > self.patience
                or _is_outside(tight, image)
                or not self._has_face_shape(points[i])
                or any(overlap(other.face.box[None], tight)[0] > DUPLICATE_IOU for other in tracks)
            ):
                self._lost.append(track)
                continue
            track.face = replace(
                track.face,
                points=track.smooth(points[i], seconds),
                box=tight if self.every > 1 else track.face.box,
                spread=spread[i],
                visible=visible[i],
                radius90=radius[i],
                uncertain=bool(uncertain[i]),
            )
            tracks.append(track)
        self._tracks = tracks
        self._lost = [track for track in self._lost if seconds - track.seen <= 2 * self.patience]
        return [track.face for track in tracks]

    def _detect(self, image: np.ndarray, name: str, seconds: float) -> None:
        boxes, scores = self.detector(image, name, self.model)
        unmatched = list(self._tracks)
        for box, score in zip(boxes, scores, strict=True):
            track = _match(box, unmatched)
            if track is not None:
                unmatched.remove(track)
                track.seen = seconds
                track.face = replace(track.face, score=float(score))
                if self.every == 1:
                    track.face = replace(track.face, box=box)
            elif _match(box, self._tracks) is None:  # else a second detection of one face
                self._tracks.append(self._new_track(box, float(score), seconds))

    def _new_track(self, box: np.ndarray, score: float, seconds: float) -> _Track:
        lost = _match(box, self._lost)
        if lost is not None:
            self._lost.remove(lost)
            identity = lost.face.identity
        else:
            identity, self._next_identity = self._next_identity, self._next_identity + 1
        none = np.zeros(0)
        track = _Track(Face(np.zeros((0, 2)), box, score, none, none, none, identity=identity), seconds)
        if self.smooth:
            track.smooth = self.smooth()
        return track

    def _has_face_shape(self, points: np.ndarray) -> bool:
        mean = self.model.mean_face
        fitted = transform(fit_similarity(mean, points), mean)
        size = np.sqrt(np.prod(np.ptp(points, axis=0)))
        return bool(np.linalg.norm(points - fitted, axis=1).mean() <= MAX_SHAPE_ERROR * size)


def _is_outside(box: np.ndarray, image: np.ndarray) -> bool:
    height, width = image.shape[:2]
    return not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0)


def _match(box: np.ndarray, tracks: list[_Track]) -> _Track | None:
    """Return the track of a detection; None for a new face."""
    if not tracks:
        return None
    shares = overlap(np.array([track.face.box for track in tracks]), box)
    return tracks[int(shares.argmax())] if shares.max() >= MATCH_IOU else None
