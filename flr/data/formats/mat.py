"""Matlab's files of version 5 to 7 (https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf), by SciPy after a check.

SciPy takes an element's kind as an index into a table of C without looking at it, and reads on past the end of a matrix, so a
damaged file can end the process.
"""

import io
import math
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from flr.files import opened

HEADER = 128  # bytes; the last two give the order of bytes
MATRIX, COMPRESSED = 14, 15  # kinds of elements
DATA = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}  # those of numbers and text
CELLS, TEXT, NUMBERS = 1, 4, range(6, 16)  # classes of matrices
COMPLEX = 0x800
DEEPEST = 8  # cells in each other


def read_mat(path: Path, names: Sequence[str], most: int) -> dict[str, Any]:
    """Read the variables `names`, as far as there are any, of a file of at most `most` bytes: numbers, text or cells of them.

    Raises:
        OSError: It cannot be read.
        Exception: It is damaged; SciPy has no kind of its own for that.
    """
    with opened(path, most) as file:
        data = file.read()
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is not a file of Matlab 5 to 7")
    for kind, content in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            inner = memoryview(zlib.decompressobj().decompress(content, most))
            ((kind, content),) = _elements(inner, order)
        if kind != MATRIX:
            raise ValueError(f"an element of kind {kind} is no variable")
        _check_matrix(content, order, {name.encode() for name in names}, DEEPEST)
    found: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=list(names))
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the kinds and the contents of elements; raise ValueError if one does not fit."""
    at = 0
    while at < len(data):
        if len(data) < at + 8:
            raise ValueError("it was cut inside an element")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # up to 4 bytes are stored in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        end = start + size
        if kind not in {*DATA, MATRIX, COMPRESSED} or end > len(data) or (start == at + 4 and size > 4):
            raise ValueError(f"an element of kind {kind} and {size} bytes does not fit")
        yield kind, data[start:end]
        at = end if kind == COMPRESSED else -(-end // 8) * 8


def _check_matrix(data: memoryview, order: str, names: Collection[bytes], depth: int) -> None:
    """Raise ValueError unless a matrix of one of `names`, or of any name where there are none, is what SciPy will read."""
    kinds, parts = zip(*_elements(data, order), strict=True) if data else ((), ())
    if not data and not names:
        return  # an empty cell
    if kinds[:3] not in ((6, 5, 1), (6, 5, 16)) or len(parts[0]) != 8 or len(parts[1]) % 4:
        raise ValueError("a variable has no class, size and name")
    if names and bytes(parts[2]) not in names:
        return
    (flags,), sides = (
        struct.unpack_from(f"{order}I", parts[0]),
        struct.unpack(f"{order}{len(parts[1]) // 4}i", parts[1]),
    )
    of = flags & 0xFF
    if of == CELLS and len(kinds) - 3 == math.prod(sides) and set(kinds[3:]) <= {MATRIX} and depth:
        for part in parts[3:]:
            _check_matrix(part, order, (), depth - 1)
    elif not (of == TEXT or of in NUMBERS) or len(kinds) != 4 + bool(flags & COMPLEX) or not DATA.issuperset(kinds[3:]):
        raise ValueError("a variable is not what its class and size state")
