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
HEADS = ((6, 5, 1), (6, 5, 16))  # those of a matrix's first three: 32-bit integers twice, then 8-bit integers or UTF-8
CELLS, TEXT, NUMBERS = 1, 4, range(6, 16)  # classes of matrices
COMPLEX = 0x800  # a flag
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
    """Check that a matrix is what SciPy will read.

    Its elements are two words of flags, the sides, the name, and the content: a matrix for each cell, or an element of numbers
    or text, and another one for the imaginary parts of complex numbers.

    Args:
        data: The matrix.
        order: Order of its bytes, for `struct`.
        names: Variables that SciPy will read, so that others are not checked; empty for a cell, which is always checked.
        depth: Levels of cells that may be inside.

    Raises:
        ValueError: Its elements are not those that its class and size state.
    """
    if not data and not names:
        return  # an empty cell
    elements = list(_elements(data, order))
    kinds, contents = [kind for kind, _ in elements], [content for _, content in elements]
    if tuple(kinds[:3]) not in HEADS or len(contents[0]) != 8 or len(contents[1]) % 4:
        raise ValueError("a variable has no class, size and name")
    flags, sides, name, *content = contents
    if names and bytes(name) not in names:
        return
    (flag_bits,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    matrix_class = flag_bits & 0xFF
    if matrix_class == CELLS and depth:
        sound = len(content) == math.prod(shape) and set(kinds[3:]) <= {MATRIX}
        for cell in content if sound else ():
            _check_matrix(cell, order, (), depth - 1)
    else:
        parts = 2 if flag_bits & COMPLEX else 1
        sound = matrix_class in (TEXT, *NUMBERS) and len(content) == parts and set(kinds[3:]) <= DATA
    if not sound:
        raise ValueError("a variable is not what its class and size state")
