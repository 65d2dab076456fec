"""COCO keypoints JSON (https://cocodataset.org/#format-data)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from flr.data.formats.records import (
    FaceRecord,
    has_box,
    image_size,
    label_rows,
    no_labels,
    note_skipped,
    shortest,
    subsets_of,
)
from flr.data.formats.text import MAX_NUMBER, read_text
from flr.data.table import UNLABELLED, FaceTable
from flr.errors import UserError, nearest
from flr.landmarks.scheme import Scheme


def read_records(
    path: Path, split: str, scheme: Scheme, sizes: dict[str, tuple[int, int]] | None = None
) -> Iterator[FaceRecord]:
    """Yield the faces of a file; a crowd and an annotation without keypoints are skipped, and their count is printed.

    Args:
        path: The file.
        split: Split of its faces.
        scheme: Scheme of the points.
        sizes: Gets the width and height of each image by its name, where the file states them.

    Raises:
        UserError: It is not a COCO file, or does not fit the scheme.
    """
    document = load_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a COCO file, which is an object with images, annotations and categories")
    images = _by_id(document, "images", path)
    files = {key: _get(image, "file_name", (str,), where) for key, (where, image) in images.items()}
    if sizes is not None:
        sizes |= {files[key]: size for key, (_, image) in images.items() if (size := _size(image))}
    if split == UNLABELLED and "annotations" not in document:
        for key, file in files.items():
            yield FaceRecord(images[key][0], file, split, *no_labels(len(scheme)))
        return
    categories = _by_id(document, "categories", path)
    orders = _orders(categories, path, scheme)
    faces, skipped = _by_id(document, "annotations", path), 0
    # mmpose's files, whose categories name no points, write 1 for every point that has a label.
    hides = any(isinstance(face.get("keypoints"), list) and 2 in face["keypoints"][2::3] for _, face in faces.values())
    for key, (where, face) in faces.items():
        image, category = (_get(face, of, (int, str), where) for of in ("image_id", "category_id"))
        for of, known in (("image", files), ("category", orders)):
            if face[f"{of}_id"] not in known:
                raise UserError(f"{where}: no {of} has the id {face[f'{of}_id']!r:.40}; add it or fix {of}_id")
        order = orders[category]
        if order is None:  # another kind of object
            continue
        if split != UNLABELLED and _has_no_points(face):
            skipped += 1
            continue
        (points, hidden, box), fault = no_labels(len(scheme)), ""
        try:
            points, hidden = _keypoints(face.get("keypoints"), order)
            hidden &= hides or bool(categories[category][1]["keypoints"])
            box = _bbox(face)
        except ValueError as error:
            fault = f"{path.name} annotation {key}: {error}"
        group, name = (
            "" if face.get(of) is None else str(_get(face, of, (int, str), where)) for of in ("group", "name")
        )
        subsets = _get({"subsets": [], **face}, "subsets", (list,), where)
        subsets = [_get({"subsets": name}, "subsets", (str,), where) for name in subsets]
        yield FaceRecord(where, files[image], split, points, hidden, box, group, name, subsets, fault)
    note_skipped(path, skipped, "annotations with iscrowd=1 or num_keypoints=0")


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of an image; None where the file does not state both, or writes 0."""
    try:
        return image_size(image.get("width"), image.get("height"))
    except ValueError:
        return None


def _has_no_points(face: Mapping[str, Any]) -> bool:
    """Whether an annotation is of a crowd, or states that it has no keypoint."""
    kinds = face["keypoints"][2::3] if isinstance(face.get("keypoints"), list) else []
    return face.get("iscrowd") == 1 or (face.get("num_keypoints") == 0 and all(kind == 0 for kind in kinds))


def load_json(path: Path) -> Any:
    """Read a JSON file strictly: NaN and infinity are refused.

    Raises:
        UserError: it is not JSON.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a JSON number")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep for COCO; fix it") from error
    except ValueError as error:
        raise UserError(f"{path}: invalid JSON ({error}); fix it or fetch the file again") from error


def _by_id(document: Mapping[str, Any], key: str, path: Path) -> dict[int | str, tuple[str, dict[str, Any]]]:
    """The objects of a list by their ids, each with what to call it."""
    items = document.get(key)
    if not isinstance(items, list):
        raise UserError(f"{path}: {key} is {'missing' if items is None else 'not a list'}; COCO has a list of {key}")
    found: dict[int | str, tuple[str, dict[str, Any]]] = {}
    for i, item in enumerate(items):
        where = f"{path}: {key}[{i}]"
        if not isinstance(item, dict):
            raise UserError(f"{where} is not an object; fix it")
        number = _get(item, "id", (int, str), where)
        if number in found:
            raise UserError(f"{where}: id {number!r:.40} is there twice; number the {key} anew")
        found[number] = where, item
    return found


def _get(item: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wrong = "missing" if value is None else f"{value!r:.40}, not {' or '.join(kind.__name__ for kind in kinds)}"
        raise UserError(f"{where}: {key} is {wrong}; fix it")
    return value


def _orders(
    categories: Mapping[int | str, tuple[str, dict[str, Any]]], path: Path, scheme: Scheme
) -> dict[int | str, list[int] | None]:
    """Return category -> the place of each point of the scheme among its keypoints; None for other objects."""
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
            elif not names:  # as in mmpose's files: the points are in the scheme's order
                orders[key] = list(range(len(scheme)))
            else:
                others.append(names)
    if not others and not any(orders.values()):
        raise UserError(
            f'{path}: no category names its keypoints; add "keypoints", a list of the points of {scheme.name}'
        )
    if not any(orders.values()):
        missing = [name for name in scheme.names if name not in others[0]]
        surplus = [name for name in others[0] if name not in scheme.names] or ["one of them twice"]
        wrong = f"lack '{missing[0]}'{nearest(missing[0], surplus)}" if missing else f"have also {surplus[0]:.60}"
        raise UserError(
            f"{path}: its {len(others[0])} keypoints are not the {len(scheme)} of {scheme.name}: they {wrong}; fix it or "
            "the scheme"
        )
    return orders


def _keypoints(value: Any, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) points and (K,) which are hidden."""
    if value is None:
        return no_labels(len(order))[:2]
    marks = numbers(value, 3 * len(order), "keypoints").reshape(-1, 3)[order]
    if not np.isin(marks[:, 2], (0, 1, 2)).all():
        raise ValueError("a keypoint's v is not 0, 1 or 2")
    return np.where(marks[:, 2:] > 0, marks[:, :2], np.nan), marks[:, 2] == 1


def _bbox(face: Mapping[str, Any]) -> np.ndarray:
    """(4,) left, top, width and height; NaN where it has no box of its own."""
    if face.get("bbox") is None or face.get("tight") is True:
        return np.full(4, np.nan)
    box = numbers(face["bbox"], 4, "bbox")
    if (box[2:] <= 0).any():
        raise ValueError("its bbox has no size")
    return box


def numbers(value: Any, count: int, key: str) -> np.ndarray:
    """Convert a list of JSON numbers to (count,) float64; `key` names it in an error.

    Raises:
        ValueError: It is not such a list, or a number is not finite or too large.
    """
    if not isinstance(value, list) or len(value) != count or not {*map(type, value)} <= {int, float}:
        raise ValueError(f"its {key} is not a list of {count} numbers")
    try:
        found = np.array(value, np.float64)
    except OverflowError:
        found = np.array([np.inf])
    if not (np.abs(found) < MAX_NUMBER).all():
        raise ValueError(f"its {key} holds a number that is not finite or not below {MAX_NUMBER:g}")
    return found


def document_text(
    scheme: Scheme, images: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]], description: str
) -> Iterator[str]:
    """Yield the pieces of a JSON file, whose objects are written as they come."""
    info = {"description": f"{description}; an integer coordinate is a pixel's centre"}
    category = {"id": 1, "name": "face", "supercategory": "face", "keypoints": list(scheme.names), "skeleton": []}
    yield f'{{"info": {json.dumps(info)},\n"categories": [{json.dumps(category)}],\n"images": ['
    yield from _listed(images)
    yield '],\n"annotations": ['
    yield from _listed(annotations)
    yield "]}\n"


def coco_text(table: FaceTable, size: np.ndarray) -> Iterator[str]:
    """Yield the pieces of the JSON file of N faces, of whose images `size` (N, 2) is the height and width."""
    ids = {name: number for number, name in enumerate(dict.fromkeys(table.image.tolist()), 1)}
    sizes = dict(zip(reversed(table.image.tolist()), size[::-1].tolist(), strict=True))
    images = (
        {"id": number, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
        for name, number in ids.items()
    )
    yield from document_text(table.scheme, images, _annotations(table, ids), f"{table.form}, {table.scheme.name}")


def center_and_scale(low: np.ndarray, side: np.ndarray) -> dict[str, Any]:
    """Return the centre of a box, and its larger side in units of 200 pixels: mmpose reads a face's crop from these."""
    return {"center": (low + side / 2).round(3).tolist(), "scale": round(float(side.max()) / 200, 4)}


def _listed(items: Iterable[Any]) -> Iterator[str]:
    for i, item in enumerate(items):
        yield f"{',' if i else ''}\n{json.dumps(item)}"


def _annotations(table: FaceTable, ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    boxed = has_box(table)
    box: np.ndarray = np.where(boxed[:, None], table.box, table.tight).astype(np.float32)
    low = shortest(box[:, :2], box[:, :2].astype(np.float64), lambda few: few)
    side = shortest(box[:, 2:], box[:, 2:] - low, lambda few: few + low)
    kinds = np.where(table.labelled, np.where(table.visible, 2, 1), 0)
    members = subsets_of(table)
    for i, marks in enumerate(label_rows(table)):
        keypoints = [0 if isnan(value) else value for mark in marks for value in (*mark, 0)]
        keypoints[2::3] = kinds[i].tolist()
        face = {"id": i + 1, "image_id": ids[table.image[i]], "category_id": 1, "iscrowd": 0, "keypoints": keypoints}
        face |= {"num_keypoints": int(table.labelled[i].sum()), "name": table.name[i], "group": table.group[i]}
        face |= {"subsets": members[i]}
        if boxed[i] or table.labelled[i].any():
            face |= {"bbox": [*low[i].tolist(), *side[i].tolist()], "area": round(float(side[i].prod()), 3)}
            face |= center_and_scale(low[i], side[i])
            face |= {} if boxed[i] else {"tight": True}
        yield face
