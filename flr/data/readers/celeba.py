"""CelebA (Liu et al. 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html): 5 points, in the wild and aligned.

Under the root lie ``img_celeba/`` (in the wild) or ``img_align_celeba/`` (178 x 218 pixels), and their lists: ``.txt`` with
blanks (a count, the columns' names, a row a face) or ``.csv`` with commas (the columns' names, a row a face). The
publisher's own ``Anno/``, ``Eval/`` and ``Img/`` are found too, and images in a second folder of the same name, as some
archives unpack. Points count from 0, though no file says so: the aligned eyes' middle lies at x = 88.6 on the mean, and
that of their images at 88.5.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from flr.data.formats.records import box_edges, portable
from flr.data.formats.text import MAX_NUMBER, Sheet, read_sheet
from flr.data.table import FaceTable, Fault, make_table
from flr.errors import UserError
from flr.landmarks.scheme import CELEBA5

SITE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FACES, PUBLISHED = 202_599, 150_000
IMAGE_FOLDERS = {"wild": "img_celeba", "aligned": "img_align_celeba"}
LANDMARKS = {"wild": "list_landmarks_celeba", "aligned": "list_landmarks_align_celeba"}
BOXES, PARTITION, IDENTITY = "list_bbox_celeba", "list_eval_partition", "identity_CelebA"
POINTS = tuple(f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy")
PARTS = {"0": "train", "1": "val", "2": "test"}
ALIGNED_BOX = (-0.5, -0.5, 177.5, 217.5)


def read(
    root: Path,
    strict: bool = False,
    images: Literal["wild", "aligned"] | None = None,
    split: Literal["official", "published", "none"] = "official",
    boxes: bool = True,
) -> FaceTable:
    """Read CelebA, or as much of it as is there.

    The list of landmarks is the index, and many copies hold a part of its images. `form` counts the faces that were
    read: ``celeba_wild`` has all 202599, ``celeba_wild[2344/202599]`` not. Aligned images were rotated and scaled by
    their own landmarks, which does a part of a model's work: the mean face alone errs by 8.3 % of the eyes' distance in
    the first 32. So ``celeba_aligned`` is another protocol.

    No person crosses the official split; some cross the published one. Parts that are held out of training later are
    held out by person if ``identity_CelebA`` is there, and else by image.

    Args:
        root: Folder of the folders of images.
        strict: Stop if a listed image is missing, and at the first fault of a face.
        images: None takes those that are there, and ``wild`` if both are.
        split: ``official``, by ``list_eval_partition``. ``published``, as `flr.models.celeba_cnn` was trained: the list's
            first 150000 faces are for training and validation, any after them for the test; ``+published`` in `form`.
            ``none``, for copies without a partition: all are for training; ``+by_identity`` or ``+by_picture`` in `form`,
            as parts will be held out.
        boxes: give ``list_bbox_celeba``'s boxes in the wild (pixels x_1 to x_1 + width - 1) and leave out the faces whose box
            there has no size, each named, also of the test part; aligned, where that list does not apply, give the whole
            image. False gives no boxes and keeps all faces.
    """
    kind, folder = _image_folder(root, [images] if images else list(IMAGE_FOLDERS))
    names, rows, points, bad = _landmarks(_list(root, LANDMARKS[kind]), folder, strict)
    box, listed_box = np.full((len(names), 4), np.nan), np.full((len(names), 4), np.nan)
    if boxes and kind == "aligned":
        box[:] = ALIGNED_BOX
    elif boxes:
        listed_box, faults = _boxes(root, names)
        box = _box_edges(listed_box)
        bad = faults | bad
    name = [portable(name) for name in names]
    person = _identities(root, names)
    unsplit = "+by_picture" if person is None else "+by_identity"
    word = {"official": "", "published": "+published", "none": unsplit}[split]
    place = folder.relative_to(root).as_posix()
    table = make_table(
        f"celeba_{kind}{word}", CELEBA5, root, [f"{place}/{name}" for name in names], points, _split(root, split, names, rows),
        published=(points, listed_box), strict=strict, labelled=np.ones(points.shape[:2], bool), box=box, bad=bad, name=name,
        group=name if person is None else person,
    )  # fmt: skip
    if boxes:
        table = _boxed(table, root, strict)
    return table if len(table) == FACES else dataclasses.replace(table, form=f"{table.form}[{len(table)}/{FACES}]")


def _image_folder(root: Path, kinds: Sequence[str]) -> tuple[str, Path]:
    """Return the first of `kinds` whose folder of images exists, and that folder."""
    for kind in kinds:
        name = IMAGE_FOLDERS[kind]
        for place in (root / name / name, root / name, root / "Img" / name / name, root / "Img" / name):
            if os.path.isdir(place):
                return kind, place
    looked = " or ".join(f"{IMAGE_FOLDERS[kind]}/" for kind in kinds)
    found = f"no {looked} is in it" if os.path.isdir(root) else "there is no such folder"
    raise UserError(
        f"{root}: {found}; get CelebA ({SITE}; its terms allow non-commercial "
        f"research only), unpack {looked} there, put {LANDMARKS['wild']}.txt and {BOXES}.txt (in the wild) or "
        f"{LANDMARKS['aligned']}.txt, and {PARTITION}.txt next to them, and set data.root=DIR or the variable FLR_DATA"
    )


def _find(root: Path, stem: str) -> Path | None:
    """Return the list of that name."""
    places = [root / folder / f"{stem}{kind}" for folder in ("", "Anno", "Eval") for kind in (".txt", ".csv")]
    return next((place for place in places if os.path.exists(place)), None)


def _list(root: Path, stem: str, otherwise: str = "") -> Path:
    path = _find(root, stem)
    if path is None:
        raise UserError(f"{root}: no {stem}.txt or .csv is in it, in Anno/ or in Eval/; fetch it ({SITE}){otherwise}")
    return path


def _sheet(path: Path, header: Sequence[str] | None = None) -> Sheet:
    """Read a list; `header` has the columns of one that may lack them."""
    sheet = read_sheet(path, header=header, counted=header is None, text=header or ("", "image_id"))
    first = sheet.cells.iloc[0].tolist()
    if header and "image_id" in first:
        cells = sheet.cells.iloc[1:].reset_index(drop=True)
        sheet = dataclasses.replace(sheet, columns=first, cells=cells, lines=sheet.lines[1:])
    return sheet


def _named(sheet: Sheet) -> list[str]:
    """Return the names of the images. CelebA's own list of landmarks has a column for them that its header leaves out."""
    return sheet.text("" if "" in sheet.columns and "image_id" not in sheet.columns else "image_id")


def _landmarks(path: Path, folder: Path, strict: bool) -> tuple[list[str], np.ndarray, np.ndarray, dict[int, str]]:
    """Return the n listed faces with images: names, rows in the list (n,), points (n, 5, 2), index -> fault."""
    sheet = _sheet(path)
    names = _named(sheet)
    for line, name in zip(sheet.lines, names, strict=True):
        if "/" in name or "\\" in name:
            raise UserError(f"{path} line {line}: '{name[:80]}' is not the name of a file in {folder.name}/; fix it")
    try:
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); let it be read") from error
    rows = [i for i, name in enumerate(names) if name in there]
    if strict and len(rows) < len(names):
        first = next(name for name in names if name not in there)
        raise UserError(
            f"{folder}: {len(names) - len(rows)} of the {len(names)} images that {path.name} lists are missing, first "
            f"'{first[:80]}'; add them or leave data.strict=false to read the others"
        )
    if not rows:
        other = f"such as '{min(there)}'" if there else "it is empty"
        raise UserError(
            f"{folder}: none of the images that {path.name} lists ('{names[0][:80]}' ...) is in it ({other}); unpack "
            "them there, or name the other images: data.reader.images=wild or aligned"
        )
    points, faults = sheet.numbers(POINTS)
    bad = {at: faults[row] for at, row in enumerate(rows) if row in faults}
    return [names[row] for row in rows], np.array(rows), points[rows].reshape(-1, len(CELEBA5), 2), bad


def _rows(sheet: Sheet, names: Sequence[str]) -> list[int]:
    """Return the rows of `names` in another list.

    Raises:
        UserError: One is missing, or the list has an image twice.
    """
    listed = _named(sheet)
    place = {name: row for row, name in enumerate(listed)}
    if len(place) < len(listed):
        twice = next(name for row, name in enumerate(listed) if place[name] != row)
        raise UserError(f"{sheet.path}: lists '{twice[:80]}' twice; take one out or fetch the file again")
    missing = [name for name in names if name not in place]
    if missing:
        raise UserError(
            f"{sheet.path}: does not list {len(missing)} of the images, such as '{missing[0]}'; fetch it again"
        )
    return [place[name] for name in names]


def _boxes(root: Path, names: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Return the (n, 4) first column and row, width and height of the boxes as listed; and index -> fault."""
    sheet = _sheet(_list(root, BOXES, " or set data.reader.boxes=false and data.crop.policy.source=truth"))
    rows = _rows(sheet, names)
    values, faults = sheet.numbers(("x_1", "y_1", "width", "height"))
    return values[rows], {at: faults[row] for at, row in enumerate(rows) if row in faults}


def _box_edges(listed: np.ndarray) -> np.ndarray:
    """Return the (n, 4) edges in pixel-centre coordinates of listed boxes (n, 4); NaN for one without size."""
    box = box_edges(listed)
    box[~((listed[:, 2:] > 0) & (box[:, 2:] < MAX_NUMBER)).all(1)] = np.nan
    return box


def _boxed(table: FaceTable, root: Path, strict: bool) -> FaceTable:
    """Skip the faces without a box, which the dataset itself has."""
    none = np.isnan(table.box).any(1)
    faults = [Fault(name, f"{BOXES} gives it a box of no size") for name in table.name[none].tolist()]
    if faults and (strict or none.all()):
        raise UserError(
            f"{root}: {faults[0]}; fix it, or set data.reader.boxes=false and data.crop.policy.source=truth"
        )
    return dataclasses.replace(table.take(~none), faults=(*table.faults, *faults)) if faults else table


def _split(root: Path, split: str, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Return the (n,) str part of each face."""
    if split != "official":
        return np.where((split == "published") & (rows >= PUBLISHED), "test", "train")
    path = _list(root, PARTITION, " or set data.reader.split=none, which takes every face for training")
    sheet = _sheet(path, ("image_id", "partition"))
    words = sheet.text("partition")
    parts = []
    for row in _rows(sheet, names):
        if words[row] not in PARTS:
            raise UserError(
                f"{sheet.path} line {sheet.lines[row]}: '{words[row][:40]}' is not 0, 1 or 2; fetch it again"
            )
        parts.append(PARTS[words[row]])
    return np.array(parts)


def _identities(root: Path, names: Sequence[str]) -> np.ndarray | None:
    """Return the (n,) str person of each face; None without their list."""
    path = _find(root, IDENTITY)
    if path is None:
        return None
    sheet = _sheet(path, ("image_id", "identity"))
    persons = sheet.text("identity")
    rows = _rows(sheet, names)
    for row in rows:
        if not persons[row].isdecimal() or len(persons[row]) > 9:
            raise UserError(
                f"{path} line {sheet.lines[row]}: '{persons[row][:40]}' is not a person's number; fetch it again"
            )
    return np.array([persons[row] for row in rows])
