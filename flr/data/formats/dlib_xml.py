"""dlib's XML of images with boxes, each with named parts."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from flr.data.boxes import faces_by_image
from flr.data.formats.records import (
    FaceRecord,
    has_box,
    label_rows,
    no_labels,
    note_skipped,
    number_text,
    shortest,
    subsets_of,
    under,
)
from flr.data.formats.text import to_number
from flr.data.table import UNLABELLED, FaceTable
from flr.errors import UserError
from flr.files import opened
from flr.landmarks.scheme import Scheme

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_images(path: Path, root: str = "dataset") -> Iterator["Element"]:
    """Each <image> of an XML file with its elements, which holds until the next one is asked for.

    Args:
        path: the file.
        root: the root element, by default dlib's.

    Raises:
        UserError: it cannot be read, or has another root.
    """
    tag = ""
    try:
        with opened(path) as stream:
            for _, element in iterparse(stream, forbid_dtd=True):
                tag = element.tag
                if tag == "image":
                    yield element
                    element.clear()  # the whole set would fill hundreds of MB
    except DefusedXmlException as error:
        raise UserError(
            f"{path}: declares a DTD or entities, which dlib's files never do and this reader refuses; "
            "fetch the file again, or take its <!DOCTYPE> out"
        ) from error
    except ParseError as error:
        raise UserError(f"{path}: malformed XML ({error}); fix it or fetch the file again") from error
    except (OSError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise UserError(f"{path}: cannot be read ({error}); fix it or fetch the file again") from error
    if tag != root:  # the root element ends last
        kind = "dlib's <dataset> or CVAT's <annotations>" if root == "dataset" else f"<{root}>"
        raise UserError(f"{path}: its root is <{tag}>, not {kind}; name another file")


def inside(root: Path, written: str, where: str) -> str:
    """An image's path under `root`, POSIX, from what the XML says.

    Raises:
        UserError: it says nothing, or leads out of `root`.
    """
    path = PurePosixPath(under(root, written))
    if not path.parts:
        raise UserError(f"{where} has no file attribute; name its image or take the element out")
    if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
        raise UserError(f"{where} has file='{written}', which leads out of {root}; name it relative to that")
    file = str(path)
    if not os.path.exists(root / file):
        # imglab says ISO-8859-1 on top and writes the system's bytes, so a UTF-8 name comes out garbled.
        with contextlib.suppress(UnicodeError):
            return file.encode("latin-1").decode()
    return file


def read_parts(element: "Element", place: Mapping[str, int]) -> np.ndarray:
    """(K, 2) float64 of a <box>'s <part> elements, NaN where there is none.

    Args:
        element: the <box>.
        place: a part's name -> the point it is, 0 to K - 1; a point may have several names.

    Raises:
        ValueError: what is wrong with them.
    """
    points: dict[int, tuple[float, float]] = {}
    for part in element.findall("part"):
        name = part.get("name", "")
        if name not in place:
            first, *_, last = place
            raise ValueError(f"a <part> is named '{name[:40]}', not {first} to {last}")
        if place[name] in points:
            raise ValueError(f"<part> {name} is given twice")
        points[place[name]] = _attribute(part, "x"), _attribute(part, "y")
    found = np.full((max(place.values()) + 1, 2), np.nan)
    if points:
        found[list(points)] = list(points.values())
    return found


def read_box(element: "Element") -> tuple[float, float, float, float]:
    """The first column and row, width and height of a <box> (see `flr.data.readers.ibug.box_edges`)."""
    left, top, width, height = (_attribute(element, key) for key in ("left", "top", "width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError("its <box> has no size")
    return left, top, width, height


def _attribute(element: "Element", key: str) -> float:
    try:
        return to_number(element.attrib[key])
    except KeyError:
        raise ValueError(f"a <{element.tag}> has no {key}") from None
    except ValueError as error:
        raise ValueError(f"a <{element.tag}>'s {key}: {error}") from None


def read_records(root: Path, path: Path, split: str, scheme: Scheme) -> Iterator[FaceRecord]:
    """Read the faces of a dlib XML file; a face with a fault is given with its reason."""
    place = {f"{k:0{width}d}": k for width in (2, 1, 3) for k in range(len(scheme))}
    place |= {name: k for k, name in enumerate(scheme.names)}
    skipped = 0
    for number, image in enumerate(read_images(path), 1):
        where = f"{path}: its <image> number {number}"
        file, boxes = inside(root, image.get("file", ""), where), image.findall("box")
        if not boxes and split == UNLABELLED:
            boxes = [image]  # a face of which nothing is known
        for element in boxes:
            if element.get("ignore") in ("1", "true"):
                skipped += 1
                continue
            (points, hidden, box), fault = no_labels(len(scheme)), ""
            try:
                points, hidden = read_parts(element, place), _hidden(element, place)
                if element is not image and element.get("tight") != "1":
                    box = np.array(read_box(element))
            except ValueError as error:
                fault = f"{path.name}: {error}"
            group, name, subsets = (element.get(key, "") for key in ("group", "name", "subsets"))
            member = subsets.split(",") if subsets else []
            yield FaceRecord(where, file, split, points, hidden, box, group, name, member, fault)
    note_skipped(path, skipped, "boxes with ignore='1'")


def _hidden(element: "Element", place: Mapping[str, int]) -> np.ndarray:
    """(K,) bool by the visible='0' of <part> elements, whose names are known to be right."""
    hidden = np.zeros(max(place.values()) + 1, bool)
    for part in element.findall("part"):
        visible = part.get("visible", "1")
        if visible not in ("0", "1"):
            raise ValueError(f"a <part>'s visible is '{visible[:40]}', not 0 or 1")
        hidden[place[part.get("name", "")]] = visible == "0"
    return hidden


def xml_text(table: FaceTable) -> Iterator[str]:
    """The pieces of a file of dlib's XML."""
    rows = np.concatenate(faces_by_image(table))
    blank: np.ndarray = ~has_box(table) & ~table.labelled.any(1)  # each an <image> of its own, which comes last
    rows = rows[np.argsort(blank[rows], kind="stable")]
    table, blank = table.take(rows), blank[rows]
    boxed, members = has_box(table), subsets_of(table)
    # A dlib box is the pixels left to left + width - 1; one that is drawn round points is to hold them.
    own, tight = table.box.astype(np.float64), table.tight.astype(np.float64)
    low = shortest(table.box[:, :2], own[:, :2] + 0.5, lambda few: few - 0.5)
    side = shortest(table.box[:, 2:], own[:, 2:] + 0.5 - low, lambda few: low + few - 0.5)
    box = np.concatenate([low, side], 1)
    drawn = np.concatenate([np.floor(tight[:, :2]), np.ceil(tight[:, 2:]) - np.floor(tight[:, :2]) + 1], 1)
    box[~boxed] = drawn[~boxed]
    width = max(2, len(str(len(table.scheme) - 1)))
    yield f"<?xml version='1.0' encoding='UTF-8'?>\n<dataset>\n<name>{table.scheme.name}</name>\n<images>\n"
    inside = ""  # the image whose boxes are being written
    for i, marks in enumerate(label_rows(table)):
        image = str(table.image[i])
        about = f" name={quoteattr(table.name[i])} group={quoteattr(table.group[i])}"
        about += f" subsets={quoteattr(','.join(members[i]))}" if members[i] else ""
        if inside and (image != inside or blank[i]):
            yield "  </image>\n"
            inside = ""
        if blank[i]:
            yield f"  <image file={quoteattr(image)}{about}/>\n"
            continue
        if not inside:
            yield f"  <image file={quoteattr(image)}>\n"
            inside = image
        left, top, across, down = map(number_text, box[i].tolist())
        about += "" if boxed[i] else " tight='1'"
        yield f"    <box top='{top}' left='{left}' width='{across}' height='{down}'{about}>\n"
        for k in np.flatnonzero(table.labelled[i]).tolist():
            x, y = map(number_text, marks[k])
            hidden = "" if table.visible[i, k] else " visible='0'"
            yield f"      <part name='{k:0{width}d}' x='{x}' y='{y}'{hidden}/>\n"
        yield "    </box>\n"
    yield f"{'  </image>' if inside else ''}\n</images>\n</dataset>\n"
