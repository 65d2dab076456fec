"""Smoothing of a video's points.

The filter is the one-euro filter of Casiez, Roussel and Vogel 2012 (doi:10.1145/2207676.2208639): a low-pass filter
whose cut-off rises with the speed, so that still points are calm and moving points are not late.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from flr.landmarks.geometry import fit_similarity

MAX_GAP = 0.5  # seconds between two frames of a face, beyond which smoothing starts again


class OneEuro:
    """Smooth one face's points over the frames of a video. Each tracked face has its own smoother.

    The points are decomposed into a similarity (position, size, rotation), which maps the face's first shape to them, and
    the shape in that frame. Both are filtered, with speeds in units of the face (the root mean square distance of its
    points from their mean). The settings therefore mean the same for small and large faces, and head motion does not weaken
    the smoothing of lids and lips. The defaults were chosen by ``benchmarks/jitter.py``.

    Args:
        min_cutoff: Hertz, of still points; a lower cut-off is calmer and later.
        beta: Hertz per unit of speed (face units a second). A higher value follows movements sooner and passes more noise.
        d_cutoff: Hertz, of the speed itself.
    """

    def __init__(
        self,
        min_cutoff: Annotated[float, Gt(0)] = 0.5,
        beta: Annotated[float, Ge(0)] = 10.0,
        d_cutoff: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        self.min_cutoff, self.beta, self.d_cutoff = float(min_cutoff), float(beta), float(d_cutoff)
        self._last: _State | None = None

    def __call__(self, points: np.ndarray, seconds: float) -> np.ndarray:
        """Smooth the points of a frame.

        Args:
            points: (K, 2) float, pixels.
            seconds: Time of the frame; frames may be unevenly spaced. Smoothing starts again at a time that is not after the
                last one or is more than `MAX_GAP` later, and at points that are not finite or all in one place.

        Returns:
            (K, 2) float64, pixels.
        """
        points = np.asarray(points, np.float64)
        if not np.isfinite(points).all() or _size(points) < 1e-6:
            self._last = None
            return points
        last = self._last
        if last is None or not 0 < seconds - last.seconds <= MAX_GAP:
            first = (points - points.mean(0)) / _size(points)
            values, _ = _decompose(points, first, 0.0)
            self._last = _State(first, values, np.zeros_like(values), seconds)
            return points
        values, size = _decompose(points, last.first, last.values[1, 1])
        step, unit = seconds - last.seconds, np.ones((len(values), 1))
        unit[0] = size  # only the position is in pixels
        speed = last.speed + _weight(self.d_cutoff, step) * ((values - last.values) / unit / step - last.speed)
        cutoff = self.min_cutoff + self.beta * np.linalg.norm(speed, axis=1, keepdims=True)
        values = last.values + _weight(cutoff, step) * (values - last.values)
        self._last = _State(last.first, values, speed, seconds)
        return _compose(values)


class _State(NamedTuple):
    """First shape of a face, filtered values (K + 2, 2), their speed in face units a second, and the time."""

    first: np.ndarray
    values: np.ndarray
    speed: np.ndarray
    seconds: float


def _size(points: np.ndarray) -> float:
    """Return the root mean square distance of points (K, 2) from their mean, pixels."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))


def _decompose(points: np.ndarray, first: np.ndarray, rotation: float) -> tuple[np.ndarray, float]:
    """Return values (K + 2, 2) to filter, position, (log size, rotation) and shape, and the size in pixels a unit."""
    place = fit_similarity(first, points)
    size = max(float(np.hypot(place[0, 0], place[1, 0])), 1e-9)
    angle = float(np.arctan2(place[1, 0], place[0, 0]))
    angle = rotation + (angle - rotation + np.pi) % (2 * np.pi) - np.pi  # nearest to the last: 181 degrees follow 180
    cos, sin = np.cos(angle), np.sin(angle)
    shape = (points - place[:, 2]) @ np.array([[cos, -sin], [sin, cos]]) / size
    return np.concatenate([[place[:, 2], [np.log(size), angle]], shape]), size


def _compose(values: np.ndarray) -> np.ndarray:
    """Return the points (K, 2) of the values of `_decompose`."""
    place, (size, angle), shape = values[0], values[1], values[2:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.exp(size) * shape @ np.array([[cos, sin], [-sin, cos]]) + place


def _weight(cutoff: Any, step: float) -> Any:
    """Return the weight of a new value in a low-pass filter with a cut-off in hertz, after `step` seconds."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))
