"""Keypoint files of the annotation tools Label Studio (JSON) and CVAT (``CVAT for images 1.1``, XML).

Both hold points, which are hidden, and boxes, so that an annotator can correct predictions and flr can read them back; they
hold no names, groups or subsets of faces. Both count from an image's upper left corner, where the first pixel's centre is 0.5.

In Label Studio a face is a rectangle, and its points are keypoints that name it as their ``parentID``; a hidden point has the
text ``hidden``. In CVAT a face is a skeleton ``face``, whose box has the same ``group_id``. Points of one face without a
rectangle or skeleton are read as well, as are CVAT's points in the scheme's order.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from flr.data.boxes import faces_by_image
from flr.data.formats.coco import load_json, numbers
from flr.data.formats.dlib_xml import inside, read_images
from flr.data.formats.records import FaceRecord, has_box, image_size, label_rows, no_labels, under
from flr.data.formats.text import to_number
from flr.data.table import UNLABELLED, FaceTable
from flr.errors import UserError, nearest
from flr.landmarks.scheme import Scheme

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LOCAL = "/data/local-files/"  # where Label Studio serves the files of a folder
UPLOAD = re.compile(r"[0-9a-f]{8}-")  # what it puts before the name of an uploaded file
CENTRE = 0.5  # of the first pixel, in both
UNGROUPED = "0"  # group_id of a shape in CVAT that belongs to no group


class MarkedFace(NamedTuple):
    """A face as an annotator sees it.

    Attributes:
        points: (K, 2) in flr's pixels, NaN where there is no label.
        hidden: (K,) bool.
        box: (4,) edges, NaN where there is none.
    """

    points: np.ndarray
    hidden: np.ndarray
    box: np.ndarray


class MarkedImage(NamedTuple):
    """An image with its faces."""

    name: str
    width: int
    height: int
    faces: list[MarkedFace]


def marked_images(table: FaceTable, size: np.ndarray) -> Iterator[MarkedImage]:
    """Yield the images of N faces, of which `size` (N, 2) is the height and width."""
    points = [np.array(marks) for marks in label_rows(table)]
    box = np.where(has_box(table)[:, None], table.box, np.nan).astype(np.float64)
    hidden = table.labelled & ~table.visible
    for rows in faces_by_image(table):
        first = int(rows[0])
        faces = [MarkedFace(points[i], hidden[i], box[i]) for i in rows.tolist() if table.labelled[i].any()]
        yield MarkedImage(str(table.image[first]), int(size[first, 1]), int(size[first, 0]), faces)


# -- Label Studio ------------------------------------------------------------------------------------------------------


def label_studio_text(scheme: Scheme, images: Iterable[MarkedImage], kind: str = "annotations") -> Iterator[str]:
    """Yield the pieces of a file of tasks, whose faces are ``annotations``, or ``predictions`` to be corrected."""
    yield "["
    for number, image in enumerate(images):
        results = [part for i, face in enumerate(image.faces) for part in _regions(scheme, image, face, f"face{i}")]
        task = {"data": {"image": f"{LOCAL}?d={quote(image.name)}"}, kind: [{"result": results}]}
        yield f"{',' if number else ''}\n{json.dumps(task)}"
    yield "\n]\n"


def _regions(scheme: Scheme, image: MarkedImage, face: MarkedFace, parent: str) -> Iterator[dict[str, Any]]:
    size = np.array([image.width, image.height])
    common = {"to_name": "image", "original_width": image.width, "original_height": image.height, "image_rotation": 0}
    if np.isfinite(face.box).all():
        x, y, right, bottom = (100 * (face.box.reshape(2, 2) + CENTRE) / size).ravel().tolist()
        value = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0, "rectanglelabels": ["face"]}
        yield {"id": parent, "type": "rectanglelabels", "from_name": "face", "value": value, **common}
    for k in np.flatnonzero(np.isfinite(face.points).all(1)).tolist():
        x, y = (100 * (face.points[k] + CENTRE) / size).tolist()
        value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [scheme.names[k]]}
        point = {
            "id": f"{parent}-{k}",
            "parentID": parent,
            "type": "keypointlabels",
            "from_name": "points",
            "value": value,
        }
        yield point | common | ({"meta": {"text": ["hidden"]}} if face.hidden[k] else {})


def is_label_studio(path: Path) -> bool:
    """Whether a JSON file is a list, as Label Studio's tasks are, and COCO is not."""
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def read_label_studio(
    root: Path, path: Path, split: str, scheme: Scheme, sizes: dict[str, tuple[int, int]]
) -> Iterator[FaceRecord]:
    """Yield the faces of a file of tasks: of each the last annotation that was not cancelled, else the last prediction.

    Raises:
        UserError: It is not such a file, or does not fit the scheme.
    """
    for number, task in enumerate(load_json(path)):
        where = f"{path}: task {number}"
        try:
            where = f"{path}: task {task.get('id', number)}"
            image = _image_of(root, task["data"])
            done = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
            made = done or task.get("predictions") or [{"result": []}]
            faces = _faces(made[-1]["result"], scheme, where)
            for size, points, hidden, box in faces:
                sizes[image] = size
                yield FaceRecord(where, image, split, points, hidden, box)
            if not faces and split == UNLABELLED:
                yield FaceRecord(where, image, split, *no_labels(len(scheme)))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where}: not a task of keypoints that Label Studio exports ({error!r:.100}); fix it"
            ) from error


def _image_of(root: Path, data: Mapping[str, Any]) -> str:
    """Return the image under the root that a task shows."""
    address = data["image"] if "image" in data or len(data) > 1 else next(iter(data.values()))
    parts = urlsplit(address)
    if parts.path == LOCAL:
        return parse_qs(parts.query)["d"][0]
    name = unquote(parts.path) if parts.scheme or address.startswith("/data/") else address
    if "/upload/" in name:
        name = name.rpartition("/")[2]
        return name if (root / name).exists() else UPLOAD.sub("", name, count=1)
    return under(root, name)


def _faces(
    results: Iterable[Mapping[str, Any]], scheme: Scheme, where: str
) -> list[tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]]:
    """Return the image's size, the points, which are hidden, and the box of each face."""
    found: dict[Any, tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]] = {}
    regions = [item for item in results if item.get("type") in ("rectanglelabels", "rectangle", "keypointlabels")]
    boxes = [item["id"] for item in regions if item["type"].startswith("rectangle")]
    for item in regions:
        value, is_box = item["value"], item["type"].startswith("rectangle")
        if item.get("image_rotation"):
            raise UserError(f"{where}: its image was rotated in Label Studio; rotate the file itself")
        parent = item["id"] if is_box else item.get("parentID") or (boxes[0] if len(boxes) == 1 else None)
        if parent is None and boxes:
            raise UserError(f"{where}: a point belongs to none of its {len(boxes)} rectangles; make one its parent")
        size = image_size(item["original_width"], item["original_height"])
        _, points, hidden, box = found.setdefault(parent, (size, *no_labels(len(scheme))))
        corner = _pixels(value, ("x", "y"), size) - CENTRE
        if is_box:
            box[:] = [*corner, *(corner + _pixels(value, ("width", "height"), size))]
        else:
            k = _place(value["keypointlabels"][0], scheme, where)
            points[k], hidden[k] = corner, "hidden" in item.get("meta", {}).get("text", ())
    return list(found.values())


def _pixels(value: Mapping[str, Any], keys: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Convert two percentages of an image's size to pixels."""
    return numbers([value[key] for key in keys], 2, " and ".join(keys)) * size / 100


def _place(name: str, scheme: Scheme, where: str) -> int:
    if name not in scheme.names:
        raise UserError(f"{where}: {scheme.name} has no point '{name!s:.60}'{nearest(str(name), scheme.names)}")
    return scheme.names.index(name)


# -- CVAT --------------------------------------------------------------------------------------------------------------


def cvat_text(scheme: Scheme, images: Iterable[MarkedImage]) -> Iterator[str]:
    """Yield the pieces of an XML file of skeletons."""
    yield "<?xml version='1.0' encoding='utf-8'?>\n<annotations>\n<version>1.1</version>\n"
    for number, image in enumerate(images):
        yield f"<image id='{number}' name={quoteattr(image.name)} width='{image.width}' height='{image.height}'>\n"
        for group, face in enumerate(image.faces, 1):
            if np.isfinite(face.box).all():
                edges = zip(("xtl", "ytl", "xbr", "ybr"), (face.box + CENTRE).tolist(), strict=True)
                attributes = " ".join(f"{key}='{value!r}'" for key, value in edges)
                yield f"  <box label='face' occluded='0' {attributes} z_order='0' group_id='{group}'/>\n"
            yield f"  <skeleton label='face' z_order='0' group_id='{group}'>\n"
            for name, point, hidden in zip(scheme.names, face.points, face.hidden.tolist(), strict=True):
                known = bool(np.isfinite(point).all())
                x, y = (point + CENTRE).tolist() if known else (0.0, 0.0)
                attributes = f"outside='{int(not known)}' occluded='{int(hidden)}' points='{x!r},{y!r}'"
                yield f"    <points label={quoteattr(name)} {attributes}/>\n"
            yield "  </skeleton>\n"
        yield "</image>\n"
    yield "</annotations>\n"


def is_cvat(path: Path) -> bool:
    """Whether an XML file's root is CVAT's."""
    with path.open("rb") as file:
        return re.search(rb"<annotations[\s>]", file.read(1024)) is not None


def read_cvat(
    root: Path, path: Path, split: str, scheme: Scheme, sizes: dict[str, tuple[int, int]]
) -> Iterator[FaceRecord]:
    """Yield the faces of a CVAT file.

    Raises:
        UserError: It is not such a file, or does not fit the scheme.
    """
    for number, image in enumerate(read_images(path, "annotations")):
        where = f"{path}: image {image.get('id', number)}"
        name = inside(root, image.get("name", ""), where)
        faces: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        try:
            sizes[name] = image_size(image.attrib["width"], image.attrib["height"])
            for shape in image.iterfind("*"):
                if shape.tag in ("box", "points", "skeleton"):
                    group = shape.get("group_id", UNGROUPED)
                    if group == UNGROUPED and shape.tag == "skeleton":
                        group = f"skeleton {len(faces)}"  # a face of its own
                    _read_shape(shape, faces.setdefault(group, no_labels(len(scheme))), scheme, where)
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: not keypoints of CVAT ({error!r:.100}); fix it") from error
        if UNGROUPED in faces and len(faces) > 1:
            _, _, lone_box = faces.pop(UNGROUPED)
            if len(faces) == 1:  # whose box it is; of several faces none is known to have it
                _, _, box = next(iter(faces.values()))
                box[:] = np.where(np.isnan(box), lone_box, box)
        for points, hidden, box in faces.values():
            yield FaceRecord(where, name, split, points, hidden, box)
        if not faces and split == UNLABELLED:
            yield FaceRecord(where, name, split, *no_labels(len(scheme)))


def _read_shape(shape: "Element", face: tuple[np.ndarray, np.ndarray, np.ndarray], scheme: Scheme, where: str) -> None:
    """Add a shape to its face."""
    points, hidden, box = face
    if shape.tag == "box":
        box[:] = [to_number(shape.attrib[key]) - CENTRE for key in ("xtl", "ytl", "xbr", "ybr")]
        return
    for mark in shape.findall("points") if shape.tag == "skeleton" else [shape]:
        values = [[to_number(word) - CENTRE for word in pair.split(",")] for pair in mark.attrib["points"].split(";")]
        if any(len(pair) != 2 for pair in values):
            raise ValueError(f"points='{mark.attrib['points'][:40]}'")
        if mark is shape and len(values) == len(scheme) > 1:
            points[:] = values
        elif mark.get("outside") != "1":
            k = _place(mark.attrib["label"], scheme, where)
            points[k], hidden[k] = values[0], mark.get("occluded") == "1"
