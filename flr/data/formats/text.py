"""Delimited text as people have it: any line ends, a byte-order mark, commas or blanks; and numbers that are numbers."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]

from flr.errors import UserError, nearest
from flr.files import opened

LARGEST = float(np.finfo(np.float32).max)
MAX_BYTES = 2_000_000_000  # CelebA's largest text is 26 MB
MAX_YAML = 200_000  # characters; a scheme of a thousand points takes a tenth


def to_number(text: str) -> float:
    """A finite number that float32 can hold.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text) if "_" not in text else float("")  # float takes 1_0 for 10
    except ValueError:
        raise ValueError(f"'{text[:40]}' is not a number") from None
    if not abs(value) < LARGEST:  # so written, NaN is caught too
        raise ValueError(f"'{text[:40]}' is not a finite number")
    return value


def read_text(path: Path) -> str:
    """A whole text file in UTF-8, with or without a mark; bytes that are no UTF-8 come as escapes.

    Raises:
        UserError: it cannot be read, or is a web page, UTF-16 or binary.
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
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key stands twice in one mapping")
        return mapping


def read_plain(path: Path, kind: str) -> Any:
    """A small YAML file as text, lists and mappings; `kind` says in an error what it should have been.

    Raises:
        UserError: it cannot be read, or is too long, too deep or no YAML.
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
    """Stop where a file's first bytes are no text of ours.

    Raises:
        UserError: it is a web page, UTF-16 or binary.
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
        path: the file.
        columns: the header's names.
        rows: the cells of each row, as many as there are columns.
        lines: each row's line in the file, counted from 1.
        ragged: line -> what is wrong, of rows with another number of cells.
    """

    path: Path
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    ragged: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, column: str) -> list[str]:
        """The cells of a column.

        Raises:
            UserError: there is no such column.
        """
        place = self.place(column)
        return [row[place] for row in self.rows]

    def place(self, column: str) -> int:
        """Where a column stands, from 0.

        Raises:
            UserError: there is no such column, or there are two.
        """
        if self.columns.count(column) != 1:
            twice = column in self.columns
            found = f"two columns named '{column}'" if twice else f"no column '{column}'{nearest(column, self.columns)}"
            raise UserError(f"{self.path}: {found}; fix its first line")
        return self.columns.index(column)

    def numbers(self, columns: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """Cells as numbers.

        Returns:
            (N, len(columns)) float64, NaN where a cell is empty or at fault; and row -> the first fault in it.

        Raises:
            UserError: there is no such column.
        """
        places = [self.place(column) for column in columns]
        values = np.full((len(self.rows), len(places)), np.nan)
        faults: dict[int, str] = {}
        for at, place in enumerate(places):
            cells = [row[place] for row in self.rows]
            try:  # the whole column at once, where it is sound
                column = np.array(list(map(float, cells)))
            except ValueError:
                column = np.full(len(cells), np.nan)
            if (abs(column) < LARGEST).all() and "_" not in "".join(cells):
                values[:, at] = column
                continue
            for i, cell in enumerate(cells):
                try:
                    values[i, at] = to_number(cell) if cell else np.nan
                except ValueError as error:
                    faults.setdefault(i, f"{self.path.name} line {self.lines[i]}: {error}")
        return values, faults


def read_sheet(path: Path, header: Sequence[str] | None = None, counted: bool = False) -> Sheet:
    """A table of text; its delimiter (comma, semicolon, tab, else blanks) is told from its first line.

    Args:
        path: the file.
        header: the columns of a file that names none itself; None where its first line does.
        counted: whether a line with the number of rows may come first.

    Raises:
        UserError: see `read_text`; or it holds no row, or its count is not that of its rows.
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    count = kept[0][1].strip() if counted and kept else ""
    claimed = int(count) if count.isdecimal() and len(count) < 20 else None
    kept = kept[claimed is not None :]
    if not kept:
        raise UserError(f"{path}: no row in it; fetch it again")
    first = kept[0][1]
    delimiter = next((mark for mark in ",;\t" if mark in first), None)
    texts = [line for _, line in kept]
    try:
        if delimiter:
            cells = [[cell.strip() for cell in row] for row in csv.reader(texts, delimiter=delimiter, strict=True)]
        else:
            cells = [text.split() for text in texts]
    except csv.Error as error:
        raise UserError(f"{path}: {error}; fix its quotes") from error
    if len(cells) != len(kept):
        raise UserError(f"{path}: a quoted cell runs over a line's end; put each row on one line")
    columns = list(header) if header is not None else cells.pop(0)
    if header is None and cells and len(columns) + 1 == mode(map(len, cells)):
        columns = ["", *columns]  # the rows' names have a column, but that has no name: CelebA, and tables written by R
    numbers = [number for number, _ in kept[header is None :]]
    rows, places, ragged = [], [], {}
    for number, row in zip(numbers, cells, strict=True):
        if len(row) == len(columns):
            rows.append(row)
            places.append(number)
        else:
            ragged[number] = f"{path.name} line {number}: {len(row)} cells, not {len(columns)}"
    if not rows:
        reason = next(iter(ragged.values()), f"{path.name}: no row in it")
        raise UserError(f"{path}: no usable row ({reason}); fetch it again")
    if claimed is not None and claimed != len(rows) + len(ragged):
        raise UserError(
            f"{path}: its first line says {claimed} rows, {len(rows) + len(ragged)} are there; fetch it again, or put the "
            "true count there"
        )
    return Sheet(path, columns, rows, places, ragged)
