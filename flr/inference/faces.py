"""Faces in photos, and over the frames of a video, where each keeps its number and is not sought in every frame."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from flr.data.boxes import overlap
from flr.inference.detector import Detector
from flr.inference.landmarker import Landmarker
from flr.inference.smoothing import OneEuro
from flr.landmarks.geometry import fit_similarity, tight_box, transform

SAME = 0.3  # intersection over union of a detection and a known face, from which on they are one
TWICE = 0.6  # of two known faces that are one
ODD = 0.2  # of a face's size: points that lie so far from any turned and scaled mean face are of none


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture.

    Attributes:
        points: (K, 2) float64, pixels of the picture, an integer being a pixel's centre.
        box: (4,) float64, what the net was shown less its margin.
        score: the detector's.
        spread: (K,) float64 how uncertain the net is of each point, pixels; NaN where it does not tell.
        doubtful: whether it is of the whole face, which is one in a hundred, half hidden, or none at all.
        identity: a number that the face keeps over a video; None in a photo.
    """

    points: np.ndarray
    box: np.ndarray
    score: float
    spread: np.ndarray
    doubtful: bool = False
    identity: int | None = None


def faces_of(net: Landmarker, detector: Detector, image: np.ndarray, name: str = "", looks: int = 1) -> list[Face]:
    """All faces of a picture, the best first.

    Args:
        net: what finds the points.
        detector: what finds the faces.
        image: (H, W) or (H, W, 3) RGB uint8.
        name: of the picture, for a detector that has its boxes from a file.
        looks: see `Landmarker.find`; one for a net whose boxes its points do not tell.
    """
    boxes, scores = detector(image, name, net)
    points, spread = net.find([image] * len(boxes), boxes, looks if net.by_points else 1)
    rows = zip(points, boxes, scores, spread, net.doubtful(points, spread), strict=True)
    return [Face(at, box, float(score), wide, bool(odd)) for at, box, score, wide, odd in rows]


@dataclass
class _Track:
    face: Face
    seen: float  # when a detector last found it, seconds
    smooth: Callable[[np.ndarray, float], np.ndarray] = field(default=lambda points, seconds: points)


class FaceTracker:
    """Faces over frames: a face's next box is the tight box of its last points, and now and then the detector looks.

    Args:
        net: what finds the points.
        detector: what finds the faces.
        every: frames between two looks of the detector; it looks at each one where there is no face, and sooner where
            few frames come.
        patience: seconds that a face stays without the detector finding it; and that a lost one's number is kept.
        smooth: makes the smoother of a new face; None for points as the net gives them.
    """

    def __init__(
        self, net: Landmarker, detector: Detector, every: int = 10, patience: float = 1.0,
        smooth: Callable[[], OneEuro] | None = None,
    ) -> None:  # fmt: skip
        self.net, self.detector, self.patience, self.smooth = net, detector, patience, smooth
        # Where the points do not tell the next box, the detector must.
        self.every = every if net.by_points else 1
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._next = self._frame = 0
        self._looked = 0.0

    def __call__(self, image: np.ndarray, name: str, seconds: float) -> list[Face]:
        """The faces of the next frame.

        Args:
            image: (H, W, 3) RGB uint8.
            name: of the frame, for a detector that has its boxes from a file.
            seconds: since the first frame.
        """
        if self._frame % self.every == 0 or not self._tracks or seconds - self._looked > self.patience / 2:
            self._looked = seconds
            self._look(image, name, seconds)
        self._frame += 1
        boxes = np.array([track.face.box for track in self._tracks]).reshape(-1, 4)
        points, spread = self.net.find([image] * len(boxes), boxes)
        doubtful = self.net.doubtful(points, spread)
        height, width = image.shape[:2]
        kept: list[_Track] = []
        for track, at, wide, odd in zip(self._tracks, points, spread, doubtful, strict=True):
            tight = tight_box(at, np.ones(len(at), bool))
            outside = not (tight[0] < width and tight[1] < height and tight[2] > 0 and tight[3] > 0)
            if outside or self._odd(at) or seconds - track.seen > self.patience or self._again(tight, kept):
                self._lost.append(track)
                continue
            shown = track.face.box
            track.face = replace(
                track.face,
                points=track.smooth(at, seconds),
                box=tight if self.every > 1 else shown,
                spread=wide,
                doubtful=bool(odd),
            )
            kept.append(track)
        self._tracks = kept
        self._lost = [track for track in self._lost if seconds - track.seen <= 2 * self.patience]
        return [track.face for track in kept]

    def _look(self, image: np.ndarray, name: str, seconds: float) -> None:
        boxes, scores = self.detector(image, name, self.net)
        free = list(self._tracks)
        for box, score in zip(boxes, scores, strict=True):
            track = _nearest(box, free)
            if track is not None:
                free.remove(track)
                track.seen = seconds
                track.face = replace(track.face, score=float(score))
                if self.every == 1:
                    track.face = replace(track.face, box=box)
                continue
            if _nearest(box, self._tracks) is not None:
                continue  # a second detection of one face
            back = _nearest(box, self._lost)
            if back is not None:
                self._lost.remove(back)
                identity = back.face.identity
            else:
                identity, self._next = self._next, self._next + 1
            face = Face(np.zeros((0, 2)), box, float(score), np.zeros(0), identity=identity)
            track = _Track(face, seconds)
            if self.smooth:
                track.smooth = self.smooth()
            self._tracks.append(track)

    def _odd(self, points: np.ndarray) -> bool:
        mean = self.net.mean_face
        laid = transform(fit_similarity(mean, points), mean)
        size = np.sqrt(np.prod(np.ptp(points, axis=0)))
        return not np.linalg.norm(points - laid, axis=1).mean() <= ODD * size

    def _again(self, box: np.ndarray, kept: list[_Track]) -> bool:
        return any(overlap(track.face.box[None], box)[0] > TWICE for track in kept)


def _nearest(box: np.ndarray, tracks: list[_Track]) -> _Track | None:
    """The known face that a detection is of."""
    if not tracks:
        return None
    shares = overlap(np.array([track.face.box for track in tracks]), box)
    return tracks[int(shares.argmax())] if shares.max() >= SAME else None
