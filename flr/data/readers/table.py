"""The user's own points: a CSV, COCO keypoints JSON, dlib's XML or .pts files, with their scheme in YAML.

The scheme file, ``scheme.yaml`` under the root, names the points (see `flr.landmarks.scheme.Scheme.of`)::

    name: mine                                # of your own choice
    names: [eye_r, eye_l, nose, mouth]
    pairs: [[eye_r, eye_l]]                   # what a mirror swaps
    normaliser: interpupil                    # or box, or diagonal
    distances: {interpupil: [eye_r, eye_l]}   # optional, as are regions and reductions

Pictures are named relative to the root. Everywhere an integer coordinate is a pixel's centre.

``labels.csv`` (commas, semicolons or tabs) has one line of names, then a row a face, columns in any order: ``image``;
``<point>_x`` and ``<point>_y`` of each point, empty where it has no label; and where wanted ``<point>_visible`` (0 or 1);
``left``, ``top``, ``right``, ``bottom``, the edges of a box (one that covers the pixels 3 to 5 has edges 2.5 and 5.5);
``split`` (train, val, test or unlabelled; train where empty); ``group``, what must not cross from training into validation
(its picture where empty); ``name``; and ``subset_<name>`` (0 or 1). Without any point column, the points of each
picture lie in the .pts of its stem beside it.

``labels_train.json`` and so on, a file a split, are COCO keypoints (https://cocodataset.org/#format-data): v is 0 for a
point without a label, 1 for a hidden one, 2 for a visible one. Points are matched by the names that the category gives.
Whether COCO counts from a pixel's centre or corner is told differently by its users: numbers are taken as they stand,
those of points and of boxes. An annotation may also have ``name``, ``group`` and ``subsets``, a list of names.

``labels_train.xml`` and so on are dlib's XML (see `flr.data.readers.ibug_xml`), with parts named by place (``00``) or by
point, any of which may be missing. A ``<box>`` may also have ``name``, ``group``, ``subsets`` (parted by commas) and
``tight='1'``, which says that it was drawn round the points and is no box of the set's own; a ``<part>``
``visible='0'``. Without any label file, the folders ``train/``, ``val/``, ``test/`` and ``unlabelled/`` are looked through
for pictures with .pts beside them, which count from 1.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flr.data.readers.ibug import beside, box_edges, portable, read_beside
from flr.data.readers.ibug_xml import inside, pictures, read_box, read_parts
from flr.data.readers.text import LARGEST, read_plain, read_sheet, read_text
from flr.data.table import UNLABELLED, FaceTable, from_files
from flr.errors import UserError, nearest
from flr.landmarks.scheme import SCHEMES, Scheme

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# How a file gives a box -> its edges left, top, right, bottom, both (N, 4).
BOX_FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "edges": lambda box: box,
    "corner and size": lambda box: np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1),
    "pixels": box_edges,
}
SPLITS = ("train", "val", "test", UNLABELLED)
SUFFIXES = (".csv", ".json", ".xml")
BOX = ("left", "top", "right", "bottom")
LONGEST = 400  # characters of a name: in a column of text each face takes the room of the longest
UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # what XML or a row of text cannot hold
SUBSET = re.compile(r"[\w./:-]+( [\w./:-]+)*")  # what may stand in a metric's name


class _Face(NamedTuple):
    """A face as a file gives it.

    Attributes:
        where: its place in the file, said where it stops the reading.
        image: its picture under the root.
        split: one of `SPLITS`.
        points: (K, 2) float64 as the file gives them, NaN where there is no label.
        hidden: (K,) bool.
        box: (4,) float64 as the file gives them, NaN where there is none.
        group: empty for its picture.
        name: empty for its picture's.
        subsets: those it is in.
        fault: why no net should learn from it; empty where nothing is known against it.
        box_form: what the four numbers of `box` are, one of `BOX_FORMS`.
        first_pixel: the coordinate of the first pixel's centre in the file's points.
    """

    where: str
    image: str
    split: str
    points: np.ndarray
    hidden: np.ndarray
    box: np.ndarray
    group: str = ""
    name: str = ""
    subsets: Sequence[str] = ()
    fault: str = ""
    box_form: str = "edges"
    first_pixel: int = 0


def read(
    root: Path | None, strict: bool = False, labels: str | dict[str, str] | None = None, scheme: str = "scheme.yaml"
) -> FaceTable:
    """The faces of a table of one's own (see the module's text); `form` is ``table``.

    Several faces of one picture that have no name are named by it with ``#1``, ``#2`` and so on.

    Args:
        root: the folder that pictures and labels lie in.
        strict: stop at the first fault of a face.
        labels: a file, or a folder of ``train/``, ``test/`` and so on with .pts; or one of them for each split. What it
            is, is told by its suffix. None looks under `root` for ``labels.csv``, ``labels_<split>.csv``, .json or .xml in
            their places, and last for the folders.
        scheme: the scheme's file, or the name of a built-in scheme.

    Raises:
        UserError: nothing is there; a file that is none of these forms, or does not fit the scheme; a scheme that does
            not hold; or a faulty face where one must stop (see `flr.data.table.check_faces`).
    """
    if root is None:
        raise UserError("data.root is null; set data.root=DIR")
    files = _files(root, labels)
    own = _scheme(root, scheme, files[0][1])
    faces: list[_Face] = []
    for split, path in files:
        try:
            faces += _faces(root, path, split, own)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); let it be read") from error
    if not faces:
        names = " and ".join(str(path) for _, path in files)
        raise UserError(f"{names}: no face is listed; label some, or name another file by data.reader.labels=FILE")
    return _to_table(faces, root, own, strict)


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
        lacks = "none of them is in it" if os.path.isdir(root) else "there is no such folder"
        raise UserError(
            f"{root}: {lacks}; looked there for labels.csv, labels_train.csv (or .json or .xml, and so for val, test and "
            "unlabelled) and for folders train/ val/ test/ of pictures with .pts; write one as flr/data/readers/table.py "
            "says, or name yours by data.reader.labels=FILE, and set data.root=DIR or the variable FLR_DATA"
        )
    return found[0] if found else [(None, root)]


def _faces(root: Path, path: Path, split: str | None, scheme: Scheme) -> Iterator[_Face]:
    if os.path.isdir(path):
        return _of_folder(root, path, split, len(scheme))
    if path.suffix.lower() == ".csv":
        return _of_csv(root, path, split, scheme)
    return (_of_coco if path.suffix.lower() == ".json" else _of_xml)(root, path, split or "train", scheme)


def fits(name: str) -> bool:
    """Whether every form of label file can hold a face's name, and a column of text as well."""
    return 0 < len(name) <= LONGEST and name == name.strip() and not UNFIT.search(name)


def _to_table(faces: Sequence[_Face], root: Path, scheme: Scheme, strict: bool) -> FaceTable:
    images = [face.image.replace("\\", "/") for face in faces]
    points, box = np.array([face.points for face in faces]), np.array([face.box for face in faces])
    subsets: dict[str, np.ndarray] = {}
    for i, face in enumerate(faces):
        for key, word in (("image", _text(face.image)), ("group", face.group or "-"), ("name", face.name or "-")):
            if not fits(word):
                mend = f"write 1 to {LONGEST} letters on one line, without blanks at the ends"
                raise UserError(f"{face.where}: {key} {word!r:.60} is no name; {mend}")
        for name in face.subsets:
            if not SUBSET.fullmatch(name):
                mend = "write letters, digits, _ - . : / and blanks between them"
                raise UserError(f"{face.where}: subset {name!r:.60} is no name; {mend}")
            subsets.setdefault(name, np.zeros(len(faces), bool))[i] = True
    names, bad = [face.name for face in faces], {i: face.fault for i, face in enumerate(faces) if face.fault}
    shared = {image for image, count in Counter(images).items() if count > 1}
    number: Counter[str] = Counter()
    seen: set[tuple[str, bytes]] = set()
    for i, image in enumerate(images):
        if not names[i]:
            names[i] = _text(image)
            if image in shared:
                number[image] += 1
                names[i] += f"#{number[image]}"
                content = image, points[i].tobytes() + box[i].tobytes()
                if content in seen:
                    bad.setdefault(i, "it is listed twice")
                seen.add(content)
    labelled, hidden = np.isfinite(points).all(-1), np.array([face.hidden for face in faces])
    edges = box.copy()
    for form, to_edges in BOX_FORMS.items():
        rows = np.array([face.box_form == form for face in faces])
        edges[rows] = to_edges(box[rows])
    first_pixel = np.array([face.first_pixel for face in faces])[:, None, None]
    return from_files(
        "table", scheme, root, images, points - first_pixel, [face.split for face in faces],
        published=(points, hidden, box), strict=strict, labelled=labelled, visible=labelled & ~hidden, box=edges,
        group=[face.group or _text(image) for face, image in zip(faces, images, strict=True)], name=names,
        subsets=subsets, bad=bad,
    )  # fmt: skip


def _text(path: str) -> str:
    """A file's name as text: its bytes need not be Unicode."""
    try:
        return portable(path)
    except UnicodeEncodeError:  # an escape that stands for no byte
        return path


def _nothing(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No point, none hidden and no box."""
    return np.full((count, 2), np.nan), np.zeros(count, bool), np.full(4, np.nan)


# -- the scheme --------------------------------------------------------------------------------------------------------


def read_scheme(path: Path) -> Scheme:
    """The scheme of a YAML file (see the module's text).

    Raises:
        UserError: it cannot be read, or is no scheme, or has the name of a built-in one that is another.
    """
    values = read_plain(path, "scheme")
    try:
        scheme = Scheme.of(values)
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
            return [str(name) for each in _load_json(labels)["categories"] for name in each.get("keypoints", ())]
    except (UserError, LookupError, TypeError, AttributeError):
        pass
    return []


# -- CSV and .pts ------------------------------------------------------------------------------------------------------


def _of_csv(root: Path, path: Path, split: str | None, scheme: Scheme) -> Iterator[_Face]:
    sheet = read_sheet(path)
    for reason in sheet.ragged.values():
        raise UserError(f"{path.parent}: {reason}; mend it (a cell that holds the delimiter stands in quotes)")
    sides = [f"{name}_{axis}" for name in scheme.names for axis in "xy"]
    seen = {f"{name}_visible": k for k, name in enumerate(scheme.names)}
    subsets = [column for column in sheet.columns if column.startswith("subset_")]
    known = {"image", "split", "group", "name", *BOX, *sides, *seen, *subsets}
    for column in sheet.columns:
        if not column:
            raise UserError(f"{path}: a column has no name; name it or take it out, and write no decimal commas")
        if column not in known:
            raise UserError(
                f"{path}: no column '{column}' belongs there{nearest(column, known)}; rename it or take it out"
            )
    bad: dict[int, str] = {}

    def numbers(columns: Sequence[str]) -> np.ndarray:
        values, faults = sheet.numbers(columns)
        for i, fault in faults.items():
            comma = "; write a decimal point, no comma" if re.search(r"'-?\d+,\d+'", fault) else ""
            bad.setdefault(i, fault + comma)
        return values

    def blame(mask: Any, reason: str) -> None:
        for i in np.flatnonzero(mask).tolist():
            bad.setdefault(i, f"{path.name} line {sheet.lines[i]}: {reason}")

    count = len(sheet)
    apart = not set(sides).intersection(sheet.columns)  # the points lie in .pts files
    points = numbers([] if apart else sides).reshape(count, -1, 2)
    blame((np.isnan(points).sum(-1) == 1).any(1), "a point has x or y alone")
    told = [column for column in sheet.columns if column in seen]
    flags = numbers([*told, *subsets])
    blame(~(np.isin(flags, (0, 1)) | np.isnan(flags)).all(1), "visible and subset columns hold 0 or 1")
    hidden = np.zeros((count, len(scheme)), bool)
    hidden[:, [seen[column] for column in told]] = flags[:, : len(told)] == 0
    box = np.full((count, 4), np.nan)
    if set(BOX).intersection(sheet.columns):
        box = numbers(BOX)
        blame(np.isin(np.isnan(box).sum(1), (1, 2, 3)), f"its box lacks one of {', '.join(BOX)}")
        blame((box[:, 2:] <= box[:, :2]).any(1), "its box has no size")
    image = sheet.text("image")
    splits, group, name = (
        sheet.text(key) if key in sheet.columns else [""] * count for key in ("split", "group", "name")
    )
    for i in range(count):
        where, fault = f"{path}: line {sheet.lines[i]}", bad.get(i, "")
        own = splits[i] or split or "train"
        if own not in SPLITS or own != (split or own):
            raise UserError(f"{where}: its split is '{own}', not {split or ', '.join(SPLITS)}; mend it")
        marks = None if apart else points[i]
        if apart and not fault:
            marks, fault = _points_beside(root, image[i], own, len(scheme))
            fault = fault and f"{path.name} line {sheet.lines[i]} has no points, and {fault}"
        member = [
            word.removeprefix("subset_") for word, yes in zip(subsets, flags[i, len(told) :], strict=True) if yes == 1
        ]
        marks = _nothing(len(scheme))[0] if marks is None else marks
        yield _Face(
            where, image[i], own, marks, hidden[i], box[i], group[i], name[i], member, fault, first_pixel=int(apart)
        )


def _points_beside(root: Path, image: str, split: str, count: int) -> tuple[np.ndarray | None, str]:
    """The points (count, 2) of the .pts beside a picture; None where there is none, with the fault if it is one."""
    path = PurePosixPath(image.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name:
        return None, ""  # `from_files` tells of pictures that lead out of the root
    labels = [root / path.with_suffix(kind) for kind in (".pts", ".PTS")]
    labels = [label for label in labels if os.path.exists(label)][:1]
    if not labels and split == UNLABELLED:
        return None, ""
    return read_beside([root / path], labels, count)


def _of_folder(root: Path, folder: Path, split: str | None, count: int) -> Iterator[_Face]:
    parts = [(split, folder)] if split else [(name, folder / name) for name in SPLITS if os.path.isdir(folder / name)]
    if not parts:
        raise UserError(f"{folder}: none of the folders {', '.join(SPLITS)} is in it; sort pictures and .pts into them")
    for own, part in parts:
        for place in _folders(part):
            for images, labels in beside(place):
                points, fault = None, ""
                if labels or own != UNLABELLED:
                    points, fault = read_beside(images, labels, count)
                image = Path(os.path.relpath((images or labels)[0], root)).as_posix()
                nothing, hidden, box = _nothing(count)
                points = nothing if points is None else points
                yield _Face(str(place), image, own, points, hidden, box, fault=fault, first_pixel=1)


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it, each once wherever links lead."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, below, _ in os.walk(top, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(place))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


# -- COCO --------------------------------------------------------------------------------------------------------------


def _of_coco(root: Path, path: Path, split: str, scheme: Scheme) -> Iterator[_Face]:
    document = _load_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: no COCO file, which is an object with images, annotations and categories")
    images = _by_id(document, "images", path)
    files = {key: _get(image, "file_name", (str,), where) for key, (where, image) in images.items()}
    if split == UNLABELLED and "annotations" not in document:
        for key, file in files.items():
            yield _Face(images[key][0], file, split, *_nothing(len(scheme)))
        return
    orders = _orders(_by_id(document, "categories", path), path, scheme)
    for key, (where, face) in _by_id(document, "annotations", path).items():
        image, category = (_get(face, of, (int, str), where) for of in ("image_id", "category_id"))
        for of, known in (("image", files), ("category", orders)):
            if face[f"{of}_id"] not in known:
                raise UserError(f"{where}: no {of} has the id {face[f'{of}_id']!r:.40}; add it or mend {of}_id")
        order = orders[category]
        if order is None:  # another kind of object
            continue
        (points, hidden, box), fault = _nothing(len(scheme)), ""
        try:
            points, hidden = _keypoints(face.get("keypoints"), order)
            box = _bbox(face)
        except ValueError as error:
            fault = f"{path.name} annotation {key}: {error}"
        group, name = (
            "" if face.get(of) is None else str(_get(face, of, (int, str), where)) for of in ("group", "name")
        )
        subsets = _get({"subsets": [], **face}, "subsets", (list,), where)
        subsets = [_get({"subsets": name}, "subsets", (str,), where) for name in subsets]
        yield _Face(
            where, files[image], split, points, hidden, box, group, name, subsets, fault, box_form="corner and size"
        )


def _load_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep for COCO; mend it") from error
    except ValueError as error:
        raise UserError(f"{path}: no sound JSON ({error}); mend it or fetch the file again") from error


def _by_id(document: Mapping[str, Any], key: str, path: Path) -> dict[int | str, tuple[str, dict[str, Any]]]:
    """The objects of a list by their ids, each with what to call it."""
    items = document.get(key)
    if not isinstance(items, list):
        raise UserError(f"{path}: {key} is {'missing' if items is None else 'no list'}; COCO has a list of {key}")
    found: dict[int | str, tuple[str, dict[str, Any]]] = {}
    for i, item in enumerate(items):
        where = f"{path}: {key}[{i}]"
        if not isinstance(item, dict):
            raise UserError(f"{where} is no object; mend it")
        number = _get(item, "id", (int, str), where)
        if number in found:
            raise UserError(f"{where}: id {number!r:.40} stands there twice; number the {key} anew")
        found[number] = where, item
    return found


def _get(item: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wrong = "missing" if value is None else f"{value!r:.40}, not {' or '.join(kind.__name__ for kind in kinds)}"
        raise UserError(f"{where}: {key} is {wrong}; mend it")
    return value


def _orders(
    categories: Mapping[int | str, tuple[str, dict[str, Any]]], path: Path, scheme: Scheme
) -> dict[int | str, list[int] | None]:
    """Category -> where each point of the scheme stands among its keypoints; None for other objects."""
    orders: dict[int | str, list[int] | None] = dict.fromkeys(categories)
    others: list[list[str]] = []
    for key, (where, category) in categories.items():
        if "keypoints" in category:
            names = [
                _get({"keypoint": name}, "keypoint", (str,), where)
                for name in _get(category, "keypoints", (list,), where)
            ]
            if sorted(names) == sorted(scheme.names):
                orders[key] = [names.index(name) for name in scheme.names]
            else:
                others.append(names)
    if not others and not any(orders.values()):
        raise UserError(
            f'{path}: no category names its keypoints; add "keypoints", a list of the points of {scheme.name}'
        )
    if not any(orders.values()):
        missing = [name for name in scheme.names if name not in others[0]]
        surplus = [name for name in others[0] if name not in scheme.names] or ["one of them twice"]
        wrong = f"lack '{missing[0]}'{nearest(missing[0], surplus)}" if missing else f"have {surplus[0]:.60} besides"
        raise UserError(
            f"{path}: its {len(others[0])} keypoints are not the {len(scheme)} of {scheme.name}: they {wrong}; mend it or "
            "the scheme"
        )
    return orders


def _keypoints(value: Any, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) points and (K,) which are hidden."""
    if value is None:
        return _nothing(len(order))[:2]
    marks = _numbers(value, 3 * len(order), "keypoints").reshape(-1, 3)[order]
    if not np.isin(marks[:, 2], (0, 1, 2)).all():
        raise ValueError("a keypoint's v is none of 0, 1 and 2")
    return np.where(marks[:, 2:] > 0, marks[:, :2], np.nan), marks[:, 2] == 1


def _bbox(face: Mapping[str, Any]) -> np.ndarray:
    """(4,) left, top, width and height; NaN where it has no box of its own."""
    if face.get("bbox") is None or face.get("tight") is True:
        return np.full(4, np.nan)
    box = _numbers(face["bbox"], 4, "bbox")
    if (box[2:] <= 0).any():
        raise ValueError("its bbox has no size")
    return box


def _numbers(value: Any, count: int, key: str) -> np.ndarray:
    if not isinstance(value, list) or len(value) != count or not {*map(type, value)} <= {int, float}:
        raise ValueError(f"its {key} is no list of {count} numbers")
    try:
        found = np.array(value, np.float64)
    except OverflowError:
        found = np.array([np.inf])
    if not (np.abs(found) < LARGEST).all():
        raise ValueError(f"its {key} holds a number that is not finite")
    return found


# -- dlib's XML --------------------------------------------------------------------------------------------------------


def _of_xml(root: Path, path: Path, split: str, scheme: Scheme) -> Iterator[_Face]:
    place = {f"{k:0{width}d}": k for width in (2, 1, 3) for k in range(len(scheme))}
    place |= {name: k for k, name in enumerate(scheme.names)}
    for number, image in enumerate(pictures(path), 1):
        where = f"{path}: its <image> number {number}"
        file, boxes = inside(root, image.get("file", ""), where), image.findall("box")
        if not boxes and split == UNLABELLED:
            boxes = [image]  # a face of which nothing is known
        for element in boxes:
            if element.get("ignore") in ("1", "true"):
                continue
            (points, hidden, box), fault = _nothing(len(scheme)), ""
            try:
                points, hidden = read_parts(element, place), _hidden(element, place)
                if element is not image and element.get("tight") != "1":
                    box = np.array(read_box(element))
            except ValueError as error:
                fault = f"{path.name}: {error}"
            group, name, subsets = (element.get(key, "") for key in ("group", "name", "subsets"))
            member = subsets.split(",") if subsets else []
            yield _Face(where, file, split, points, hidden, box, group, name, member, fault, box_form="pixels")


def _hidden(element: "Element", place: Mapping[str, int]) -> np.ndarray:
    """(K,) bool by the visible='0' of <part> elements, whose names are known to be right."""
    hidden = np.zeros(max(place.values()) + 1, bool)
    for part in element.findall("part"):
        visible = part.get("visible", "1")
        if visible not in ("0", "1"):
            raise ValueError(f"a <part>'s visible is '{visible[:40]}', not 0 or 1")
        hidden[place[part.get("name", "")]] = visible == "0"
    return hidden
