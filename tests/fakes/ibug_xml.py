"""iBUG 300-W as dlib lays it out: two XML files of whole-number labels, a ``_mirror`` copy of every image.

The first picture of each folder holds two faces, as imglab allows; it also has a box that is to be ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from flr.landmarks.scheme import IBUG68
from tests.fakes import ibug

PARTS = {"afw": 6, "helen/trainset": 6, "lfpw/trainset": 4, "helen/testset": 4, "lfpw/testset": 3, "ibug": 3}
STYLE = "<?xml-stylesheet type='text/xsl' href='image_metadata_stylesheet.xsl'?>"


def write(
    root: Path,
    parts: Mapping[str, int] = PARTS,
    seed: int = 0,
    size: tuple[int, int] = ibug.SIZE,
    mirrored: bool = True,
) -> None:
    """Write a set of so many faces a folder, not counting mirrored copies.

    Args:
        root: the folder to fill.
        parts: folder -> number of faces; afw and the trainset folders go to the train file.
        seed: other faces for each.
        size: width and height of a picture of one face.
        mirrored: write the ``_mirror`` copies as well.
    """
    entries: dict[str, list[str]] = {"train": [], "test": []}
    for part, count in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        split = "train" if part == "afw" or part.endswith("trainset") else "test"
        left = list(ibug.faces(count, size, ibug.folder_seed(part, seed)))
        number = 0
        while left:
            points = np.stack([left.pop(0) for _ in range(2 if not number and len(left) > 1 else 1)])
            points[1:, :, 0] += size[0]  # side by side
            wide = (size[0] * len(points), size[1])
            image = ibug.picture(points.reshape(-1, 2), wide, seed=number)
            file = f"{part}/{ibug.file_name(part, number)}"
            ibug.save(root / file, image)
            entries[split].append(entry(file, wide, points, ignored=number == 0))
            if mirrored:
                copy = f"{file.rpartition('.')[0]}_mirror.jpg"
                ibug.save(root / copy, image[:, ::-1].copy())
                turned = points[:, IBUG68.mirror_order] * [-1, 1] + [wide[0] - 1, 0]
                entries[split].append(entry(copy, wide, turned, ignored=number == 0))
            number += 1
    for split, rows in entries.items():
        if rows:
            (root / f"labels_ibug_300W_{split}.xml").write_text(document(*rows), encoding="latin-1")


def document(*entries: str) -> str:
    """A whole file of <image> entries."""
    head = f"<?xml version='1.0' encoding='ISO-8859-1'?>\n{STYLE}\n<dataset>\n<name>iBUG</name>\n<images>\n"
    return head + "".join(entries) + "</images>\n</dataset>\n"


def entry(file: str, size: tuple[int, int], points: np.ndarray, ignored: bool = False) -> str:
    """An <image> with a box a face (points: (F, 68, 2), 0-based); `ignored` adds a box to be ignored."""
    boxes = "".join(box(face) for face in points)
    if ignored:
        boxes += "    <box top='1' left='1' width='9' height='9' ignore='1'/>\n"
    width, height = size
    return f"  <image file={quoteattr(file)} width='{width}' height='{height}'>\n{boxes}  </image>\n"


def box(points: np.ndarray) -> str:
    """A <box> just round 68 points, which are its parts."""
    marks = points.round().astype(int)
    left, top = marks.min(0)
    width, height = marks.max(0) - marks.min(0) + 1  # both edge pixels are in it
    parts = [f"      <part name='{k:02d}' x='{x}' y='{y}'/>\n" for k, (x, y) in enumerate(marks)]
    head = f"    <box top='{top}' left='{left}' width='{width}' height='{height}'>\n"
    return head + "".join(parts) + "    </box>\n"
