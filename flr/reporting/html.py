"""Write a self-contained HTML page: all text is escaped, all images are inside."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1440px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 }
th, td { padding: .15em 1em .15em 0; vertical-align: top; border-bottom: 1px solid #ddd; text-align: left }
td:first-child { white-space: pre-wrap; color: #555 } img { max-width: 100%; margin: .5em 0 1.5em }
.note { background: #fff4d6; padding: .3em .8em; margin: .3em 0 }
figure { display: inline-block; margin: 0 1em 1em 0 } figure img { margin: 0; display: block } figcaption { color: #555 }
"""


def document(title: str, body: str) -> str:
    """Make a page of a title, plain text, and a body, HTML."""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{body}</html>\n"
    )


def embed(data: bytes, kind: str, text: str) -> str:
    """Embed an image file of a kind (``png``, ``jpeg``) with its alternative text."""
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def grid(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Make a table of plain text."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in rows)
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def notes(lines: Iterable[str]) -> str:
    """Highlight remarks."""
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)


def listed(lines: Sequence[str], most: int) -> str:
    """Make a list of plain text, of which the first `most` lines are shown and the others counted."""
    more = len(lines) - most
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:most])
    return f"<ul>{shown}</ul>" + (f"<p>and {more:,} more</p>" if more > 0 else "")
