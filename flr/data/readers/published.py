"""What readers of published datasets share: a missing dataset, a file of points a face, an incomplete copy."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from flr.data.table import FaceTable
from flr.errors import UserError


def require(root: Path, places: Sequence[str], get: str, every: bool = False) -> None:
    """Check that one of `places` exists under the root of a dataset, or every one; `get` says how to obtain it.

    Raises:
        UserError: They do not exist.
    """
    missing = [place for place in places if not os.path.lexists(root / place)]
    if len(missing) > (0 if every else len(places) - 1):
        found = f"none of {', '.join(missing)} is in it" if root.is_dir() else "there is no such folder"
        raise UserError(f"{root}: {found}; {get}, and set data.root=DIR or the variable FLR_DATA")


def stack_points(faces: Iterable[tuple[np.ndarray, str]], count: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return the points (N, count, 2) of N faces, and face -> its fault, from the points and the fault of each."""
    points, faults = [], {}
    for face, (of_face, fault) in enumerate(faces):
        points.append(of_face)
        if fault:
            faults[face] = fault
    return np.array(points).reshape(-1, count, 2), faults


def with_counts(table: FaceTable, official: Mapping[str, int]) -> FaceTable:
    """Append the number of faces of each split to a table's form, unless all are the official numbers."""
    counts = {split: int((table.split == split).sum()) for split in official}
    if counts == official:
        return table
    text = "|".join(f"{split}:{count}" for split, count in counts.items())
    return dataclasses.replace(table, form=f"{table.form}[{text}]")
