"""Delimited text in the forms that people have it: any line ends, a byte-order mark, commas or blanks."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]

from flr.errors import UserError, nearest
from flr.files import opened

if TYPE_CHECKING:
    import pandas

MAX_NUMBER = 1e9  # no coordinate of an image; sums and products of smaller numbers are finite in float32
MAX_BYTES = 2_000_000_000  # CelebA's largest text is 26 MB
MAX_YAML = 200_000  # characters; a scheme of a thousand points takes a tenth
CHUNK = 4096  # lines that are in memory as text


def to_number(text: str) -> float:
    """Convert text to a number whose absolute value is below `MAX_NUMBER`.

    Raises:
        ValueError: The text is not such a number.
    """
    try:
        value = float(text) if "_" not in text else float("")  # float takes 1_0 for 10
    except ValueError:
        raise ValueError(f"'{text[:40]}' is not a number") from None
    if not abs(value) < MAX_NUMBER:  # so written, NaN is caught too
        raise ValueError(f"'{text[:40]}' is not a finite number below {MAX_NUMBER:g}")
    return value


def to_numbers(cells: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Convert N cells to (N,) float64, NaN where one is empty or invalid, and row -> reason of the invalid ones."""
    values, faults = np.full(len(cells), np.nan), {}
    for row, cell in enumerate(cells):
        try:
            values[row] = to_number(cell) if cell else np.nan
        except ValueError as error:
            faults[row] = str(error)
    return values, faults


def read_text(path: Path) -> str:
    """Read a whole text file in UTF-8, with or without a byte-order mark; other bytes become escapes.

    Raises:
        UserError: It cannot be read, or is a web page, UTF-16 or binary.
    """
    try:
        with opened(path, MAX_BYTES) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix it or fetch it again") from error
    refuse_foreign(path, data)
    return data.decode("utf-8-sig", errors="surrogateescape")


class _Plain(yaml.BaseLoader):
    """YAML of text, lists and mappings: no tag makes an object, no word is taken for a truth value or a date."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few of them can stand for more than memory holds
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key occurs twice in one mapping")
        return mapping


def read_plain(path: Path, kind: str) -> Any:
    """Read a small YAML file as text, lists and mappings; `kind` names in an error what it should have been.

    Raises:
        UserError: It cannot be read, or is too long, too deep or not YAML.
    """
    text = read_text(path)
    if len(text) > MAX_YAML:
        raise UserError(f"{path}: {len(text):,} characters are no {kind}; name another file")
    try:
        return yaml.load(text, _Plain)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep for a {kind}; fix it") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no sound YAML ({error}); fix it") from error


def refuse_foreign(path: Path, data: bytes) -> None:
    """Reject a file whose first bytes are not delimited text.

    Raises:
        UserError: It is a web page, UTF-16 or binary.
    """
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")):
        raise UserError(f"{path}: a web page, not the file itself; fetch it again")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: UTF-16 text; save it as UTF-8")
    if b"\0" in data[:4096]:
        raise UserError(f"{path}: a binary file, not text; fetch it again")


@dataclass(frozen=True, eq=False)
class Sheet:
    """N rows under named columns.

    Attributes:
        path: File.
        columns: Names in the header.
        cells: N rows; its columns, numbered from 0, hold text (object), or float64 with NaN for an empty or invalid cell.
        lines: Line of each row in the file, counted from 1.
        faults: Column of numbers -> row -> reason of its invalid cells.
    """

    path: Path
    columns: Sequence[str]
    cells: "pandas.DataFrame"
    lines: Sequence[int]
    faults: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    def text(self, column: str) -> list[str]:
        """Return the cells of a column of text.

        Raises:
            UserError: There is no such column.
        """
        cells: list[str] = self.cells[self.place(column)].tolist()
        return cells

    def place(self, column: str) -> int:
        """Return the number of a column, from 0.

        Raises:
            UserError: There is no such column, or there are two.
        """
        if self.columns.count(column) != 1:
            twice = column in self.columns
            found = f"two columns named '{column}'" if twice else f"no column '{column}'{nearest(column, self.columns)}"
            raise UserError(f"{self.path}: {found}; fix its first line")
        return self.columns.index(column)

    def numbers(self, columns: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """Return cells as numbers.

        Returns:
            (N, len(columns)) float64, NaN where a cell is empty or invalid; and row -> the first invalid cell in it.

        Raises:
            UserError: There is no such column.
        """
        values, found = np.empty((len(self), len(columns))), dict[int, str]()
        for at, place in enumerate([self.place(column) for column in columns]):
            cells, faults = self.cells[place], self.faults.get(place, {})
            values[:, at], faults = (cells, faults) if cells.dtype == float else to_numbers(cells.tolist())
            for row, reason in faults.items():
                found.setdefault(row, f"{self.path.name} line {self.lines[row]}: {reason}")
        return values, found


def read_sheet(
    path: Path, header: Sequence[str] | None = None, counted: bool = False, text: Collection[str] | None = None
) -> Sheet:
    """Read a table of text; its first line tells the delimiter: comma, semicolon, tab, else blanks.

    Args:
        path: File.
        header: Columns of a file that names none itself; None where its first line does.
        counted: Whether a line with the number of rows may come first.
        text: Columns of text, so that the others are read as numbers, in a tenth of the time; None for text alone.

    Raises:
        UserError: See `read_text`; or a row has another number of cells than the header, or there is no row or another
            number of rows than it states.
    """
    import pandas  # not above: it starts slowly, and `flr predict`, which imports this module, reads no table

    found = _lines(path)
    number, first = next(found, (0, ""))
    claimed = int(first) if counted and first.strip().isdecimal() and len(first) < 20 else None
    if claimed is not None:
        number, first = next(found, (0, ""))
    delimiter = next((mark for mark in ",;\t" if mark in first), None)
    columns = list(header or _cells(path, number, first, delimiter))
    found = chain([(number, first)], found) if header and number else found
    lines: list[int] = []
    faults: dict[int, dict[int, str]] = {}
    chunks = []
    while chunk := list(islice(found, CHUNK)):
        counts = [_count(path, *line, delimiter) for line in chunk]
        if not (header or lines) and len(columns) + 1 == mode(counts):
            columns = ["", *columns]  # the header does not name the column of names: CelebA, and tables written by R
        for (number, _), count in zip(chunk, counts, strict=True):
            if count != len(columns):
                fix = "fix it (quote a cell that holds the delimiter) or fetch the file again"
                raise UserError(f"{path} line {number}: {count} cells, not {len(columns)}; {fix}")
        numeric = [k for k, name in enumerate(columns) if text is not None and name not in text]
        cells, invalid = _parse([line for _, line in chunk], delimiter, len(columns), numeric)
        for column, rows in invalid.items():
            faults.setdefault(column, {}).update({len(lines) + row: reason for row, reason in rows.items()})
        lines += [number for number, _ in chunk]
        chunks.append(cells)
    if not lines:
        raise UserError(f"{path}: no row in it; fetch it again")
    if claimed not in (None, len(lines)):
        fix = "fetch it again, or write the true count there"
        raise UserError(f"{path}: its first line says {claimed} rows, {len(lines)} are there; {fix}")
    return Sheet(path, columns, pandas.concat(chunks, ignore_index=True), lines, faults)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank."""
    try:
        with opened(path, MAX_BYTES) as file:
            refuse_foreign(path, file.read(4096))
            file.seek(0)
            stream = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
            yield from ((number, line.strip("\n")) for number, line in enumerate(stream, 1) if line.strip())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix it or fetch it again") from error


def _cells(path: Path, number: int, line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    try:
        (cells,) = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise UserError(f"{path} line {number}: {error}; fix its quotes, and put each row on one line") from error
    return [cell.strip() for cell in cells]


def _count(path: Path, number: int, line: str, delimiter: str | None) -> int:
    if delimiter and '"' not in line:
        return line.count(delimiter) + 1
    return len(_cells(path, number, line, delimiter))


def _parse(
    lines: Sequence[str], delimiter: str | None, count: int, numeric: Sequence[int]
) -> tuple["pandas.DataFrame", dict[int, dict[int, str]]]:
    """Parse rows of `count` cells; return also column -> row -> reason of the invalid cells of numeric columns."""
    try:
        return _read_cells(lines, delimiter, count, numeric), {}
    except ValueError:
        cells, faults = _read_cells(lines, delimiter, count, []), {}
    for column in numeric:  # slowly, to name the invalid cells
        cells[column], faults[column] = to_numbers(cells[column].tolist())
    return cells, faults


def _read_cells(lines: Sequence[str], delimiter: str | None, count: int, numeric: Sequence[int]) -> "pandas.DataFrame":
    """Parse rows of `count` cells by pandas: numeric columns to float64, NaN where a cell is empty, and others to text.

    Raises:
        ValueError: A cell of a numeric column may not be a number below `MAX_NUMBER`.
    """
    import pandas  # see `read_sheet`

    rows = lines if delimiter else ["\t".join(line.split()) for line in lines]
    body = "\ufeff" + "\n".join(rows)  # pandas strips one byte-order mark, which a cell may begin with
    lower = body.lower()
    if numeric and ("true" in lower or "false" in lower):
        raise ValueError("pandas takes a column of truth values for numbers")
    cells = pandas.read_csv(
        io.StringIO(body), sep=delimiter or "\t", quoting=csv.QUOTE_MINIMAL if delimiter else csv.QUOTE_NONE,
        header=None, names=range(count), index_col=False, skipinitialspace=True, skip_blank_lines=False,
        dtype={column: float if column in numeric else object for column in range(count)}, low_memory=False,
        keep_default_na=False, na_values={column: [""] for column in numeric}, encoding_errors="surrogateescape",
    )  # fmt: skip
    if (cells[numeric].abs() >= MAX_NUMBER).any(axis=None):
        raise ValueError("a number is too large")
    for column in set(range(count)).difference(numeric):
        cells[column] = pandas.Series([cell.strip() for cell in cells[column]], dtype=object)
    return cells
