"""Head pose from landmarks: the best scaled-orthographic view of a mean 3D face."""

from functools import cache

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import sample_shape
from flr.landmarks.scheme import IBUG68, Scheme, get_scheme

MODELS = ("ibug68", "kaggle15", "celeba5")  # the schemes whose points have a place on the 3D face, best first
INNER = np.arange(68) > 16  # the jaw's points slide along the outline as the head turns


@cache
def mean_face_3d() -> np.ndarray:
    """(68, 3) float64: the mean of the renderer's faces; x to the viewer's right, y down, z to the viewer."""
    shapes = [sample_shape(Draws(0, i)) for i in range(100)]
    points = np.mean([shape.lift(shape.points) for shape in shapes], 0).astype(np.float64)
    return points - points[INNER].mean(0)


def head_pose(points: np.ndarray, labelled: np.ndarray, scheme: Scheme) -> np.ndarray | None:
    """Yaw, pitch and roll of each face.

    Args:
        points: (N, K, 2) pixels.
        labelled: (N, K) bool.
        scheme: of the points.

    Returns:
        (N, 3) degrees: yaw positive where the face turns to the viewer's right, pitch where it looks up, roll
        clockwise; NaN for a face with fewer than four known points. None where the scheme is not tied to 68 points.
    """
    found = _model(scheme)
    if found is None:
        return None
    known_as, model, used = found
    points, labelled = scheme.reduce(points, known_as), scheme.reduce(labelled, known_as)
    weight = (labelled & used)[..., None].astype(np.float64)
    count = weight.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = np.where(weight > 0, points, 0)
        flat = (flat - (weight * flat).sum(1, keepdims=True) / count) * weight
        solid = (model - (weight * model).sum(1, keepdims=True) / count) * weight
    known = count[:, 0, 0] >= 4
    pose = np.full((len(points), 3), np.nan)
    if not known.any():
        return pose
    # Least squares for the 2 x 3 view, then the nearest one with orthogonal rows of one length.
    normal = np.einsum("nki,nkj->nij", solid[known], solid[known])
    view = np.einsum("nki,nkj->nij", flat[known], solid[known]) @ np.linalg.pinv(normal, rcond=1e-6)
    left, _, right = np.linalg.svd(view, full_matrices=False)
    rows = left @ right
    depth = np.cross(rows[:, 0], rows[:, 1])
    pose[known, 0] = np.arctan2(-depth[:, 0], depth[:, 2])
    pose[known, 1] = np.arcsin(depth[:, 1].clip(-1, 1))
    pose[known, 2] = np.arctan2(-rows[:, 0, 1], rows[:, 1, 1])
    return np.degrees(pose)


def fault_of(mean: np.ndarray, scheme: Scheme) -> str | None:
    """What is wrong with the orientation of a mean face (K, 2): upside down, or left for right; None where nothing is known.

    A mean face is its own mirror image whichever way up it is, and with left named right too.
    """
    found = _model(scheme)
    if found is None:
        return None
    known_as, model, used = found
    mean = scheme.reduce(mean, known_as)
    used = used & np.isfinite(mean).all(-1)
    if used.sum() < 3:
        return None
    swapped = get_scheme(known_as).mirror_order
    errors = {}
    for fault, front in {
        "": model[:, :2], "upside down": model[:, :2] * [1, -1], "mirrored, with left and right exchanged": model[swapped, :2],
    }.items():  # fmt: skip
        a, b = mean[used] - mean[used].mean(0), front[used] - front[used].mean(0)
        scale = (a * b).sum() / (b * b).sum()  # no rotation: it would turn one fault into another
        errors[fault] = np.inf if scale <= 0 else ((a - scale * b) ** 2).sum()
    return min(errors, key=lambda fault: errors[fault]) or None


def _model(scheme: Scheme) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The scheme of `MODELS` that a scheme is or reduces to, its points on the 3D face (L, 3), and which to use (L,)."""
    known_as = next((name for name in MODELS if name == scheme.name or name in scheme.reductions), None)
    if known_as is None:
        return None
    model = mean_face_3d()
    if known_as == "ibug68":
        return known_as, model, INNER
    groups = IBUG68.reductions[known_as]
    return known_as, np.array([model[list(group)].mean(0) for group in groups]), np.ones(len(groups), bool)
