"""Write a self-contained HTML page: all text is escaped, all images are inside."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1440px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2, h3, p { overflow-wrap: anywhere } .scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .5em 0 }
th, td { padding: .15em 1em .15em 0; vertical-align: top; border-bottom: 1px solid #ddd; text-align: left }
th { white-space: nowrap } td:first-child { white-space: pre-wrap } img { max-width: 100%; margin: .5em 0 1.5em }
.note { background: #fff4d6; padding: .3em .8em; margin: .3em 0 }
figure { display: inline-block; margin: 0 1em 1em 0 } figure img { margin: 0; display: block } figcaption { color: #555 }
th.sorts { cursor: pointer } svg { max-width: 100%; height: auto }
@media print { body { max-width: none; margin: 0; font-size: 11px } tr, figure, svg { break-inside: avoid } }
"""
# Sorts a table by the column whose head is clicked, by its first number where it has one; the second click reverses.
SORT = """
for (const head of document.querySelectorAll("th")) {
  head.className = "sorts"; head.title = "sort"
  head.onclick = () => {
    const table = head.closest("table"), column = head.cellIndex, down = head.dataset.down = -(head.dataset.down || -1)
    const units = {k: 1e3, M: 1e6, G: 1e9}
    const value = row => {
      const text = row.cells[column].textContent, found = text.match(/^([+-]?[\\d.]+)(?: ([kMG]))?/)
      return found ? found[1] * (units[found[2]] || 1) : text
    }
    const compare = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1
    const rows = [...table.rows].slice(1).sort((a, b) => down * compare(value(a), value(b)))
    rows.forEach(row => row.parentNode.append(row))
  }
}
"""
Cell = str | tuple[str, str]  # a text, or a text and the address that it links to


def document(title: str, body: str, sortable: bool = False) -> str:
    """Make a page of a title, plain text, and a body, HTML.

    Args:
        title: Plain text.
        body: HTML.
        sortable: Whether a click on a column's head sorts its table, the only script of a page.
    """
    name = html.escape(title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{body}{f'<script>{SORT}</script>' if sortable else ''}</html>\n"
    )


def embed(data: bytes, kind: str, text: str) -> str:
    """Embed an image file of a kind (``png``, ``jpeg``) with its alternative text."""
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def grid(rows: Iterable[Sequence[Cell]], head: Sequence[str] = ()) -> str:
    """Make a table of plain text and links."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)] if head else []
    lines += ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    return f'<a href="{html.escape(cell[1])}">{html.escape(cell[0])}</a>'


def notes(lines: Iterable[str]) -> str:
    """Highlight remarks."""
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def listed(lines: Sequence[str], most: int) -> str:
    """Make a list of plain text, of which the first `most` lines are shown and the others counted."""
    more = len(lines) - most
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:most])
    return f"<ul>{shown}</ul>" + (f"<p>and {more:,} more</p>" if more > 0 else "")
