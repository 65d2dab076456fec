"""Faces from the maps of a network that looks at an image in several sizes.

Each level of a pyramid votes for the faces in its range of sizes. A face is seen by several levels, most other things by one,
so the votes of the levels are summed; a maximum over the levels finds about half as many faces at equal false alarms.
"""

from collections.abc import Callable

import cv2
import numpy as np

STRIDE = 8  # image pixels a cell of the maps
UNIT = 32.0  # pixels: the face whose size is coded as 0
SMALLEST, LARGEST = 15.0, 56.0  # faces that one level can find, pixels: the larger side of the points' tight box
PAD = 16  # black pixels around each level, so that faces at the edge have cells around them
_LEAST = 0.05  # probability of a cell that votes
_MOST = 1500  # votes of an image, the best ones
_CERTAIN = np.log(0.95 / _LEAST)  # vote of a level that is certain
_LEVELS = 3  # whose certain votes make a score of 1, where a face is not too small for the finer ones
_VOTING, _AVERAGED, _SAME = 0.3, 0.3, 0.25  # overlaps of boxes that vote for, are averaged into, and repeat a box
_INSIDE = 0.6  # share of the smaller box that lies in a box that it repeats
_TRUST = 0.6  # deviation, as a binary logarithm, of the sizes that a level estimates well from UNIT

# Maps a level (H, W) uint8 to (4, h, w) float32: the logit of a face, x and y from the cell's middle in cells, log2 of its size
# over UNIT.
Network = Callable[[np.ndarray], np.ndarray]


def find_votes(grey: np.ndarray, network: Network) -> np.ndarray:
    """Run the network on a pyramid with the factor sqrt 2.

    Args:
        grey: (H, W) uint8, in which the smallest faces to find are as large as `SMALLEST`.
        network: See `Network`.

    Returns:
        (N, 6) float64: centre x, y and size in pixels of `grey`, probability, level and log2 of the size over UNIT there.
    """
    height, width = grey.shape
    levels, votes = [grey], []
    while True:
        k = len(levels) - 1
        maps = network(cv2.copyMakeBorder(levels[k], PAD, PAD, PAD, PAD, cv2.BORDER_CONSTANT))
        rows, columns = np.nonzero(maps[0] > np.log(_LEAST / (1 - _LEAST)))
        logit, dx, dy, size = maps[:, rows, columns].astype(np.float64)
        scale = np.array(grey.shape[::-1]) / levels[k].shape[::-1]
        x = ((columns + 0.5 + dx) * STRIDE - PAD) * scale[0] - 0.5  # from edges to pixel centres
        y = ((rows + 0.5 + dy) * STRIDE - PAD) * scale[1] - 0.5
        side = UNIT * 2**size * np.sqrt(scale.prod())
        votes.append(np.stack([x, y, side, 1 / (1 + np.exp(-logit)), np.full(len(x), k), size], 1))
        smaller = (round(width * 2 ** (-(k + 1) / 2)), round(height * 2 ** (-(k + 1) / 2)))
        if min(smaller) < SMALLEST * 0.7:
            return np.concatenate(votes)
        levels.append(np.asarray(cv2.resize(levels[max(k - 1, 0)], smaller, interpolation=cv2.INTER_AREA)))


def overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, M) intersections of squares (N, 3+) and (M, 3+): over the union, and over the smaller one."""
    low = np.maximum((a[:, :2] - a[:, 2:3] / 2)[:, None], b[:, :2] - b[:, 2:3] / 2)
    high = np.minimum((a[:, :2] + a[:, 2:3] / 2)[:, None], b[:, :2] + b[:, 2:3] / 2)
    common = (high - low).clip(0).prod(2)
    area_a, area_b = a[:, None, 2] ** 2, b[:, 2] ** 2
    return common / (area_a + area_b - common), common / np.minimum(area_a, area_b)


def merge(votes: np.ndarray, least: float = 0) -> np.ndarray:
    """Turn votes into faces (M, 4) float64: centre x, y, size and score, the best first.

    The score of a box is the sum over the levels of the strongest vote that overlaps it, where a vote is the logarithm of its
    probability over the least one. It is divided by what the levels that can see a box of this size would give if they were
    certain, so that 1 is a certain face of any size.

    The box with the highest score may lie between two faces, or be so large that it overlaps the votes for one face and for what
    is around it. So a face's box is the mean of the votes around the peak: the vote near that box with which the most
    probable votes overlap most.

    Args:
        votes: See `find_votes`.
        least: Lowest score of a face.
    """
    if not len(votes):
        return np.zeros((0, 4))
    votes = votes[np.argsort(-votes[:, 3], kind="stable")[:_MOST]]
    votes = votes[np.argsort(votes[:, 4], kind="stable")]
    boxes, probability, level, size_there = votes[:, :3], votes[:, 3], votes[:, 4], votes[:, 5]
    union, smaller = overlaps(votes, votes)
    near = union > _VOTING
    score = _sum_over_levels(near * np.log(probability.clip(_LEAST, 0.95) / _LEAST), level)
    density = _sum_over_levels(near * union * probability, level)
    trust = probability**2 * np.exp(-0.5 * (size_there / _TRUST) ** 2)
    taken, faces = np.zeros(len(votes), bool), []
    for best in np.lexsort((-probability, -score)):
        if score[best] < least * _CERTAIN:  # also of a face that one level alone can see
            break
        if taken[best]:
            continue
        peak = np.argmax(near[best] * density)
        face = _mean(boxes, (union[peak] - _AVERAGED).clip(0) * trust)
        faces.append((*face, score[best] / (_CERTAIN * _levels_that_see(_mean(boxes[:, 2], near[best] * trust)))))
        # What repeats the vote or the box that was made of the votes around it, is no further face.
        face_union, face_smaller = overlaps(face[None], votes)
        taken |= (union[best] > _SAME) | (smaller[best] > _INSIDE)
        taken |= (face_union[0] > _SAME) | (face_smaller[0] > _INSIDE)
    found = np.array(faces).reshape(-1, 4)
    found = found[found[:, 3] >= least]
    return found[np.argsort(-found[:, 3], kind="stable")]


def _sum_over_levels(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return (N,) the sum over the levels of each level's largest value; values (N, M) of M votes, sorted by level (M,)."""
    first_of_level = np.flatnonzero(np.diff(level, prepend=-1))
    return np.maximum.reduceat(values, first_of_level, axis=1).sum(1)


def _mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight @ values / weight.sum()


def _levels_that_see(size: float | np.ndarray) -> float:
    """Return how many levels of the pyramid can see a face of a size."""
    return float(np.clip(1 + 2 * np.log2(max(size / SMALLEST, 1)), 1, _LEVELS))
