"""Faces as label files give them, and what all formats share."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from flr.data.table import UNLABELLED, FaceTable

BOX = ("left", "top", "right", "bottom")


def box_edges(box: np.ndarray) -> np.ndarray:
    """Convert (..., 4) first column, first row, width and height in whole pixels to edges at pixel centres."""
    return np.concatenate([box[..., :2] - 0.5, box[..., :2] + box[..., 2:] - 0.5], -1)


# How a file gives a box -> its edges left, top, right, bottom, both (N, 4).
BOX_FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "edges": lambda box: box,
    "corner and size": lambda box: np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1),
    "pixels": box_edges,
}

SPLITS = ("train", "val", "test", UNLABELLED)
LONGEST = 400  # characters of a name: in a column of text each face takes the room of the longest
UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # what XML or a row of text cannot hold
SUBSET = re.compile(r"[\w./:-]+( [\w./:-]+)*")  # characters that a metric's name may hold
LONGEST_SUBSET = 120  # a metric's name has at most 250, such as PROTOCOL-SPLIT-BEST/test/SUBSET/nme of an evaluation
LARGEST_SIDE = 1 << 20  # pixels of an image
CHUNK = 4096  # rows whose numbers stand in memory as text


class FaceRecord(NamedTuple):
    """A face as a file gives it.

    Attributes:
        where: Its place in the file, for errors.
        image: Its image under the root.
        split: One of `SPLITS`.
        points: (K, 2) float64 as the file gives them, NaN where there is no label.
        hidden: (K,) bool.
        box: (4,) float64 as the file gives them, NaN where there is none.
        group: Empty for its image.
        name: Empty for its image's.
        subsets: Names of the subsets it is in.
        fault: Why no model should learn from it; empty where nothing is known against it.
    """

    where: str
    image: str
    split: str
    points: np.ndarray
    hidden: np.ndarray
    box: np.ndarray
    group: str = ""
    name: str = ""
    subsets: Sequence[str] = ()
    fault: str = ""


class FaceColumns(NamedTuple):
    """Columns over the N faces of a file; each is that of `FaceRecord`.

    Attributes:
        subsets: Name -> (N,) bool.
        faults: Face -> reason.
        box_form: What the four numbers of `box` are, one of `BOX_FORMS`.
        first_pixel: Coordinate of the first pixel's centre in the file's points.
    """

    where: Sequence[str]
    image: Sequence[str]
    split: Sequence[str]
    points: np.ndarray
    hidden: np.ndarray
    box: np.ndarray
    group: Sequence[str]
    name: Sequence[str]
    subsets: Mapping[str, np.ndarray]
    faults: Mapping[int, str]
    box_form: str = "edges"
    first_pixel: int = 0


def columns_of(faces: Iterable[FaceRecord], count: int, box_form: str = "edges", first_pixel: int = 0) -> FaceColumns:
    """Return the columns over faces of `count` points."""
    rows = list(faces)
    where, image, split, points, hidden, box, group, name, subsets, fault = (
        zip(*rows, strict=True) if rows else [()] * 10
    )
    return FaceColumns(
        where, image, split, np.reshape(points, (-1, count, 2)), np.reshape(hidden, (-1, count)), np.reshape(box, (-1, 4)),
        group, name, {key: np.array([key in names for names in subsets]) for key in dict.fromkeys(chain(*subsets))},
        {i: reason for i, reason in enumerate(fault) if reason}, box_form, first_pixel,
    )  # fmt: skip


def fits(name: str) -> bool:
    """Whether every form of label file can hold a face's name, and a column of text as well."""
    return 0 < len(name) <= LONGEST and name == name.strip() and not UNFIT.search(name)


def is_metric_name(subset: str) -> bool:
    """Whether a subset can be part of a metric's name, which MLflow takes for a path."""
    parts = subset.split("/")
    return len(subset) <= LONGEST_SUBSET and bool(SUBSET.fullmatch(subset)) and not {"", ".", ".."}.intersection(parts)


def under(root: Path, image: str) -> str:
    """Return an image's POSIX path under `root` where it lies there, else the path as it is."""
    path = image.replace("\\", "/")
    if not os.path.isabs(path):
        return path
    return path.removeprefix(os.path.abspath(root).replace("\\", "/").rstrip("/") + "/")


def portable(name: str) -> str:
    """A file's path that any text may hold: bytes that are no UTF-8 as escapes."""
    try:
        return os.fsencode(name).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # an escape of a label file that stands for no byte
        return name


def image_size(width: Any, height: Any) -> tuple[int, int]:
    """Return the size of an image that a file states as numbers or text.

    Raises:
        ValueError: No image has this size.
    """
    try:
        size = int(width), int(height)
    except (OverflowError, TypeError, ValueError):
        size = 0, 0
    if not 0 < min(size) <= max(size) < LARGEST_SIDE:
        raise ValueError(f"its width is {width!r:.20} and its height {height!r:.20}")
    return size


def no_labels(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No point, none hidden and no box."""
    return np.full((count, 2), np.nan), np.zeros(count, bool), np.full(4, np.nan)


def shortest(values: np.ndarray, exact: np.ndarray, back: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The numbers `exact` (float64) with as few decimals as `back` still turns into the same float32 `values`."""
    found = exact.copy()
    for digits in range(9, -1, -1):
        few = exact.round(digits)
        np.copyto(found, few, where=back(few).astype(np.float32) == values)
    return found


def label_rows(table: FaceTable) -> Iterator[list[list[float]]]:
    """Each face's K points, NaN where there is no label."""
    for start in range(0, len(table), CHUNK):
        rows = slice(start, start + CHUNK)
        points = np.where(table.labelled[rows, :, None], table.points[rows], np.nan).astype(np.float32)
        yield from shortest(points, points.astype(np.float64), lambda few: few).tolist()


def number_text(value: float) -> str:
    """A number without a needless point: dlib reads whole numbers alone."""
    return f"{value:.0f}" if value.is_integer() else repr(value)


def new_file(path: Path) -> TextIO:
    """A text file to write that must not be there yet: what is there may be a link to an image of the set's own."""
    return path.open("x", encoding="utf-8", newline="")


def subsets_of(table: FaceTable) -> list[list[str]]:
    """The subsets of each face."""
    return [[name for name, mask in table.subsets.items() if mask[i]] for i in range(len(table))]


def note_skipped(path: Path, count: int, kind: str) -> None:
    """Print how many entries of a file are not read."""
    if count:
        print(f"note: {path}: skipped {count} {kind}", file=sys.stderr)


def has_box(table: FaceTable) -> np.ndarray:
    """(N,) bool, which faces have a box of the set's own."""
    return np.isfinite(table.box).all(1)
