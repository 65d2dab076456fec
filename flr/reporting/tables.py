"""Tables of text for the terminal, Markdown and CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flr.files import writing


class TextTable(NamedTuple):
    """A table of words, for the terminal, Markdown and HTML."""

    head: list[str]
    rows: list[list[str]]


def print_table(grid: TextTable) -> None:
    """A table in the terminal."""

    table = Table()
    for i, name in enumerate(grid.head):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def markdown(grid: TextTable) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(grid.head) - 1)]
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (grid.head, *grid.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one form, at least one, as a CSV file."""

    with writing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
