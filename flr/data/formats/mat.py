"""Matlab's files of version 5 to 7 (https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf), by SciPy after a check.

SciPy takes an element's kind as an index into a table of C without looking at it, so a damaged file can end the process.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from flr.files import opened

HEADER = 128  # bytes; the last two give the order of bytes
MATRIX, COMPRESSED = 14, 15
KINDS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, MATRIX, COMPRESSED, 16, 17, 18}
DEEPEST = 8  # matrices in each other


def read_mat(path: Path, names: Sequence[str], most: int) -> dict[str, Any]:
    """Read the variables `names`, as far as there are any, of a file of at most `most` bytes.

    Raises:
        OSError: It cannot be read.
        Exception: It is damaged; SciPy has no kind of its own for that.
    """
    with opened(path, most) as file:
        data = file.read()
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is not a file of Matlab 5 to 7")
    _check(memoryview(data)[HEADER:], order, most, DEEPEST)
    found: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=list(names))
    return found


def _check(data: memoryview, order: str, most: int, depth: int) -> None:
    """Raise ValueError unless the elements of a file or matrix have known kinds and lie in it."""
    at = 0
    while at < len(data):
        if len(data) < at + 8:
            raise ValueError("it was cut inside an element")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # up to 4 bytes are stored in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        end = start + size
        if kind not in KINDS or end > len(data) or (start == at + 4 and size > 4) or not depth:
            raise ValueError(f"an element of kind {kind} and {size} bytes does not fit")
        if kind == MATRIX:
            _check(data[start:end], order, most, depth - 1)
        elif kind == COMPRESSED:
            _check(memoryview(zlib.decompressobj().decompress(data[start:end], most)), order, most, depth - 1)
        at = end if kind == COMPRESSED else -(-end // 8) * 8
