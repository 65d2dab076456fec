"""Whether a mean face is upright and its left is left, by the mean of the renderer's faces."""

from functools import cache

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import sample_shape
from flr.landmarks.scheme import IBUG68, Scheme, get_scheme

COMPARED = ("ibug68", "kaggle15", "celeba5")  # the schemes that rendered faces reduce to, best first


@cache
def front_face() -> np.ndarray:
    """(68, 2) float64: the mean of the renderer's faces from the front; x to the viewer's right, y down."""
    return np.mean([sample_shape(Draws(0, i)).points for i in range(100)], 0).astype(np.float64)


def fault_of(mean: np.ndarray, scheme: Scheme) -> str | None:
    """What is wrong with the orientation of a mean face (K, 2): upside down, or left for right; None where nothing is known.

    A mean face is its own mirror image whichever way up it is, and with left named right too.
    """
    known_as = next((name for name in COMPARED if name == scheme.name or name in scheme.reductions), None)
    if known_as is None:
        return None
    mean, model = scheme.reduce(mean, known_as), IBUG68.reduce(front_face(), known_as)
    used = np.isfinite(mean).all(-1)
    if known_as == "ibug68":
        used[:17] = False  # the jaw's points slide along the outline as the head turns
    if used.sum() < 3:
        return None
    swapped = get_scheme(known_as).mirror_order
    errors = {}
    for fault, front in {
        "": model, "upside down": model * [1, -1], "mirrored, with left and right exchanged": model[swapped],
    }.items():  # fmt: skip
        a, b = mean[used] - mean[used].mean(0), front[used] - front[used].mean(0)
        scale = (a * b).sum() / (b * b).sum()  # no rotation: it would turn one fault into another
        errors[fault] = np.inf if scale <= 0 else ((a - scale * b) ** 2).sum()
    return min(errors, key=lambda fault: errors[fault]) or None
