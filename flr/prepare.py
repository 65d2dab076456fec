"""``python -m flr.prepare data=NAME data.root=DIR``: read, check and crop a data set, and say what it is."""

import html
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.instantiate import build
from flr.config.schema import Prepare
from flr.config.validate import check

if TYPE_CHECKING:
    from flr.data.datamodule import FaceData

SIDE = 168  # pixels of a face on a sheet
FACES = 48  # on the contact sheet
BENT = (6, 8)  # faces, and draws of each, on the sheet of augmented faces
LISTED = 200  # faults that the page names


def main(cfg: DictConfig) -> None:
    """Prepare the set that the config names."""
    print(f"Preparing {cfg.data.name}")
    quiet()
    check(cfg, Prepare, trusted=False)
    from flr.data.quality import refuse_nonsense
    from flr.files import write_json, writing

    data: FaceData = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
    if cfg.download:
        data.fetch()
    start = time.perf_counter()
    table = data.prepare(refuse=False)
    seconds = time.perf_counter() - start
    card: dict[str, Any] = {"set": data.name, "root": str(data.root), "protocol": data.protocol.name, **data.card}
    name = f"{data.name}-{card['fingerprint']}-{data.crop.policy}".replace(":", ".")
    folder = Path(cfg.out or Path(cfg.paths.output_dir) / "cards" / name).absolute()
    pictures = dict(sheets(data))
    write_json(folder / "card.json", card)
    for name, picture in pictures.items():
        with writing(folder / name) as aside:
            aside.write_bytes(picture)
    with writing(folder / "card.html") as aside:
        aside.write_text(page(card, pictures), encoding="utf-8")
    show(card)
    print(f"{len(table)} faces in {seconds:.1f} s, {len(table) / seconds:,.0f} a second")
    print(f"card {folder / 'card.html'}")
    refuse_nonsense(card, str(data.name))
    if cfg.export:
        from flr.data.export import export

        export(table, cfg.export, folder / f"export-{cfg.export}", rounded=cfg.rounded)
        print(f"export {folder / f'export-{cfg.export}'}")


# -- pictures ----------------------------------------------------------------------------------------------------------


def sheets(data: "FaceData") -> Iterator[tuple[str, bytes]]:
    """The pictures of a card as files, by name: faces, augmented faces where there is augmentation, poses."""
    import numpy as np
    import torch

    from flr.augment.device import Augment
    from flr.data.pose import head_pose
    from flr.landmarks.draw import draw_face, sheet
    from flr.reporting.figures import jpeg, png, pose_figure

    table, margin, size = data.prepare(), data.store.margin, data.crop.size
    rows = np.flatnonzero(table.labelled.any(1))
    some = rows[np.linspace(0, len(rows) - 1, min(FACES, len(rows))).astype(int)]
    crops = data.store.images[some, margin : margin + size, margin : margin + size]
    faces = [
        draw_face(crop, data.labels[row], None, table.labelled[row], SIDE, str(table.split[row]))
        for crop, row in zip(crops, some, strict=True)
    ]
    yield "faces.jpg", jpeg(sheet(faces, columns=8))
    if data.augment != Augment():
        count, draws = BENT
        chosen = some[np.linspace(0, len(some) - 1, min(count, len(some))).astype(int)]
        bent = [data.batch(torch.from_numpy(chosen), epoch) for epoch in range(draws)]
        low, high = data.pixels
        faces = [
            draw_face(
                ((batch.images[i].permute(1, 2, 0).numpy() - low) / (high - low) * 255).round().astype(np.uint8),
                batch.points[i].numpy(), None, batch.labelled[i].numpy(), SIDE,
            )
            for i in range(len(chosen)) for batch in bent
        ]  # fmt: skip
        yield "augmented.jpg", jpeg(sheet(faces, columns=draws))
    angles = head_pose(table.points, table.labelled, table.scheme)
    if angles is not None:
        parts = {part: angles[table.split == part] for part in data.card["pose"]}
        yield "pose.png", png(pose_figure(parts))


# -- words -------------------------------------------------------------------------------------------------------------


def facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card's facts in the order in which a person wants them."""
    same, twice, alike = (card["duplicates"][key] for key in ("same_picture", "labelled_twice", "look_alike"))
    missing = {name: count for name, count in card["not_labelled"].items() if count}
    hidden, out = sum(card["hidden"].values()), card["outside"]
    rows = [
        ("form", card["form"]),
        ("scheme", card["scheme"]),
        ("faces", _counts(card["faces"])),
        *((f"  {name}", _counts(counts)) for name, counts in card["subsets"].items()),
        ("pictures", f"{card['pictures']:,}"),
        ("picture width", _spread(card["picture_size"]["width"])),
        ("picture height", _spread(card["picture_size"]["height"])),
        ("face side", _spread(card["face_side"])),
        ("labels missing", f"{sum(missing.values()):,}, at {len(missing)} of the points" if missing else "none"),
        ("labels of hidden points", f"{hidden:,}" if hidden else "none marked"),
        ("points outside pictures", f"{out['points']:,} of {out['faces']:,} faces" if out["points"] else "none"),
        ("same picture twice", _crossing(same["groups"], same["across_splits"])),
        ("same face labelled twice", _crossing(twice["pairs"], twice["across_splits"])),
        ("faces that look alike", _crossing(alike["pairs"], alike["across_splits"])),
        ("identities or photos", f"{card['identities']['groups']:,}"),
        ("mirror symmetry", f"{card['symmetry']['deviation']} box sides at {card['symmetry']['point']}"),
        ("left out", f"{len(card['left_out']):,}"),
        ("fingerprint", card["fingerprint"]),
    ]
    for split, axes in card["pose"].items():
        words = (f"{axis} {value['p5']:.0f} to {value['p95']:.0f}" for axis, value in axes.items() if value)
        rows.append((f"pose of {split}", ", ".join(words) + " degrees (5 to 95 %)"))
    return rows


def _crossing(count: int, across: int) -> str:
    return f"{count:,}, {across:,} across splits" if count else "none"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "0"


def _spread(values: Mapping[str, float]) -> str:
    if not values:
        return "unknown"
    return f"{values['median']:,.0f} px ({values['min']:,.0f} to {values['max']:,.0f})"


def show(card: Mapping[str, Any]) -> None:
    """The card that a person reads in a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=str(card["set"]), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts(card):
        table.add_row(name, Text(value))
    console = Console()
    console.print(table)
    for line in card["findings"]:
        console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def page(card: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The card as one self-contained HTML page; all that comes from the set is escaped."""
    from flr.reporting.html import document, embed, grid, listed, notes

    missing = [(name, f"{count:,}") for name, count in card["not_labelled"].items() if count]
    images = "".join(
        f"<h2>{Path(name).stem}</h2>{embed(data, Path(name).suffix[1:].replace('jpg', 'jpeg'), name)}"
        for name, data in pictures.items()
    )
    return document(
        str(card["set"]),
        f"<p>{html.escape(card['protocol'])}</p>{notes(card['findings'])}{grid(facts(card))}{images}"
        + (f"<h2>labels missing</h2>{grid(missing)}" if missing else "")
        + (f"<h2>left out</h2>{listed(card['left_out'], LISTED)}" if card["left_out"] else ""),
    )


if __name__ == "__main__":
    run_command(main, "prepare")
