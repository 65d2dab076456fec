"""iBUG 300-W in dlib's XML (http://dlib.net/files/data/ibug_300W_large_face_landmark_dataset.tar.gz).

One file a split lists images with any number of boxes, each with 68 named parts. The labels are whole
numbers, and dlib drew a train/test line of its own: this is another protocol than the .pts form and shares
no name with it.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from flr.data.formats.dlib_xml import inside, read_box, read_images, read_parts
from flr.data.formats.records import FaceRecord, no_labels
from flr.data.readers.ibug import MIRROR, photo, to_table
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.landmarks.scheme import IBUG68

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TRAIN = "labels_ibug_300W_train.xml"
TEST = "labels_ibug_300W_test.xml"
_PLACE = {f"{k:02d}": k for k in range(len(IBUG68))}


def read(root: Path, strict: bool = False) -> FaceTable:
    """300-W by dlib's XML, less the mirrored copies (stem ends with ``_mirror``).

    Points are dlib's own, 0-based whole pixels. A dlib box holds the pixels left to left + width - 1, so its
    edges, which `box` gives, lie at left - .5 and left + width - .5. A face's name is its image's path
    under `root`, with ``#`` and the box's number among all of the image's (from 1) where it has several;
    boxes of ignore='1' are passed over. The split is the file's. Subsets follow the folders (see
    `ibug.PARTS`), not the split: dlib's training file may list faces of a test folder. One of the files may be missing.
    """
    faces: list[FaceRecord] = []
    listed: dict[str, Path] = {}
    for split, name in (("train", TRAIN), ("test", TEST)):
        path = root / name
        if not os.path.isfile(path):
            continue
        for number, element in enumerate(read_images(path), 1):
            file = inside(root, element.get("file", ""), f"{path}: its <image> number {number}")
            if PurePosixPath(file).stem.endswith(MIRROR):
                continue
            if file in listed:
                raise UserError(f"{path}: lists {file}, as {listed[file].name} did before; take one out")
            listed[file] = path
            faces += _faces(file, element.findall("box"), split, path.name)
    if not listed:
        there = "no image is listed" if root.is_dir() else "there is no such folder"
        raise UserError(
            f"{root}: {there}; looked there for {TRAIN} and {TEST}; get dlib's copy of 300-W "
            "(http://dlib.net/files/data/ibug_300W_large_face_landmark_dataset.tar.gz), unpack it so that "
            "this folder holds these files, and set data.root=DIR or the variable FLR_DATA"
        )
    if not faces:
        raise UserError(f"{root}: {TRAIN} and {TEST} give no <box> that is not ignored; label some faces")
    return to_table(faces, root, strict, first_pixel=0, form="ibug_xml")


def _faces(file: str, boxes: list["Element"], split: str, source: str) -> Iterator[FaceRecord]:
    for number, element in enumerate(boxes, 1):
        if element.get("ignore") in ("1", "true"):
            continue
        name = f"{file}#{number}" if len(boxes) > 1 else file
        (points, hidden, box), fault = no_labels(len(IBUG68)), ""
        try:
            points, box = _points(element), np.array(read_box(element))
        except ValueError as error:
            fault = f"{source}: {error}"
        yield FaceRecord(name, file, split, points, hidden, box, photo(file), name, fault=fault)


def _points(element: "Element") -> np.ndarray:
    """(68, 2) float64 of a <box>'s <part> elements, which may stand in any order."""
    count = len(element.findall("part"))
    if count != len(_PLACE):
        raise ValueError(f"its <box> has {count} parts, not {len(_PLACE)}")
    return read_parts(element, _PLACE)
