"""Points of a video that do not tremble, and the measures of how much they do and how far they lag behind.

The filter is the one-euro filter of Casiez, Roussel and Vogel 2012 (doi:10.1145/2207676.2208639): a low-pass filter
whose cut-off rises with the speed, so that what stands still is calm and what moves is not late.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from flr.landmarks.geometry import fit_similarity

GAP = 0.5  # seconds without a face, after which it is another sight of it
SHIFTS = np.linspace(0, 0.4, 101)  # seconds that `lag` tries


class OneEuro:
    """Smooths one face's points over the frames of a video. Each face that is followed has one of its own.

    The face is taken apart into where it is and what shape it has: the similarity (place, size, turn) that takes its
    first shape to its points, and the points in that frame. Each is filtered, at speeds in units of the face (the root
    mean square distance of its points from their middle). So the settings mean the same for a small face and a large
    one, and head motion does not loosen the grip on the shape: while the face moves, it is followed at once, and lids and
    lips still do not tremble on it. The defaults are chosen by ``benchmarks/jitter.py``.

    Args:
        min_cutoff: hertz, for what stands still; less is calmer and later.
        beta: hertz for each unit a second of speed; more follows a movement sooner and lets more of the noise through.
        d_cutoff: hertz, for the speed itself.
    """

    def __init__(
        self,
        min_cutoff: Annotated[float, Gt(0)] = 0.5,
        beta: Annotated[float, Ge(0)] = 10.0,
        d_cutoff: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        self.min_cutoff, self.beta, self.d_cutoff = float(min_cutoff), float(beta), float(d_cutoff)
        self._last: _State | None = None

    def reset(self) -> None:
        """Forget the face."""
        self._last = None

    def __call__(self, points: np.ndarray, seconds: float) -> np.ndarray:
        """The smoothed points of a frame.

        Args:
            points: (K, 2) float, pixels.
            seconds: the frame's time; frames need not be evenly apart. A time that does not come after the last one, or
                comes more than `GAP` later, starts anew, as do points that are no numbers or all in one place.

        Returns:
            (K, 2) float64, pixels.
        """
        points = np.asarray(points, np.float64)
        if not np.isfinite(points).all() or _size(points) < 1e-6:
            self._last = None
            return points
        last = self._last
        if last is None or not 0 < seconds - last.seconds <= GAP:
            first = (points - points.mean(0)) / _size(points)
            values, _ = _apart(points, first, 0.0)
            self._last = _State(first, values, np.zeros_like(values), seconds)
            return points
        values, size = _apart(points, last.first, last.values[1, 1])
        step, unit = seconds - last.seconds, np.ones((len(values), 1))
        unit[0] = size  # of what is filtered, the place alone is in pixels
        speed = last.speed + _share(self.d_cutoff, step) * ((values - last.values) / unit / step - last.speed)
        cutoff = self.min_cutoff + self.beta * np.linalg.norm(speed, axis=1, keepdims=True)
        values = last.values + _share(cutoff, step) * (values - last.values)
        self._last = _State(last.first, values, speed, seconds)
        return _together(values)


class _State(NamedTuple):
    """A face so far: its first shape, what is filtered (K + 2, 2), its speed in face units a second, and the time."""

    first: np.ndarray
    values: np.ndarray
    speed: np.ndarray
    seconds: float


def _size(points: np.ndarray) -> float:
    """The root mean square distance of points (K, 2) from their middle, pixels."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))


def _apart(points: np.ndarray, first: np.ndarray, turn: float) -> tuple[np.ndarray, float]:
    """What is filtered, (K + 2, 2): place, (logarithm of the size, turn), shape; and the size, pixels a unit."""
    place = fit_similarity(first, points)
    size = max(float(np.hypot(place[0, 0], place[1, 0])), 1e-9)
    angle = float(np.arctan2(place[1, 0], place[0, 0]))
    angle = turn + (angle - turn + np.pi) % (2 * np.pi) - np.pi  # the one nearest to the last: 181 degrees follow 180
    cos, sin = np.cos(angle), np.sin(angle)
    shape = (points - place[:, 2]) @ np.array([[cos, -sin], [sin, cos]]) / size
    return np.concatenate([[place[:, 2], [np.log(size), angle]], shape]), size


def _together(values: np.ndarray) -> np.ndarray:
    """The points (K, 2) of what `_apart` made."""
    place, (size, angle), shape = values[0], values[1], values[2:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.exp(size) * shape @ np.array([[cos, sin], [-sin, cos]]) + place


def _share(cutoff: Any, step: float) -> Any:
    """How much of a new value a low-pass filter of that cut-off, hertz, takes after `step` seconds."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))


def jitter(points: np.ndarray, distance: float) -> float:
    """The mean motion of points from frame to frame, in percent of a distance: of a still face, all of it is jitter.

    Args:
        points: (T, K, 2) over T frames, pixels.
        distance: pixels, such as that between the outer eye corners.
    """
    return float(100 * np.linalg.norm(np.diff(points, axis=0), axis=-1).mean() / distance)


def lag(points: np.ndarray, truth: np.ndarray, seconds: np.ndarray) -> float:
    """How much later than the truth points move, in milliseconds: the shift in time at which they lie nearest to it.

    What is off by the same everywhere, each point's own bias, is left out.

    Args:
        points: (T, K, 2) over T frames, pixels.
        truth: (T, K, 2).
        seconds: (T,) of the frames, rising.
    """
    points, truth = (values.reshape(len(values), -1) for values in (points, truth))
    kept = seconds >= seconds[0] + SHIFTS[-1]  # frames for which the truth is known so long before
    off = []
    for shift in SHIFTS:
        before = np.stack([np.interp(seconds[kept] - shift, seconds, column) for column in truth.T], 1)
        off.append((points[kept] - before).var(0).sum())
    return float(1000 * SHIFTS[np.argmin(off)])
