"""The user's own points: a CSV, COCO keypoints JSON, dlib's XML or .pts files, with their scheme in YAML.

The scheme file, ``scheme.yaml`` under the root, names the points (see `flr.landmarks.definition.parse_scheme`)::

    name: mine                                # of your own choice
    names: [eye_r, eye_l, nose, mouth]
    pairs: [[eye_r, eye_l]]                   # what a mirror swaps
    normaliser: interpupil                    # or box, or diagonal
    distances: {interpupil: [eye_r, eye_l]}   # optional, as are regions and reductions

Images are named relative to the root. Coordinates count from 0 (but in .pts
from 1): (0, 0) is the centre of an image's top left pixel.

``labels.csv`` (commas, semicolons or tabs) has one line of names, then a row a face, columns in any order: ``image``;
``<point>_x`` and ``<point>_y`` of each point, empty where it has no label; and where wanted ``<point>_visible`` (0 or 1);
``left``, ``top``, ``right``, ``bottom``, the edges of a box (one that covers the pixels 3 to 5 has edges 2.5 and 5.5);
``split`` (train, val, test or unlabelled; train where empty); ``group``, what must not cross from training into validation
(its image where empty); ``name``; and ``subset_<name>`` (0 or 1). Without any point column, the points of each
image lie in the .pts of its stem next to it.

``labels_train.json`` and so on, a file a split, are COCO keypoints (https://cocodataset.org/#format-data): v is 0 for a
point without a label, 1 for a hidden one, 2 for a visible one. Points are matched by the names that the category gives;
they are in the scheme's order where its list of names is empty, as in mmpose's files.
Whether COCO counts from a pixel's centre or corner differs between its users: numbers are read unchanged,
those of points and of boxes. An annotation may also have ``name``, ``group`` and ``subsets``, a list of names.

``labels_train.xml`` and so on are dlib's XML (see `flr.data.readers.ibug_xml`), with parts named by place (``00``) or by
point, any of which may be missing. A ``<box>`` may also have ``name``, ``group``, ``subsets`` (parted by commas) and
``tight='1'``, which says that it was drawn round the points and is no box of the set's own; a ``<part>``
``visible='0'``. A .json may also be Label Studio's, and an .xml CVAT's (see `flr.data.formats.annotators`).

Without any label file, the folders ``train/``, ``val/``, ``test/`` and ``unlabelled/`` are looked through
for images with .pts next to them, which count from 1.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from flr.data.formats import annotators, coco, dlib_xml, label_csv
from flr.data.formats.records import (
    BOX_FORMS,
    LONGEST,
    LONGEST_SUBSET,
    SPLITS,
    FaceColumns,
    columns_of,
    fits,
    is_metric_name,
    portable,
    under,
)  # fmt: skip
from flr.data.formats.text import read_plain, read_sheet
from flr.data.table import FaceTable, make_table
from flr.errors import UserError, nearest
from flr.landmarks.definition import parse_scheme
from flr.landmarks.scheme import SCHEMES, Scheme

SUFFIXES = (".csv", ".json", ".xml")


def read(
    root: Path, strict: bool = False, labels: str | dict[str, str] | None = None, scheme: str = "scheme.yaml",
    upright: bool = True,
) -> FaceTable:  # fmt: skip
    """The faces of a table of one's own (see the module's text); `form` is ``table``, or ``table+stored`` without `upright`.

    Several faces of one image that have no name are named by it with ``#1``, ``#2`` and so on.

    Args:
        root: the folder that images and labels lie in.
        strict: stop at the first fault of a face.
        labels: a file, or a folder of ``train/``, ``test/`` and so on with .pts; or one of them for each split. What it
            is, follows from its suffix. None looks under `root` for ``labels.csv``, ``labels_<split>.csv``, .json or .xml in
            their places, and last for the folders.
        scheme: the scheme's file, or the name of a built-in scheme.
        upright: whether labels are of images turned as their EXIF orientation says, as annotation tools and flr.predict
            show them. COCO's width and height decide for an image that is stored turned by a quarter.
    """
    files = _files(root, labels)
    own = _scheme(root, scheme, files[0][1])
    faces: list[FaceColumns] = []
    sizes: dict[str, tuple[int, int]] = {}
    for split, path in files:
        try:
            faces.append(_read_file(root, path, split, own, sizes))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); let it be read") from error
    if not any(file.image for file in faces):
        names = " and ".join(str(path) for _, path in files)
        raise UserError(f"{names}: no face is listed; label some, or name another file by data.reader.labels=FILE")
    form = "table" if upright else "table+stored"
    sizes = {under(root, image): size for image, size in sizes.items()}
    return _to_table(faces, root, own, form=form, strict=strict, upright=upright, sizes=sizes)


def _files(root: Path, labels: str | Mapping[str, str] | None) -> list[tuple[str | None, Path]]:
    """What is to be read: the split of all faces in it, where that is known, and the file or folder."""
    if labels:
        named = {None: labels} if isinstance(labels, str) else labels
        for part, file in named.items():
            path = root / file
            if part is not None and part not in SPLITS:
                raise UserError(f"data.reader.labels: no split '{part}'{nearest(part, SPLITS)}")
            if not os.path.exists(path):
                raise UserError(f"{path}: there is no such file; name one that is: data.reader.labels=FILE")
            if path.suffix.lower() not in SUFFIXES and not os.path.isdir(path):
                raise UserError(f"{path}: no {', '.join(SUFFIXES)} and no folder; set data.reader.labels=FILE")
        return [(part, root / file) for part, file in named.items()]
    found: list[list[tuple[str | None, Path]]] = []
    for suffix in SUFFIXES:
        found.append([(None, root / f"labels{suffix}")])
        found.append([(split, root / f"labels_{split}{suffix}") for split in SPLITS])
    found = [there for form in found if (there := [each for each in form if os.path.exists(each[1])])]
    if len(found) > 1:
        several = " and ".join(form[0][1].name for form in found)
        raise UserError(
            f"{root}: holds {several}; say which counts by data.reader.labels=FILE or {{train:FILE,test:FILE}}"
        )
    if not found and not any(os.path.isdir(root / split) for split in SPLITS):
        lacks = "no labels in it" if os.path.isdir(root) else "there is no such folder"
        raise UserError(
            f"{root}: {lacks}; set data.root=DIR to the folder that contains labels.csv, labels_train.csv (or .json, .xml) "
            "or folders train/ and test/ of images with .pts files, or name the file: data.reader.labels=FILE. A CSV has the "
            "columns image and POINT_x, POINT_y of each point, in pixels counted from 0"
        )
    return found[0] if found else [(None, root)]


def _read_file(
    root: Path, path: Path, split: str | None, scheme: Scheme, sizes: dict[str, tuple[int, int]]
) -> FaceColumns:
    count = len(scheme)
    if os.path.isdir(path):
        return columns_of(label_csv.read_folder(root, path, split, count), count, first_pixel=1)
    if path.suffix.lower() == ".csv":
        return label_csv.read_columns(root, path, split, scheme)
    split = split or "train"
    if path.suffix.lower() == ".json":
        if annotators.is_label_studio(path):
            return columns_of(annotators.read_label_studio(root, path, split, scheme, sizes), count)
        return columns_of(coco.read_records(path, split, scheme, sizes), count, "corner and size")
    if annotators.is_cvat(path):
        return columns_of(annotators.read_cvat(root, path, split, scheme, sizes), count)
    return columns_of(dlib_xml.read_records(root, path, split, scheme), count, "pixels")


def _to_table(files: Sequence[FaceColumns], root: Path, scheme: Scheme, form: str, **options: Any) -> FaceTable:
    """Return the table of files; `options` are those of `make_table`."""

    def joined(column: str) -> list[str]:
        return list(chain.from_iterable(getattr(file, column) for file in files))

    images = [under(root, image) for image in joined("image")]
    points, hidden, box = (
        np.concatenate([getattr(file, column) for file in files]) for column in ("points", "hidden", "box")
    )
    subsets: dict[str, np.ndarray] = {}
    bad: dict[int, str] = {}
    start = 0
    for file in files:
        bad |= {start + i: reason for i, reason in file.faults.items()}
        for name, mask in file.subsets.items():
            subsets.setdefault(name, np.zeros(len(images), bool))[start : start + len(mask)] = mask
        start += len(file.image)
    where, groups, names = joined("where"), joined("group"), joined("name")
    _check_names(where, images, groups, names, subsets)
    names = _complete_names(names, images, points, box, bad)
    labelled = np.isfinite(points).all(-1)
    edges = np.concatenate([BOX_FORMS[file.box_form](file.box) for file in files])
    pixels = np.concatenate([(file.points - file.first_pixel).astype(np.float32) for file in files])
    return make_table(
        form, scheme, root, images, pixels, joined("split"), published=(points, hidden, box), **options,
        labelled=labelled, visible=labelled & ~hidden, box=edges, name=names, bad=bad,
        group=[group or portable(image) for group, image in zip(groups, images, strict=True)],
        subsets={name: mask for name, mask in subsets.items() if mask.any()},
    )  # fmt: skip


def _check_names(
    where: Sequence[str], images: Sequence[str], groups: Sequence[str], names: Sequence[str], subsets: Mapping[str, Any]
) -> None:
    for place, image, group, name in zip(where, images, groups, names, strict=True):
        for key, word in (("image", portable(image)), ("group", group or "-"), ("name", name or "-")):
            if not fits(word):
                fix = f"write 1 to {LONGEST} characters on one line, without blanks at the ends"
                raise UserError(f"{place}: {key} {word!r:.60} is not a name; {fix}")
    for name, mask in subsets.items():
        if not is_metric_name(name):
            fix = f"write at most {LONGEST_SUBSET} letters, digits, _ - . : / and blanks between them, and no part that is empty, . or .."
            raise UserError(f"{where[int(np.argmax(mask))]}: subset {name!r:.60} is not a name; {fix}")


def _complete_names(
    names: Sequence[str], images: Sequence[str], points: np.ndarray, box: np.ndarray, bad: dict[int, str]
) -> list[str]:
    """Return the names, those of unnamed faces by their images; a face that is listed twice joins `bad`."""
    names = list(names)
    shared = {image for image, count in Counter(images).items() if count > 1}
    number: Counter[str] = Counter()
    seen: set[tuple[str, bytes]] = set()
    for i, image in enumerate(images):
        if names[i]:
            continue
        names[i] = portable(image)
        if image in shared:
            number[image] += 1
            names[i] += f"#{number[image]}"
            content = image, points[i].tobytes() + box[i].tobytes()
            if content in seen:
                bad.setdefault(i, "it is listed twice")
            seen.add(content)
    return names


# -- the scheme --------------------------------------------------------------------------------------------------------


def read_scheme(path: Path) -> Scheme:
    """The scheme of a YAML file (see the module's text).

    Raises:
        UserError: it cannot be read, or is no scheme, or has the name of a built-in one that is another.
    """
    values = read_plain(path, "scheme")
    try:
        scheme = parse_scheme(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    built_in = SCHEMES.get(scheme.name, scheme)
    if built_in.plain() != scheme.plain():
        raise UserError(
            f"{path}: name: {scheme.name} is a built-in scheme with other content; take another name, or the built-in one "
            f"by data.reader.scheme={scheme.name}"
        )
    return built_in


def _scheme(root: Path, word: str, labels: Path) -> Scheme:
    if word in SCHEMES:
        return SCHEMES[word]
    if os.path.exists(root / word):
        return read_scheme(root / word)
    names = _named_points(labels)
    points = f" ({len(names)}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''})" if names else ""
    raise UserError(
        f"{root / word}: there is no such file, nor a built-in scheme '{word}'{nearest(word, SCHEMES)}; write there the "
        f"names of the points{points}, pairs and normaliser, or set data.reader.scheme=FILE or NAME"
    )


def _named_points(labels: Path) -> list[str]:
    """The points that a label file itself names, for an error to say; nothing where it is at fault too."""
    try:
        if labels.suffix.lower() == ".csv":
            return [column[:-2] for column in read_sheet(labels).columns if column.endswith("_x")]
        if labels.suffix.lower() == ".json":
            return [str(name) for each in coco.load_json(labels)["categories"] for name in each.get("keypoints", ())]
    except (UserError, LookupError, TypeError, AttributeError):
        pass
    return []
