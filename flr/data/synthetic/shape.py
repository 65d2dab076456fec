"""The 3D face: identity, expression, head surface.

Units are millimetres. x points to the viewer's right, y down, z to the viewer; the origin lies between the
eyes. The frontal view is a plane of 2D points; `Shape.depth` lifts any of them onto the surface, so that
landmarks, painted features and skin always agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.landmarks.scheme import IBUG68

# The viewer's right half of a neutral adult face, from common facial proportions: outer canthi 83 apart,
# fissure 26 long, nose 34 wide and 51 from the eye line, mouth 51 wide, chin 114 below the eye line.
_JAW = [(71.3, 2), (70.5, 21), (68.3, 40), (64.5, 58.5), (57.5, 76.5), (46, 92), (32, 104.5), (16.5, 112.5), (0, 114.5)]
_BROW = [(11, -18.5), (22, -24.5), (35, -26.5), (46.5, -23), (55.8, -15)]
_EYE = [(16, 1.5), (24.4, -4.8), (33.4, -5), (41.6, 0), (33.6, 4), (24.5, 4)]
_NOSE_BASE = [(8, 49), (14.7, 46)]
_LIP_UPPER, _LIP_LOWER = [(6.5, 62.3), (16, 65.3), (25.5, 71)], [(15.5, 77.5), (7, 81.5)]
_INNER = [(21, 71), (7, 69.8), (7, 70.8)]

# Depth of the visible outline, jaw end to chin, then over the temple to the crown (x, y, z).
_JAW_DEPTH = np.array([-71, -71, -69, -65, -56, -41, -23, -10, -4], np.float32)
_JAW_DEPTHS = np.concatenate([_JAW_DEPTH, _JAW_DEPTH[-2::-1]])[:, None]
_SKULL = np.array(
    [(75, -18, -82), (73, -42, -82), (66, -66, -80), (52, -88, -76), (29, -104, -72), (0, -110, -70)], np.float32
)
CENTRE = np.array([0, 35], np.float32)  # the pole of the surface's polar grid
PIVOT = np.array([0, 20, -80], np.float32)  # the head turns about this point

_SUBDIVISIONS = 3  # grid columns per outline control point
_POLAR = np.radians(np.r_[0.3, np.linspace(4.5, 90, 20), np.linspace(100, 155, 5)]).astype(np.float32)
RIM = 20  # the row of `_POLAR` at 90 degrees: the outline of the frontal view
_SINE, _COSINE = np.sin(_POLAR)[:, None], np.cos(_POLAR)[:, None]
_BEFORE_EARS = np.exp(-(((_POLAR[:, None] - 1.9) / 0.3) ** 2))


def _middle(eye: np.ndarray) -> np.ndarray:
    return eye.sum(0) / 6


def _neutral() -> np.ndarray:
    points = np.zeros((68, 2), np.float32)

    def put(right: list[int], left: list[int], half: Sequence[tuple[float, float]]) -> None:
        points[right] = half
        points[left] = np.array(half) * (-1, 1)

    put([16, 15, 14, 13, 12, 11, 10, 9, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8], _JAW)
    put([22, 23, 24, 25, 26], [21, 20, 19, 18, 17], _BROW)
    put([42, 43, 44, 45, 46, 47], [39, 38, 37, 36, 41, 40], _EYE)
    put([34, 35], [32, 31], _NOSE_BASE)
    put([52, 53, 54, 55, 56], [50, 49, 48, 59, 58], _LIP_UPPER + _LIP_LOWER)
    put([64, 63, 65], [60, 61, 67], _INNER)
    points[27:31, 1] = (-1, 11.5, 23.5, 35.2)
    points[[33, 51, 57, 62, 66], 1] = (50.5, 63.8, 82.5, 70.2, 71.2)
    return points


# Where annotators of photos put a point, off the feature as it is painted: millimetres outwards from the middle of the face,
# and down. Set by hand, in half millimetres, after a comparison with labels of photos; points of the viewer's left half.
_HABITS = {
    17: (0, -1), 18: (-0.5, -1.5), 19: (-1.5, -1.5), 20: (-1, -1), 21: (-1, -0.5),
    29: (0, 1), 30: (0, 1), 31: (-1, 1.5), 32: (-0.5, 1), 33: (0, 1),
    36: (-2.5, 0), 37: (-2, 0), 38: (-1.5, 0), 39: (0, 0.5), 40: (-0.5, 0), 41: (-1.5, 0),
    48: (-1, 1), 49: (-1, 0), 57: (0, -1), 60: (-1, 0.5), 61: (-0.5, -1), 62: (0, -1),
}  # fmt: skip


@cache
def habits() -> np.ndarray:
    """Offsets (68, 2) of the labels from the painted points, millimetres in the frontal view."""
    offsets = np.zeros((68, 2), np.float32)
    mirror = dict(IBUG68.pairs) | {b: a for a, b in IBUG68.pairs}
    for point, (outwards, down) in _HABITS.items():
        offsets[point] = -outwards, down
        offsets[mirror.get(point, point)] = outwards, down
    return offsets


NEUTRAL = _neutral()
_JAW_IDS, _BROW_IDS = slice(0, 17), slice(17, 27)
_UPPER_LIDS, _LOWER_LIDS = ([37, 38], [43, 44]), ([41, 40], [47, 46])
_UPPER_LIP, _LOWER_LIP, _CORNERS = slice(49, 54), slice(55, 60), [48, 54, 60, 64]
_UPPER_HALF, _LOWER_HALF = (
    np.isin(np.arange(48, 68), ids) for ids in ([*range(49, 54), 61, 62, 63], [*range(55, 60), 65, 66, 67])
)
_ABOVE, _BELOW = [37, 38, 43, 44, 61, 62, 63], [41, 40, 47, 46, 67, 66, 65]


def quadratic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The terms (5, N) at N points that `bells` combines."""
    terms = np.empty((5, x.size), np.float32)
    terms[1], terms[3], terms[4] = x.ravel(), y.ravel(), 1
    np.square(terms[1:4:2], out=terms[0:4:2])
    return terms


def bell_weights(table: np.ndarray) -> np.ndarray:
    """Weights (K, 5) of bell curves for `bells`, from rows of x, y, widths in x and y, height (not used here)."""
    cx, cy, wx, wy, _ = table.T
    weights = np.empty((len(table), 5), np.float32)
    weights[:, 0], weights[:, 2] = a, b = -1 / (wx * wx), -1 / (wy * wy)
    weights[:, 1], weights[:, 3], weights[:, 4] = -2 * a * cx, -2 * b * cy, a * cx * cx + b * cy * cy
    return weights


def bells(terms: np.ndarray, weights: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Sums (N,) or (S, N) of bell curves at the points of `terms`, of heights (K,) or (S, K)."""
    # The exponents are quadratic in x and y: one matrix product gives all of them.
    exponents = weights @ terms
    # Clipped, because numbers too small for the format are slow.
    np.maximum(exponents, -30, out=exponents)
    return heights @ np.exp(exponents, out=exponents)


def clip01(x: np.ndarray) -> np.ndarray:
    """Clips to 0..1; np.clip is twice as slow on small arrays."""
    return np.minimum(np.maximum(x, 0), 1)


@dataclass
class Shape:
    """One face's geometry.

    Attributes:
        points: (68, 2) float32, millimetres, frontal view.
        outline: (C, 3) float32, the frontal silhouette, densely from jaw end 0 over the chin and the crown.
        nose: depth of the nose's ridge at the eye line and at the tip, width of the ridge, of the wings.
        muzzle: how far nose and lips stand out before the cheeks, millimetres.
        child: 0 adult to 1 small child.
        smile: its strength, 0 to about 1, for cheeks and folds.
        iris: (2, 2) float32, centres of the two irises in the frontal view.
    """

    points: np.ndarray
    outline: np.ndarray
    nose: tuple[float, float, float, float]
    muzzle: float
    child: float
    smile: float
    iris: np.ndarray

    @cached_property
    def _bumps(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and heights, in millimetres of depth, of the bells of the soft relief on the dome."""
        p, cheek = self.points, 3 + 4 * self.smile
        mouth, chin = (p[51] + p[57]) / 2, p[8]
        rows = []
        for side, eye, wing in ((-1, _middle(p[36:42]), p[31]), (1, _middle(p[42:48]), p[35])):
            rows += [
                (eye[0] - side * 3, eye[1] + 1, 19, 11, -7 + 2 * self.child),
                (eye[0], eye[1], 12, 8, 4),
                (eye[0] + side * 15, eye[1], 10, 13, -4),
                (eye[0] - side * 12, eye[1], 8, 9, -7),
                (eye[0] - side * 2, eye[1] - 21, 21, 8, 3 - 2 * self.child),
                (eye[0] + side * 8, eye[1] + 30, 20, 14, cheek),
                (wing[0] * 0.9, wing[1] - 4.5, self.nose[3], 6, 8),
            ]
        rows += [
            (mouth[0], (p[33, 1] + mouth[1]) / 2, 30, 22, self.muzzle),
            (mouth[0], mouth[1] - 4, 19, 10, 8),
            (mouth[0], mouth[1] + 8, 16, 8, 5),
            (mouth[0], mouth[1] + 16, 16, 6, -4),
            (chin[0], chin[1] - 11, 16, 12, 7),
        ]
        table = np.array(rows, np.float32)
        return bell_weights(table), table[:, 4]

    @cached_property
    def _ridge(self) -> tuple:
        """The nose's ridge along y: heights and widths at stations, where it leans to."""
        root, tip, ridge, _ = self.nose
        (x_tip, y_tip), y_root, y_base = self.points[30] + (0, 1.4), self.points[27, 1], self.points[33, 1]
        stations = np.array([y_root - 16, y_root, y_tip - 4, y_tip + 2, y_base - 2, y_base + 3])
        heights = np.array([0, root, tip - 1, tip, tip * 0.45, 0])
        ends = np.array([y_root - 16, y_root, y_tip])
        widths = np.array([ridge * 1.6, ridge * 0.85, ridge * 1.25])
        return stations, heights, ends, widths, x_tip, y_root, y_tip - y_root

    @cached_property
    def _rim(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The outline about the pole: angles in rising order, distances, depths."""
        spokes = self.outline[:, :2] - CENTRE
        angle = np.arctan2(spokes[:, 1], spokes[:, 0])
        order = np.argsort(angle)
        order = np.concatenate([order[-1:], order, order[:1]])  # one more on either end closes the circle
        angle = angle[order]
        angle[0], angle[-1] = angle[0] - 2 * np.pi, angle[-1] + 2 * np.pi
        return angle, np.hypot(spokes[:, 0], spokes[:, 1])[order], self.outline[order, 2]

    def relief(self, terms: np.ndarray) -> np.ndarray:
        """Depth (N,) that nose, sockets, cheeks, lips and chin add at the points of `terms`."""
        stations, heights, ends, widths, x_tip, y_root, length = self._ridge
        x, y = terms[1], terms[3]
        height, width = np.interp(y, stations, heights), np.interp(y, ends, widths)
        lean = x_tip * clip01((y - y_root) / length)
        return bells(terms, *self._bumps) + height * np.exp(-(((x - lean) / width) ** 2))

    def lift(self, xy: np.ndarray) -> np.ndarray:
        """Frontal points (N, 2) on the surface: (N, 3)."""
        angle, reach, rim = self._rim
        x, y = (xy - CENTRE).T
        at = np.arctan2(y, x)
        share = np.minimum(np.hypot(x, y) / np.interp(at, angle, reach), 1)
        dome = np.interp(at, angle, rim) * (1 - np.sqrt(1 - share**2))
        out = np.empty((len(xy), 3), np.float32)
        out[:, :2], out[:, 2] = xy, dome + self.relief(quadratic(xy[:, 0], xy[:, 1]))
        return out

    def surface(self) -> tuple[np.ndarray, np.ndarray]:
        """The head's surface.

        Returns:
            (3, A, C + 1) float32 grid from the pole over the rim to the back of the head, which closes on itself,
            and the terms (5, (RIM + 1) * (C + 1)) of its part within the rim.
        """
        outline = np.concatenate([self.outline, self.outline[:1]]).T
        grid = np.empty((3, len(_POLAR), outline.shape[1]), np.float32)
        # Before the ears the head widens once more behind the outline that annotators follow.
        wider = np.interp(outline[1], [-60, -20, 30, 70], [0, 0.065, 0.055, 0])
        wider = _SINE * (1 + wider * _BEFORE_EARS)
        for k in (0, 1):
            grid[k] = CENTRE[k] + (outline[k] - CENTRE[k]) * wider
        # Behind the rim the surface runs back: under the jaw to the neck, elsewhere to the back of the skull.
        back = np.where(outline[1] > 60, 65, 100)
        grid[2] = outline[2] * (1 - np.maximum(_COSINE, 0)) + back * np.minimum(_COSINE, 0)
        terms = quadratic(grid[0, : RIM + 1], grid[1, : RIM + 1])
        front = grid[2, :RIM]
        # Fades out towards the rim, so that the rim is the outline itself.
        front += self.relief(terms[:, : front.size]).reshape(front.shape) * np.minimum(1, 4 * _COSINE[:RIM])
        return grid, terms


@cache
def spline_matrix(count: int, steps: int, closed: bool = False) -> np.ndarray:
    """Catmull-Rom weights (samples, count) that turn control points into a dense curve through them."""
    segments = count if closed else count - 1
    u = np.arange(steps) / steps
    basis = 0.5 * np.stack([-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, u**3 - u**2], 1)
    weights = np.zeros((segments * steps + (not closed), count), np.float32)
    for s in range(segments):
        for k in range(4):
            j = s - 1 + k
            rows = weights[s * steps : (s + 1) * steps]
            if closed or 0 <= j < count:
                rows[:, j % count] += basis[:, k]
            elif j < 0:  # mirror the neighbour through the end point
                rows[:, 0] += 2 * basis[:, k]
                rows[:, 1] -= basis[:, k]
            else:
                rows[:, -1] += 2 * basis[:, k]
                rows[:, -2] -= basis[:, k]
    if not closed:
        weights[-1, -1] = 1
    return weights


def spline(points: np.ndarray, steps: int = 4, closed: bool = False) -> np.ndarray:
    """A dense smooth curve through `points` (N, D)."""
    return spline_matrix(len(points), steps, closed) @ points


def sample_shape(d: Draws) -> Shape:
    """Draws identity and expression."""
    p = NEUTRAL.copy()
    child = d.uniform(0.4, 1) if d.chance(0.15) else 0.0
    side = np.sign(p[:, :1])

    # Identity: the face is stretched piecewise along y, then each region about its own centre.
    nose_length = d.normal(1 - 0.16 * child, 0.08)
    base = 50.5 * nose_length
    mouth = base + 19.6 * d.normal(1 - 0.1 * child, 0.13)
    chin = mouth + 44.4 * d.normal(1 - 0.1 * child, 0.09)
    p[27:36, 1] *= nose_length
    p[48:, 1] += mouth - 70.5
    p[_JAW_IDS, 1] = p[_JAW_IDS, 1] * chin / 114.5 + d.normal(0, 2.5) * (1 - p[_JAW_IDS, 1] / 114.5)
    depth_share = clip01(p[_JAW_IDS, 1] / chin)
    breadth = d.normal(1.0, 0.05) * (1 + d.normal(0.05 * child, 0.07) * (depth_share - 0.3))
    p[_JAW_IDS, 0] *= breadth * (1 + d.normal(0, 0.08) * clip01(depth_share - 0.8) * 5)
    p[[31, 32, 34, 35], 0] *= d.normal(1.0 - 0.08 * child, 0.11)
    p[[31, 32, 34, 35], 1] += d.normal(0, 1.5) * np.array([1, 0.4, 0.4, 1])
    p[30, 1] += d.normal(0, 2)

    spacing, length = d.normal(0, 1.6), d.normal(1, 0.06)
    height, tilt = d.normal(1 + 0.25 * child, 0.15), d.normal(0, 1.2)
    for eye, s in ((p[36:42], -1), (p[42:48], 1)):
        middle = _middle(eye)
        rel = (eye - middle) * (length, height)
        rel[:, 1] -= s * rel[:, 0] / 15 * tilt
        eye[:] = middle + rel + (s * spacing, 0)
    lift, arch, slope, reach = d.normal(1.5 * child, 2.8), d.normal(0, 1.6), d.normal(0, 1.8), d.normal(1, 0.05)
    along = np.abs(p[_BROW_IDS, 0]) / 33 - 1
    p[_BROW_IDS, 1] -= lift + arch * (1 - along**2) + slope * along
    p[_BROW_IDS, 0] = side[_BROW_IDS, 0] * (33 + (np.abs(p[_BROW_IDS, 0]) - 33) * reach + d.normal(0, 1.5))
    upper, lower, wide = d.normal(1, 0.25), d.normal(1, 0.22), d.normal(1 - 0.1 * child, 0.08)
    p[48:, 0] *= wide
    middle_y = p[62, 1] + 0.5
    p[_UPPER_LIP, 1] = middle_y + (p[_UPPER_LIP, 1] - middle_y) * upper
    p[_LOWER_LIP, 1] = middle_y + (p[_LOWER_LIP, 1] - middle_y) * lower
    nose = (d.normal(4.5 - 3 * child, 1.6), d.normal(22.5 - 7 * child, 2.8), d.normal(9, 1.2), d.normal(7 - child, 0.8))
    muzzle = d.normal(4, 2)

    smile = _express(p, d)
    p[:, :2] += d.normals(4, 0.5).reshape(2, 2)[(p[:, 1] > 30).astype(int)]  # halves slightly out of line
    p[17:] += d.normals(102, 0.45).reshape(51, 2)
    p[_BELOW, 1] = np.maximum(p[_BELOW, 1], p[_ABOVE, 1] + 0.5)  # lids and lips may meet, not cross
    return _finish(p, nose, muzzle, child, smile, d)


def _express(p: np.ndarray, d: Draws) -> float:
    """Moves lids, brows, lips and jaw of `p` in place; returns the smile."""
    side = np.sign(p[:, 0])
    raise_, furrow = d.normal(0, 2.2), max(0.0, d.normal(-0.5, 1.0))
    if d.chance(0.12):
        raise_ += d.uniform(2, 6)
    inner = clip01(1.4 - np.abs(p[_BROW_IDS, 0]) / 30)
    p[_BROW_IDS, 1] += furrow * 3 * inner - raise_
    p[_BROW_IDS, 0] -= side[_BROW_IDS] * furrow * 1.5 * inner
    one_sided = d.normal(0, 1.2)
    p[17:22, 1] -= one_sided
    p[22:27, 1] += one_sided

    kind = d.pick((0.38, 0.14, 0.22, 0.16, 0.05, 0.05))  # rest, closed smile, toothy, open, pucker, sad
    smile = opening = gape = 0.0
    if kind == 1:
        smile = d.uniform(0.2, 1)
    elif kind == 2:
        smile, gape = d.uniform(0.4, 1.25), d.uniform(2.5, 11)
    elif kind == 3:
        smile, opening = d.uniform(-0.1, 1) * d.chance(0.6), d.uniform(3, 30) * d.uniform(0.3, 1)
        gape = d.uniform(0, 6)
    elif kind == 0:
        smile, gape = d.normal(0, 0.15), d.uniform(0, 3) * d.chance(0.3)
    elif kind == 5:
        smile = d.uniform(-0.7, -0.2)
    lips = slice(48, 68)
    centre = (p[48] + p[54]) / 2
    share = np.abs(p[lips, 0] - centre[0]) / np.abs(p[54, 0] - centre[0])  # 0 at the middle, 1 at the corners
    if kind == 4:
        p[lips, 0] = centre[0] + (p[lips, 0] - centre[0]) * d.uniform(0.6, 0.8)
        p[_UPPER_LIP, 1] -= 2
        p[_LOWER_LIP, 1] += 2
    p[lips, 0] += side[lips] * share * 7.5 * smile
    p[lips, 1] -= (7 * share**2 - 3) * smile
    p[_LOWER_LIP, 1] -= max(smile, 0) * 1.2
    p[_UPPER_LIP, 1] += max(smile, 0) * 1.5
    up = gape * 0.4
    down = gape * 0.6 + opening * 0.85
    flat = 1 - share**3
    p[lips, 1] += (_LOWER_HALF * down - _UPPER_HALF * up) * flat
    p[_CORNERS, 1] += opening * 0.35
    p[lips, 0] -= side[lips] * share * opening * 0.12
    low = clip01(p[:17, 1] / p[8, 1])
    p[:17, 1] += opening * 0.9 * low**2
    p[:17, 0] *= 1 + 0.03 * smile * low - 0.004 * opening * low**2
    p[[31, 35], 0] += np.array([-2, 2]) * max(smile, 0)
    p[31:36, 1] -= 1.5 * smile

    squint = 0.22 * max(smile, 0) * d.uniform(0.3, 1.6)
    openness = 1.0 - squint + d.normal(0, 0.1)
    blink = d.pick((0.85, 0.08, 0.07))  # open, half, closed
    openness *= (1, d.uniform(0.35, 0.8), d.uniform(0, 0.15))[blink]
    wink = d.uniform(0, 0.5) if d.chance(0.02) else 1.0
    factors = (openness * wink, openness) if d.chance(0.5) else (openness, openness * wink)
    for upper_ids, lower_ids, factor in zip(_UPPER_LIDS, _LOWER_LIDS, factors, strict=True):
        gap = p[upper_ids, 1] - p[lower_ids, 1]
        p[upper_ids, 1] = p[lower_ids, 1] + gap * max(factor, 0.08) + 1.2 * squint
        p[lower_ids, 1] -= 3 * squint
    return smile


def _finish(
    p: np.ndarray, nose: tuple[float, float, float, float], muzzle: float, child: float, smile: float, d: Draws
) -> Shape:
    jaw = np.concatenate([p[:17], _JAW_DEPTHS], 1)
    skull = _SKULL * (p[16, 0] / 71.3, d.normal(1 + 0.1 * child, 0.05), 1)
    skull[:, 1] += p[16, 1] - 2
    control = np.concatenate([jaw, skull, (skull * (-1, 1, 1))[-2::-1]]).astype(np.float32)
    eyes = np.array([_middle(p[36:42]), _middle(p[42:48])])
    gaze = np.array([d.normal(0, 3.2), d.normal(0, 1.2)], np.float32)
    return Shape(
        points=p,
        outline=spline(control, _SUBDIVISIONS, closed=True),
        nose=nose,
        muzzle=muzzle,
        child=child,
        smile=max(smile, 0.0),
        iris=eyes + gaze + np.array([0, -0.6], np.float32),
    )


JAW_COLUMNS = 16 * _SUBDIVISIONS + 1  # columns of the surface's grid from jaw point 0 to jaw point 16
