"""CelebA as it lies on disk, in the wild and aligned, with drawn faces: a bright dot under each landmark, nothing else.

The set's quirks are kept: a header that names ten of eleven columns, numbers padded to a width, a count on top of some
lists, whole-number labels, one list of boxes for both kinds of pictures; and, in the comma-separated copies, a header in
every list.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flr.landmarks.scheme import IBUG68
from tests.fakes import ibug

POINTS = (
    "lefteye_x", "lefteye_y", "righteye_x", "righteye_y", "nose_x", "nose_y", "leftmouth_x", "leftmouth_y",
    "rightmouth_x", "rightmouth_y",
)  # fmt: skip
BOX = ("x_1", "y_1", "width", "height")
FOLDERS = {"wild": "img_celeba", "aligned": "img_align_celeba"}
LISTS = {"wild": "list_landmarks_celeba", "aligned": "list_landmarks_align_celeba"}
ALIGNED = np.array([[69, 111], [108, 111], [89, 135], [71, 152], [105, 152]])  # the means of the first 32


def write(
    root: Path,
    parts: tuple[int, int, int] = (6, 2, 4),
    kinds: Sequence[str] = ("wild",),
    csv: bool = False,
    partition: bool = True,
    identities: bool = False,
    seed: int = 0,
) -> None:
    """Write a CelebA whose list has its training faces first, then validation's, then the test's.

    Args:
        root: the folder to fill.
        parts: faces of each part.
        kinds: of pictures: ``wild``, ``aligned``. The list of boxes comes with either.
        csv: the comma-separated lists.
        partition: write ``list_eval_partition`` too.
        identities: write ``identity_CelebA`` too: two faces a person.
        seed: other faces for each.
    """
    root.mkdir(parents=True, exist_ok=True)
    count = sum(parts)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    points = {"wild": wild(count, seed), "aligned": aligned(count, seed)}
    kind = ".csv" if csv else ".txt"
    for each in kinds:
        size = ibug.SIZE if each == "wild" else (178, 218)
        (root / FOLDERS[each]).mkdir()
        for i, name in enumerate(names):
            ibug.save(root / FOLDERS[each] / name, ibug.picture(points[each][i], size, seed=i, grey=i % 5 == 4))
        rows = points[each].reshape(count, 10)
        (root / f"{LISTS[each]}{kind}").write_text(listing(names, POINTS, rows, csv, unnamed=not csv))
    (root / f"list_bbox_celeba{kind}").write_text(listing(names, BOX, boxes(points["wild"]), csv))
    if partition:
        values = np.repeat([0, 1, 2], parts)[:, None]
        (root / f"list_eval_partition{kind}").write_text(listing(names, ("partition",), values, csv, bare=not csv))
    if identities:
        values = 2880 + np.concatenate([100 * part + np.arange(n) // 2 for part, n in enumerate(parts)])[:, None]
        (root / f"identity_CelebA{kind}").write_text(listing(names, ("identity",), values, csv, bare=not csv))


def wild(count: int, seed: int = 0) -> np.ndarray:
    """(count, 5, 2) int64 points in images of `ibug.SIZE`."""
    return IBUG68.reduce(ibug.faces(count, seed=seed), "celeba5").round().astype(int)


def aligned(count: int, seed: int = 0) -> np.ndarray:
    """(count, 5, 2) int64 points in images of 178 x 218, the eyes where the set's alignment puts them."""
    return ALIGNED + np.random.default_rng(seed).normal(0, [[1.5]] * 2 + [[3]] * 3, (count, 5, 2)).round().astype(int)


def boxes(points: np.ndarray) -> np.ndarray:
    """(N, 4) int64 x_1, y_1, width, height round the points, loose and higher than wide as the set's are."""
    low, high = points.min(1), points.max(1)
    side = (high - low).max(1)
    left = (low[:, 0] + high[:, 0]) // 2 - side
    return np.stack([left, low[:, 1] - side, 2 * side, 3 * side], 1)


def listing(
    names: Sequence[str], columns: Sequence[str], rows: np.ndarray, csv: bool = False, unnamed: bool = False,
    bare: bool = False,
) -> str:  # fmt: skip
    """A list's text: `rows` (N, C) whole numbers under `columns`.

    With blanks the count and the columns' names stand above; `unnamed` leaves out that of the names' column, `bare` both
    lines. With commas the columns' names stand above.
    """
    if csv:
        lines = [",".join(("image_id", *columns))]
        lines += [",".join((name, *map(str, row))) for name, row in zip(names, rows, strict=True)]
    else:
        head = " ".join(columns if unnamed else ("image_id", *columns))
        lines = [] if bare else [str(len(names)), head]
        lines += [" ".join((name, *(f"{v:4d}" for v in row))) for name, row in zip(names, rows, strict=True)]
    return "\n".join(lines) + "\n"
