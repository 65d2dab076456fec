"""``labels.csv``: a row a face; and folders of images with .pts files next to them."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from math import isnan
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flr.data.formats.pts import pair_files, read_pair
from flr.data.formats.records import (
    BOX,
    SPLITS,
    FaceColumns,
    FaceRecord,
    has_box,
    label_rows,
    no_labels,
    shortest,
    under,
)
from flr.data.formats.text import read_sheet
from flr.data.table import UNLABELLED, FaceTable
from flr.errors import UserError, nearest
from flr.landmarks.scheme import Scheme

TEXT = ("image", "split", "group", "name")
PREDICTED = ("seconds", "face", "score", "uncertain")  # columns that a prediction adds, and that are not read


def read_columns(root: Path, path: Path, split: str | None, scheme: Scheme) -> FaceColumns:
    """Read the faces of a ``labels.csv``; `split` is that of all of them, where it is known.

    Raises:
        UserError: It is not such a file, or does not fit the scheme.
    """
    sheet = read_sheet(path, text=TEXT)
    axes = _axes(scheme)
    visible = {f"{name}_visible": k for k, name in enumerate(scheme.names) if f"{name}_visible" in sheet.columns}
    subsets = [column for column in sheet.columns if column.startswith("subset_")]
    _check_columns(path, sheet.columns, {*TEXT, *PREDICTED, *BOX, *axes, *visible, *subsets})
    count, faults = len(sheet), dict[int, str]()

    def numbers(columns: Sequence[str]) -> np.ndarray:
        values, found = sheet.numbers(columns)
        for i, fault in found.items():
            comma = "; write a decimal point, no comma" if re.search(r"'-?\d+,\d+'", fault) else ""
            faults.setdefault(i, fault + comma)
        return values

    def add_faults(mask: Any, reason: str) -> None:
        for i in np.flatnonzero(mask).tolist():
            faults.setdefault(i, f"{path.name} line {sheet.lines[i]}: {reason}")

    in_pts = not set(axes).intersection(sheet.columns)
    points = np.full((count, len(scheme), 2), np.nan) if in_pts else numbers(axes).reshape(count, -1, 2)
    add_faults((np.isnan(points).sum(-1) == 1).any(1), "a point has x or y alone")
    flags = numbers([*visible, *subsets])
    add_faults(~(np.isin(flags, (0, 1)) | np.isnan(flags)).all(1), "visible and subset columns hold 0 or 1")
    hidden = np.zeros((count, len(scheme)), bool)
    hidden[:, list(visible.values())] = flags[:, : len(visible)] == 0
    box = numbers(BOX) if set(BOX).intersection(sheet.columns) else np.full((count, 4), np.nan)
    add_faults(np.isin(np.isnan(box).sum(1), (1, 2, 3)), f"its box lacks one of {', '.join(BOX)}")
    add_faults((box[:, 2:] <= box[:, :2]).any(1), "its box has no size")
    image = sheet.text("image")
    written, group, name = (sheet.text(key) if key in sheet.columns else [""] * count for key in TEXT[1:])
    where = [f"{path}: line {line}" for line in sheet.lines]
    splits = [word or split or "train" for word in written]
    for i, word in enumerate(splits):
        if word not in SPLITS or word != (split or word):
            raise UserError(f"{where[i]}: its split is '{word}', not {split or ', '.join(SPLITS)}; fix it")
    for i in range(count) if in_pts else ():
        points[i], fault = _points_beside(root, image[i], splits[i], len(scheme))
        if fault:
            faults.setdefault(i, f"{path.name} line {sheet.lines[i]} has no points, and {fault}")
    members = {key.removeprefix("subset_"): flags[:, len(visible) + k] == 1 for k, key in enumerate(subsets)}
    return FaceColumns(where, image, splits, points, hidden, box, group, name, members, faults, first_pixel=int(in_pts))


def _axes(scheme: Scheme) -> list[str]:
    return [f"{name}_{axis}" for name in scheme.names for axis in "xy"]


def _check_columns(path: Path, columns: Sequence[str], known: set[str]) -> None:
    for column in columns:
        if not column:
            raise UserError(f"{path}: a column has no name; name it or remove it, and write no decimal commas")
        if column not in known:
            raise UserError(f"{path}: unknown column '{column}'{nearest(column, known)}; rename it or remove it")


def _points_beside(root: Path, image: str, split: str, count: int) -> tuple[np.ndarray, str]:
    """Return the points (count, 2) of the .pts next to an image; NaN where there is none, with the fault if it is one."""
    path, labels = PurePosixPath(under(root, image)), list[Path]()
    outside = path.is_absolute() or ".." in path.parts or not path.name  # which `make_table` reports
    if not outside:
        labels = [root / path.with_suffix(kind) for kind in (".pts", ".PTS")]
        labels = [label for label in labels if os.path.exists(label)][:1]
    if outside or (not labels and split == UNLABELLED):
        return np.full((count, 2), np.nan), ""
    return read_pair([root / path], labels, count)


def read_folder(root: Path, folder: Path, split: str | None, count: int) -> Iterator[FaceRecord]:
    """Read a folder of images with .pts files next to them; without `split`, one of train, val and test folders."""
    parts = [(split, folder)] if split else [(name, folder / name) for name in SPLITS if os.path.isdir(folder / name)]
    if not parts:
        raise UserError(f"{folder}: none of the folders {', '.join(SPLITS)} is in it; sort images and .pts into them")
    for own, part in parts:
        for place in _folders(part):
            for images, labels in pair_files(place):
                (points, hidden, box), fault = no_labels(count), ""
                if labels or own != UNLABELLED:
                    points, fault = read_pair(images, labels, count)
                image = Path(os.path.relpath((images or labels)[0], root)).as_posix()
                yield FaceRecord(str(place), image, own, points, hidden, box, fault=fault)


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it, each once wherever links lead."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, below, _ in os.walk(top, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(place))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


def csv_rows(table: FaceTable, points: bool) -> Iterator[list[Any]]:
    """Yield the lines of labels.csv, with or without the points' coordinates."""
    hidden, boxed = table.labelled & ~table.visible, has_box(table)
    some_hidden = np.flatnonzero(hidden.any(0)).tolist()
    subsets = {name: mask for name, mask in table.subsets.items() if mask.any()}
    axes = _axes(table.scheme) if points else []
    seen = [f"{table.scheme.names[k]}_visible" for k in some_hidden]
    edges = list(BOX) if boxed.any() else []
    yield ["image", "split", "group", "name", *axes, *seen, *edges, *(f"subset_{name}" for name in subsets)]
    boxes = shortest(table.box, table.box.astype(np.float64), lambda few: few).tolist()
    for i, marks in enumerate(label_rows(table)):
        row = [table.image[i], table.split[i], table.group[i], table.name[i]]
        if points:
            row += ["" if isnan(value) else value for mark in marks for value in mark]
        row += [int(not hidden[i, k]) for k in some_hidden]
        if edges:
            row += boxes[i] if boxed[i] else [""] * 4
        yield [*row, *(int(mask[i]) for mask in subsets.values())]


def prediction_rows(
    scheme: Scheme, faces: Iterable[tuple[Sequence[Any], Sequence[float], np.ndarray, Sequence[int]]]
) -> Iterator[list[Any]]:
    """Yield the lines of a prediction's CSV, which `read_columns` reads.

    Args:
        scheme: Scheme of the points.
        faces: Of each face the image and the values of `PREDICTED`, the edges of its box, its points (K, 2), and
            K flags whether each is visible, or none where the model gives no visibility.
    """
    faces = iter(faces)
    first = list(itertools.islice(faces, 1))
    seen = [f"{name}_visible" for name in scheme.names] if first and first[0][3] else []
    yield ["image", *PREDICTED, *BOX, *_axes(scheme), *seen]
    for values, box, points, visible in itertools.chain(first, faces):
        yield [*values, *(f"{value:.3f}" for value in (*box, *np.ravel(points))), *visible]
