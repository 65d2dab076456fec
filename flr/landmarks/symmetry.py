"""Check a mean face against its mirror image, which shows whether a scheme's pairs are right."""

import numpy as np

from flr.errors import UserError
from flr.landmarks.scheme import Scheme

ASYMMETRIC = 0.15  # deviation of a mean face from its mirror image, box sides, above which something is wrong


def mirror_deviation(mean: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Measure how far each point of a mean face is from its mirror image.

    Args:
        mean: (K, 2) in box sides, relative to the box's centre; NaN for points that are never labelled.
        order: (K,) int, the point that takes each place when the image is mirrored.

    Returns:
        (K,) box sides: about 0.04 with the right pairs, near 1 with wrong ones; NaN where undefined.

    Example:
        >>> eyes = np.array([[-0.5, 0.0], [0.5, 0.0]])
        >>> mirror_deviation(eyes, np.array([1, 0])).tolist(), mirror_deviation(eyes, np.array([0, 1])).tolist()
        ([0.0, 0.0], [1.0, 1.0])
    """
    return np.linalg.norm(mean - mean[order] * [-1, 1], axis=-1)


def likely_order(mean: np.ndarray) -> np.ndarray:
    """Find the mirror order that a mean face (K, 2) itself suggests: (K,) int, points whose mirror images are nearest to each other.

    Example:
        >>> likely_order(np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])).tolist()
        [1, 0, 2]
    """
    gap = np.linalg.norm(mean[:, None] - mean[None] * [-1, 1], axis=-1)
    nearest = np.where(np.isnan(gap), np.inf, gap).argmin(1)
    unpaired = np.arange(len(mean))
    return np.where(nearest[nearest] == unpaired, nearest, unpaired)


def describe_pairs(mean: np.ndarray, scheme: Scheme) -> str:
    """Name the pairs of a scheme that a mean face contradicts, and those that it suggests; empty where others fit no better.

    Other pairs fit if they at least halve the largest deviation. So labels of heads that all turn to one side pass.

    Example:
        >>> from flr.landmarks.scheme import CELEBA5
        >>> describe_pairs(np.array([[-0.4, -0.4], [-0.3, 0.5], [0.0, 0.0], [0.4, -0.4], [0.3, 0.5]]), CELEBA5)
        'the scheme pairs [right_eye, left_eye], [mouth_right, mouth_left], but by the labels the pairs are likely [right_eye, mouth_right], [left_eye, mouth_left]'
    """
    away, order = mirror_deviation(mean, scheme.mirror_order), likely_order(mean)
    if not (worst := np.nanmax(away, initial=0)) > ASYMMETRIC or np.nanmax(mirror_deviation(mean, order)) > worst / 2:
        return ""
    own = {(min(i, j), max(i, j)) for i, j in scheme.pairs}
    likely = {(i, j) for i, j in enumerate(order.tolist()) if i < j}

    def text(pairs: set[tuple[int, int]], most: int = 6) -> str:
        named = ", ".join(f"[{scheme.names[i]}, {scheme.names[j]}]" for i, j in sorted(pairs)[:most])
        return named + (f" and {len(pairs) - most} more" if len(pairs) > most else "")

    wrong = {pair for pair in own - likely if np.nanmax(away[list(pair)], initial=0) > ASYMMETRIC}
    if not wrong:
        return f"the scheme lacks pairs; by the labels they are likely [{text(likely, len(likely))}]"
    touched = {i for pair in wrong for i in pair}
    right = {pair for pair in likely - own if touched.intersection(pair)}
    suggestion = f"the pairs are likely {text(right)}" if right else "these points have no mirror image"
    return f"the scheme pairs {text(wrong)}, but by the labels {suggestion}"


def check_mirror(mean: np.ndarray, scheme: Scheme, option: str, off: str) -> None:
    """Refuse to mirror the faces of a scheme whose pairs are clearly incomplete or wrong.

    Args:
        mean: (K, 2) mean face in any units; NaN for points that are never labelled.
        scheme: Scheme of the points.
        option: The option that mirrors, such as ``augment.mirror=0.5``.
        off: The option that mirrors nothing.

    Raises:
        UserError: Other pairs fit much better (see `describe_pairs`); it names them.
    """
    low, high = np.nanmin(mean, 0, initial=np.inf), np.nanmax(mean, 0, initial=-np.inf)
    side = float((high - low).max())
    if not (np.isfinite(side) and side > 0):
        return
    mean = (mean - (low + high) / 2) / side
    if pairs := describe_pairs(mean, scheme):
        raise UserError(
            f"{option} mirrors faces, but with the pairs of {scheme.name} the mean face is no mirror image of itself: {pairs}; fix "
            f"the scheme's pairs, or the order or names of the points in the labels, or set {off}"
        )
