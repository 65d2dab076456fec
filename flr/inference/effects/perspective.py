"""Projective maps of the plane."""

import numpy as np

from flr.landmarks.geometry import fit_similarity

STIFFNESS = 0.2  # see `fit_map`


def fit_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit a projective map (3, 3) of points (N, 2) to others by least squares.

    Two points, or points on a line, give a similarity, three an affine map, four or more a perspective map. Its perspective
    part is regularised with the weight of a share `STIFFNESS` of the points: eyes and brows alone hardly determine depth,
    and noise would decide.
    """
    if len(source) < 3 or np.linalg.svd(source - source.mean(0), compute_uv=False)[1] < 1e-3 * np.ptp(source):
        return to_projective(fit_similarity(source, target))
    centred = [_centre(points) for points in (source, target)]
    (x, y), (u, v) = (project(matrix, points).T for matrix, points in zip(centred, (source, target), strict=True))
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([
        np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1),
        np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1),
        np.sqrt(STIFFNESS * len(x)) * np.eye(8)[6:],
    ])  # fmt: skip
    if len(source) == 3:
        rows = rows[:6, :6]
    solution = np.linalg.lstsq(rows, np.concatenate([u, v, [0, 0]])[: len(rows)], rcond=None)[0]
    inner = np.append(solution, [0.0] * (8 - len(solution)) + [1.0]).reshape(3, 3)
    whole = np.linalg.inv(centred[1]) @ inner @ centred[0]
    return whole / whole[2, 2] if abs(whole[2, 2]) > 1e-9 else whole


def _centre(points: np.ndarray) -> np.ndarray:
    """Return the map (3, 3) that moves the mean of points (N, 2) to 0 and scales their distance from it to 1."""
    spread = np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean())
    x, y = points.mean(0)
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, spread]]) / spread


def to_projective(affine: np.ndarray) -> np.ndarray:
    """Return the projective map (3, 3) of an affine one (2, 3)."""
    return np.concatenate([affine, [[0.0, 0.0, 1.0]]])


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (N, 2) by a projective map (3, 3)."""
    moved = np.c_[points, np.ones(len(points))] @ matrix.T
    return moved[:, :2] / moved[:, 2:]
