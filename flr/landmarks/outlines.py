"""The lines of a face through its points: which points a line takes, in which order, and the smooth curve through them.

They are separate from the schemes, since all of a scheme goes into the fingerprint of every dataset.
"""

from collections.abc import Mapping

import numpy as np

from flr.landmarks.scheme import SCHEMES, Group, Scheme, span

# A line is one arc or several in turn, each smooth in itself; where two meet there is a corner, as of an eye or mouth.
# It is closed where the last arc ends at the first one's start.
Arcs = tuple[Group, ...]

OUTLINES: Mapping[str, Mapping[str, Arcs]] = {
    "ibug68": {
        "jaw": (span(0, 16),), "right_brow": (span(17, 21),), "left_brow": (span(22, 26),),
        "nose_bridge": (span(27, 30),), "nose_base": (span(31, 35),),
        "right_eye": (span(36, 39), (39, 40, 41, 36)), "left_eye": (span(42, 45), (45, 46, 47, 42)),
        "outer_lip": (span(48, 54), (*span(54, 59), 48)), "inner_lip": (span(60, 64), (64, 65, 66, 67, 60)),
    },
    "muct76": {
        "jaw": (span(0, 14),), "right_brow": ((21, 22, 23, 24), (24, 25, 26, 21)),
        "left_brow": ((15, 16, 17, 18), (18, 19, 20, 15)), "nose_base": (span(37, 45),),
        "right_eye": ((27, 68, 28, 69, 29), (29, 70, 30, 71, 27)),
        "left_eye": ((32, 72, 33, 73, 34), (34, 74, 35, 75, 32)),
        "outer_lip": (span(48, 54), (*span(54, 59), 48)), "inner_lip": ((48, 60, 61, 62, 54), (54, 63, 64, 65, 48)),
    },
    "wflw98": {
        "jaw": (span(0, 32),), "right_brow": (span(33, 37), (37, 38, 39, 40, 41, 33)),
        "left_brow": (span(42, 46), (46, 47, 48, 49, 50, 42)),
        "nose_bridge": (span(51, 54),), "nose_base": (span(55, 59),),
        "right_eye": (span(60, 64), (64, 65, 66, 67, 60)), "left_eye": (span(68, 72), (72, 73, 74, 75, 68)),
        "outer_lip": (span(76, 82), (*span(82, 87), 76)), "inner_lip": (span(88, 92), (92, 93, 94, 95, 88)),
    },
    "cofw29": {
        "right_brow": ((0, 4, 2), (2, 5, 0)), "left_brow": ((1, 6, 3), (3, 7, 1)), "nose_base": ((18, 21, 19),),
        "right_eye": ((8, 12, 10), (10, 13, 8)), "left_eye": ((9, 14, 11), (11, 15, 9)),
        "outer_lip": ((22, 24, 23), (23, 27, 22)), "inner_lip": ((22, 25, 23), (23, 26, 22)),
    },
    "kaggle15": {
        "right_brow": ((9, 8),), "left_brow": ((6, 7),), "right_eye": ((5, 1, 4),), "left_eye": ((2, 0, 3),),
        "outer_lip": ((12, 13, 11), (11, 14, 12)),
    },
    "celeba5": {"mouth_line": ((3, 4),)},
}  # fmt: skip


def outlines_of(scheme: Scheme) -> Mapping[str, Arcs]:
    """The lines of a scheme by name; none for a scheme of a user's own, which may bear a built-in one's name."""
    known = SCHEMES.get(scheme.name)
    return OUTLINES.get(scheme.name, {}) if known is not None and known.names == scheme.names else {}


def is_closed(arcs: Arcs) -> bool:
    """Whether a line goes round an area."""
    return arcs[0][0] == arcs[-1][-1]


def smooth(points: np.ndarray, arcs: Arcs, steps: int = 8) -> np.ndarray:
    """The curve through a line's points.

    Args:
        points: (K, 2) of the whole face.
        arcs: of the line.
        steps: straight pieces between two neighbouring points.

    Returns:
        (M, 2): each arc a Catmull-Rom spline (Catmull and Rom 1974), whose first and last point are mirrored to have
        neighbours; a closed line's first point does not come again at its end.
    """
    t = np.arange(steps)[:, None, None] / steps
    pieces = []
    for arc in arcs:
        p = points[list(arc)].astype(np.float64)
        p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
        curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        pieces.append(curve.transpose(1, 0, 2).reshape(-1, 2))
    if not is_closed(arcs):
        pieces.append(points[[arcs[-1][-1]]])
    return np.concatenate(pieces)
