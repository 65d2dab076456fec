"""A set, or a reduction of it, written out in another form that `flr.data.readers.table` reads back as the same faces."""

import csv
import dataclasses
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]
from filelock import FileLock
from tqdm import tqdm

from flr.data.boxes import faces_by_image
from flr.data.formats.annotators import cvat_text, label_studio_text, marked_images
from flr.data.formats.coco import coco_text
from flr.data.formats.dlib_xml import xml_text
from flr.data.formats.label_csv import csv_rows
from flr.data.formats.pts import pts_text
from flr.data.formats.records import SPLITS, fits, is_metric_name, new_file
from flr.data.images import IMAGE_SUFFIXES, Files
from flr.data.table import FaceTable, check_faces
from flr.errors import UserError, nearest
from flr.files import writing_folder
from flr.system import cores, parallel_map

Form = Literal["csv", "coco", "pts", "xml", "labelstudio", "cvat"]
SIZED = ("coco", "labelstudio", "cvat")  # forms that state the size of an image

_RISKY = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff\ufffe\uffff]')  # what some file system or form does not take
_OURS = (
    "scheme.yaml",
    *(f"labels{part}.{kind}" for part in ("", *(f"_{s}" for s in SPLITS)) for kind in ("csv", "json", "xml")),
)


def export(table: FaceTable, form: Form, folder: Path, rounded: bool = False) -> None:
    """Write a table's faces, with their scheme and images, into a new folder for ``data=table data.root=FOLDER``.

    Every form keeps points (the same float32; but for one nearer to 0 than 1e-9, and then no further off in .pts and XML,
    which shift it), which are labelled and visible, boxes, splits, groups, names and subsets that have a face. What no
    label says is left out: a point's visibility where it has no label, faults, and how often a face is seen in training.
    Images that are files are linked, or copied, under their own names as far as any file system takes them; others are
    written as PNG.

    Args:
        table: N faces.
        form: ``csv``, labels.csv; ``coco``, keypoints JSON; ``xml``, dlib's, each a file a split; ``pts``, a folder a split
            of images, one a face, with .pts next to them, and what those cannot hold in labels.csv; ``labelstudio`` and
            ``cvat``, for annotators (see `flr.data.formats.annotators`), without names, groups and subsets.
        folder: must not hold anything yet.
        rounded: points and boxes as whole pixels, which dlib's own tools ask for.

    Raises:
        UserError: the folder is not empty or cannot be written; something that the form cannot hold; an image that
            cannot be read.
    """
    if form not in get_args(Form):
        raise UserError(f"export={form} is no form{nearest(form, get_args(Form))}")
    table = check_faces(_rounded(table) if rounded else table, strict=False)
    _check(table, form)
    folder = Path(os.path.abspath(folder.expanduser()))
    try:
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: exists and is not empty; set another out=")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"), writing_folder(folder) as aside:
            image, size = _write_images(table, form, aside)
            table = dataclasses.replace(table, image=image)
            scheme = yaml.safe_dump(
                table.scheme.plain(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
            )
            with new_file(aside / "scheme.yaml") as file:
                file.write(scheme)
            _write_labels(table, form, size, aside)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set another out=") from error


def _rounded(table: FaceTable) -> FaceTable:
    """Points on whole pixels, boxes round whole pixels."""
    low, high = np.rint(table.box[:, :2] + 0.5), np.rint(table.box[:, 2:] + 0.5)
    box = np.concatenate([low, np.maximum(high, low + 1)], 1) - 0.5
    return dataclasses.replace(table, points=np.rint(table.points), box=box.astype(np.float32))


def _check(table: FaceTable, form: Form) -> None:
    """Stop at what `form` cannot hold."""
    for column in ("name", "group"):
        for i, word in enumerate(getattr(table, column).tolist()):
            if not fits(word):
                raise UserError(
                    f"face '{table.name[i]}': no label file holds its {column} {word!r:.60}; fix it at its source"
                )
    for subset in table.subsets:
        if not is_metric_name(subset):
            raise UserError(f"no label file holds the subset {subset!r:.60}; fix it at its source")
    known = table.labelled.sum(1)
    partly = np.flatnonzero((known > 0) & (known < len(table.scheme)))
    if form == "pts" and len(partly):
        raise UserError(
            f"face '{table.name[partly[0]]}' (one of {len(partly)}) has {known[partly[0]]} of {len(table.scheme)} points, and a "
            ".pts cannot lack one; set export=csv, coco or xml, or reduce to a scheme whose points are all there"
        )


# -- images ----------------------------------------------------------------------------------------------------------


def _write_images(table: FaceTable, form: Form, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write each image once, or for ``pts`` once a face with its .pts.

    Returns:
        (N,) str, where each face's image lies under `folder`; and (N, 2), its height and width, for `SIZED` forms.
    """
    image_rows = np.arange(len(table))[:, None] if form == "pts" else faces_by_image(table)
    files, names = table.read_image, [str(table.image[rows[0]]) for rows in image_rows]
    # A file whose labels are of its stored pixels is written as those, since it would be read upright.
    linked = [isinstance(files, Files) and (files.turns(name) or files.orientation(name) == 1) for name in names]
    places = _places(names, ["" if link else ".png" for link in linked])
    if form == "pts":
        places = [f"{split}/{place}" for split, place in zip(table.split, places, strict=True)]
    for parent in {os.path.dirname(place) for place in places}:
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def work(u: int) -> tuple[int, int]:
        i, target = int(image_rows[u][0]), folder / places[u]
        image = table.load(i) if form in SIZED or not linked[u] else None
        if isinstance(files, Files) and linked[u]:
            _link(files.root / str(table.image[i]), target)
        elif image is not None:
            pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            target.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        if form == "pts" and table.labelled[i].any():
            with new_file(target.with_suffix(".pts")) as file:
                file.write(pts_text(table.points[i]))
        return (0, 0) if image is None else image.shape[:2]

    image, size = np.empty(len(table), object), np.zeros((len(table), 2), int)
    done = tqdm(parallel_map(work, len(image_rows), cores()), "Exporting", len(image_rows), unit="image", disable=None)
    for rows, place, shape in zip(image_rows, places, done, strict=True):
        image[rows], size[rows] = place, shape
    return image.astype(str), size


def _link(source: Path, target: Path) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without links
        if not os.path.isfile(source):
            raise UserError(f"{source}: the image is gone; fetch it again") from None
        shutil.copyfile(source, target)


def _places(names: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """A path of its own for each image: its name, unless some file system or label file does not take it, or it is taken.

    Paths differ in more than their suffixes, since each may get a .pts next to it.

    Args:
        names: of the images.
        suffixes: what is added to each.
    """
    files, folders = {_key(mark) for name in _OURS for mark in (name, os.path.splitext(name)[0])}, set[str]()
    places = []
    for u, (name, suffix) in enumerate(zip(names, suffixes, strict=True)):
        stem, kind = os.path.splitext(name + suffix)
        if not _is_portable(name):
            stem, kind = f"image_{u}", kind if kind.lower() in IMAGE_SUFFIXES else ""
        while True:
            marks = {_key(stem), _key(stem + kind), _key(f"{stem}.pts")}
            above = {_key(str(folder)) for folder in PurePosixPath(stem).parents} - {"."}
            if not (marks & files or marks & folders or above & files):  # a folder cannot have the name of a file
                break
            stem = f"{re.sub('[./]', '_', stem)}_{u}"
        files |= marks
        folders |= above
        places.append(stem + kind)
    return places


def _is_portable(name: str) -> bool:
    """Whether any file system and any label file takes a name."""
    whole = fits(name) and not _RISKY.search(name) and len(name.encode()) <= 200
    # Its own points would overwrite an image by the name of .pts.
    return whole and all(part and part == part.strip(" .") for part in name.split("/")) and name[-4:].lower() != ".pts"


def _key(path: str) -> str:
    """Equal where some file system takes two names for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


# -- labels ------------------------------------------------------------------------------------------------------------


def _write_labels(table: FaceTable, form: Form, size: np.ndarray, folder: Path) -> None:
    if form in ("csv", "pts"):
        with new_file(folder / "labels.csv") as file:
            csv.writer(file, lineterminator="\n").writerows(csv_rows(table, points=form == "csv"))
        return
    for split in SPLITS:
        rows = np.flatnonzero(table.split == split)
        if len(rows):
            path = folder / f"labels_{split}.{'xml' if form in ('xml', 'cvat') else 'json'}"
            with new_file(path) as file:
                file.writelines(_text(table.take(rows), form, size[rows]))


def _text(table: FaceTable, form: Form, size: np.ndarray) -> Iterator[str]:
    if form == "coco":
        return coco_text(table, size)
    if form == "xml":
        return xml_text(table)
    images = marked_images(table, size)
    return cvat_text(table.scheme, images) if form == "cvat" else label_studio_text(table.scheme, images)
