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
    """Find the mirror order that a mean face itself suggests: (K,) int, points whose mirror images are nearest to each other.

    Args:
        mean: See `mirror_deviation`.

    Example:
        >>> likely_order(np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])).tolist()
        [1, 0, 2]
    """
    gap = np.linalg.norm(mean[:, None] - mean[None] * [-1, 1], axis=-1)
    nearest = np.where(np.isnan(gap), np.inf, gap).argmin(1)
    unpaired = np.arange(len(mean))
    return np.where(nearest[nearest] == unpaired, nearest, unpaired)


def check_mirror(mean: np.ndarray, scheme: Scheme, option: str, off: str) -> None:
    """Refuse to mirror the faces of a scheme whose pairs are clearly incomplete or wrong.

    They are where other pairs at least halve the largest deviation. So labels of heads that all turn to one side pass.

    Args:
        mean: (K, 2) mean face in any units; NaN for points that are never labelled.
        scheme: Scheme of the points.
        option: The option that mirrors, such as ``augment.mirror=0.5``.
        off: The option that mirrors nothing.

    Raises:
        UserError: Other pairs fit much better; it names them.
    """
    low, high = np.nanmin(mean, 0, initial=np.inf), np.nanmax(mean, 0, initial=-np.inf)
    side = float((high - low).max())
    if not (np.isfinite(side) and side > 0):
        return
    mean = (mean - (low + high) / 2) / side
    away, order = mirror_deviation(mean, scheme.mirror_order), likely_order(mean)
    worst = np.nanmax(away)
    if worst <= ASYMMETRIC or np.nanmax(mirror_deviation(mean, order)) > worst / 2:
        return
    pairs = ", ".join(f"[{scheme.names[i]}, {scheme.names[j]}]" for i, j in enumerate(order.tolist()) if i < j)
    raise UserError(
        f"{option} mirrors faces, but with the pairs of {scheme.name} the mean face is {worst:.2f} box sides away from its "
        f"mirror image at {scheme.names[int(np.nanargmax(away))]}; set its pairs, likely [{pairs}], or set {off}"
    )
