"""Text files of one face's points, a point a line, and the error of a dataset that is not where it should be."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flr.data.formats.text import to_number
from flr.errors import UserError
from flr.files import opened

LARGEST = 2**20  # bytes


def read_points(path: Path, count: int, counted: bool = False) -> tuple[np.ndarray, str]:
    """Read x and y of `count` points, whose number is on the first line where `counted`.

    Returns:
        (count, 2) float64, and why they are invalid; empty where nothing is known against them.
    """
    try:
        with opened(path, LARGEST) as file:
            rows = [line.split() for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
        if counted:
            first, *rows = rows or [[]]
            if first != [str(count)]:
                raise ValueError(f"its first line is {' '.join(first)[:40]!r}, not {count}")
        if len(rows) != count or any(len(row) != 2 for row in rows):
            raise ValueError(f"it has {len(rows)} lines, not {count} of x and y")
        return np.array([[to_number(word) for word in row] for row in rows]), ""
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValueError as error:  # also of the decoding
        reason = str(error)
    return np.full((count, 2), np.nan), f"{path.name}: {reason}"


def require(root: Path | None, places: Sequence[str], get: str) -> Path:
    """Return the root of a dataset, of which one of `places` exists.

    Args:
        root: The root that the config names.
        places: Paths under it.
        get: How to get the dataset.

    Raises:
        UserError: There is none of them.
    """
    if root is None:
        raise UserError("data.root is null; set data.root=DIR")
    if not any(os.path.lexists(root / place) for place in places):
        found = f"none of {', '.join(places)} is in it" if root.is_dir() else "there is no such folder"
        raise UserError(f"{root}: {found}; {get}, and set data.root=DIR or the variable FLR_DATA")
    return root
