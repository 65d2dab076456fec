"""Text files of one face's points, a point a line."""

from pathlib import Path

import numpy as np

from flr.data.formats.text import to_number
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
