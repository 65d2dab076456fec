"""Text tables for the terminal and Markdown, and rows as CSV files."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flr.files import write_file, writing


class TextTable(NamedTuple):
    """A table of text.

    Attributes:
        head: The column names.
        rows: One list of cells per row, as long as `head`.
    """

    head: list[str]
    rows: list[list[str]]


MAX_WIDTH = 40  # characters of a cell, above which its column wraps
NUMBER = re.compile(r"([-+]?[\d.,]+([eE][-+]?\d+)?( ?%| ms|\b)|-|$)(?![\w-])")  # also an interval or nothing


def print_table(table: TextTable) -> None:
    """Print a table: as wide as the terminal at most, and in a pipe or file so wide that nothing is split."""
    # rich takes a tenth of a second, and most commands print no table.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown, needed = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False), 1
    for head, *cells in zip(table.head, *table.rows, strict=True):
        width = max(len(head), *map(len, cells), 0)
        shown.add_column(
            head,
            justify="right" if all(NUMBER.match(cell) for cell in cells) else "left",
            overflow="fold",
            no_wrap=width <= MAX_WIDTH and not console.is_terminal,
        )
        needed += min(width, MAX_WIDTH) + 3
    for row in table.rows:
        shown.add_row(*map(Text, row))
    if not console.is_terminal:
        console.width = max(console.width, needed)
    console.print(shown)


def markdown_table(table: TextTable) -> str:
    """Return a table as Markdown."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (table.head, *table.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, at least one and all with the same keys, as a CSV file.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
    """
    with writing(path) as partial_file, partial_file.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def report_tables(
    file: Path, title: str, tables: Mapping[str, TextTable], rows: Sequence[Mapping[str, Any]], notes: str = ""
) -> None:
    """Print tables under their headings; write them as Markdown, and the rows behind them as CSV.

    Args:
        file: The CSV; the Markdown is next to it.
        title: Title of the Markdown.
        tables: Heading -> table.
        rows: See `write_csv`.
        notes: Text after the tables.
    """
    text = f"# {title}\n"
    for heading, table in tables.items():
        print(heading)
        print_table(table)
        text += f"\n## {heading}\n\n{markdown_table(table)}"
    write_csv(file, rows)
    write_file(file.with_suffix(".md"), text + notes)
