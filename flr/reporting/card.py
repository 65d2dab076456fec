"""The card of a prepared dataset: JSON, an HTML page, contact sheets, and a table for the terminal."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flr.augment.device import Augment
from flr.data.datamodule import FaceData
from flr.files import write_file, write_json
from flr.landmarks.draw import draw_face, sheet
from flr.reporting.figures import jpeg
from flr.reporting.html import document, embed, grid, listed, notes
from flr.reporting.tables import TextTable, print_table

SIDE = 168  # pixels of a face on a sheet
FACES = 48  # on the contact sheet
AUGMENTED = (6, 8)  # faces, and draws of each, on the sheet of augmented faces
LISTED = 200  # skipped faces that the page names


def write_card(data: FaceData, folder: Path | None, cards: Path) -> tuple[dict[str, Any], Path]:
    """Write the card of a prepared dataset.

    Args:
        data: The dataset, prepared.
        folder: Where to write; None for a folder in `cards` named after the data.
        cards: The folder of all cards.

    Returns:
        The card, and its folder with ``card.json``, ``card.html`` and the images.
    """
    card = {"set": data.name, "root": str(data.root), "protocol": data.protocol.name, **data.card}
    name = f"{data.name}-{card['fingerprint']}-{data.crop.policy}".replace(":", ".")
    folder = (folder or cards / name).absolute()
    images = dict(sheets(data))
    write_json(folder / "card.json", card)
    for file, content in {**images, "card.html": page(card, images).encode()}.items():
        write_file(folder / file, content)
    return card, folder


def sheets(data: FaceData) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a card by file name: faces, augmented faces if there is augmentation, and those of each finding."""
    table = data.prepare()
    rows = np.flatnonzero(table.labelled.any(1))
    some = rows[np.linspace(0, len(rows) - 1, min(FACES, len(rows))).astype(int)]
    yield "faces.jpg", jpeg(sheet(_faces(data, some), columns=8))
    if data.augment != Augment():
        count, draws = AUGMENTED
        chosen = some[np.linspace(0, len(some) - 1, min(count, len(some))).astype(int)]
        augmented = [data.batch(torch.from_numpy(chosen), epoch) for epoch in range(draws)]
        low, high = data.pixels
        faces = [
            draw_face(
                ((batch.images[i].permute(1, 2, 0).numpy() - low) / (high - low) * 255).round().astype(np.uint8),
                batch.points[i].numpy(), None, batch.labelled[i].numpy(), SIDE,
            )
            for i in range(len(chosen)) for batch in augmented
        ]  # fmt: skip
        yield "augmented.jpg", jpeg(sheet(faces, columns=draws))
    place = {name: row for row, name in enumerate(table.name.tolist())}
    for title, names in data.card["examples"].items():
        found = np.array([place[name] for name in names], int)
        if len(found):
            yield f"{title}.jpg", jpeg(sheet(_faces(data, found), columns=8))


def _faces(data: FaceData, rows: np.ndarray) -> list[np.ndarray]:
    """Draw faces (n,) of a dataset with their points and splits."""
    table = data.prepare()
    return [
        draw_face(crop, data.labels[row], None, table.labelled[row], SIDE, str(table.split[row]))
        for crop, row in zip(data.store.crops(rows), rows, strict=True)
    ]


def facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a card, as (name, value) in the order of their interest."""
    same, twice, alike = (card["duplicates"][key] for key in ("same_picture", "labelled_twice", "look_alike"))
    missing = {name: count for name, count in card["not_labelled"].items() if count}
    hidden, out = sum(card["hidden"].values()), card["outside"]
    return [
        ("form", card["form"]),
        ("scheme", card["scheme"]),
        ("faces", _counts(card["faces"])),
        *((f"  {name}", _counts(counts)) for name, counts in card["subsets"].items()),
        ("images", f"{card['pictures']:,}"),
        ("image width", _spread(card["picture_size"]["width"])),
        ("image height", _spread(card["picture_size"]["height"])),
        ("face side", _spread(card["face_side"])),
        ("labels missing", f"{sum(missing.values()):,}, at {len(missing)} of the points" if missing else "none"),
        ("labels of hidden points", f"{hidden:,}" if hidden else "none marked"),
        ("points outside images", f"{out['points']:,} of {out['faces']:,} faces" if out["points"] else "none"),
        ("same image twice", _crossing(same["groups"], same["across_splits"])),
        ("same face labelled twice", _crossing(twice["pairs"], twice["across_splits"])),
        ("faces that look alike", _crossing(alike["pairs"], alike["across_splits"])),
        ("identities or photos", f"{card['identities']['groups']:,}"),
        ("mirror symmetry", f"{card['symmetry']['deviation']} box sides at {card['symmetry']['point']}"),
        ("skipped", f"{len(card['left_out']):,}"),
        ("fingerprint", card["fingerprint"]),
    ]


def _crossing(count: int, across: int) -> str:
    return f"{count:,}, {across:,} across splits" if count else "none"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "0"


def _spread(values: Mapping[str, float]) -> str:
    if not values:
        return "unknown"
    return f"{values['median']:,.0f} px ({values['min']:,.0f} to {values['max']:,.0f})"


def verdict(card: Mapping[str, Any], problems: Sequence[str]) -> str:
    """Report in a few lines whether one can train on a dataset: errors, warnings and counts."""
    counts = f"{_counts(card['faces'])} faces; {len(card['left_out']):,} skipped"
    errors, warnings = (f"{len(lines)} {word}{'s' * (len(lines) != 1)}" for lines, word in (
        (problems, "error"), (card["findings"], "warning"))
    )  # fmt: skip
    first = f"{'not ready' if problems else 'ready'} to train: {errors}, {warnings}; {counts}"
    return "\n".join(
        [first, *(f"error: {line}" for line in problems), *(f"warning: {line}" for line in card["findings"])]
    )


def print_card(card: Mapping[str, Any]) -> None:
    """Print a card to the terminal."""
    print_table(TextTable([str(card["set"]), ""], [list(fact) for fact in facts(card)]))


def page(card: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Return a card as one self-contained HTML page; all text of the dataset is escaped."""
    missing = [(name, f"{count:,}") for name, count in card["not_labelled"].items() if count]
    figures = "".join(
        f"<h2>{Path(name).stem}</h2>{embed(data, Path(name).suffix[1:].replace('jpg', 'jpeg'), name)}"
        for name, data in images.items()
    )
    return document(
        str(card["set"]),
        f"<p>{html.escape(card['protocol'])}</p>{notes(card['findings'])}{grid(facts(card))}{figures}"
        + (f"<h2>labels missing</h2>{grid(missing)}" if missing else "")
        + (f"<h2>skipped</h2>{listed(card['left_out'], LISTED)}" if card["left_out"] else ""),
    )
