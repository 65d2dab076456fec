"""LaPa (Liu et al. 2020, https://github.com/JDAI-CV/lapa-dataset): 106 points of 22,176 faces.

The root contains ``train/``, ``val/`` and ``test/``, each with ``images/STEM.jpg`` and ``landmarks/STEM.txt``: a line with the
count, 106, then x and y of a point a line. (``labels/`` holds masks, which are not read.) Points are read as counted from 0,
as all known code does; no file states it. Its photos come from 300-W and MegaFace, so its training part may hold faces of 300-W's
test.
"""

from pathlib import Path

import numpy as np

from flr.data.formats.points_text import read_points
from flr.data.readers.published import require, with_counts
from flr.data.table import FaceTable, from_files
from flr.landmarks.scheme import LAPA106

SITE = "https://github.com/JDAI-CV/lapa-dataset"
TOTAL = {"train": 18_176, "val": 2000, "test": 2000}


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read LaPa as published. A face is named by its image, ``train/images/STEM.jpg``, and grouped by its photo.

    `form` is ``lapa``, with the counts if they are not the official ones: ``lapa[train:9000|val:2000|test:2000]``.
    """
    places = [f"{split}/landmarks" for split in TOTAL]
    require(root, places, f"get LaPa ({SITE}; for research) and unpack it so that this folder holds train/ val/ test/")
    images: list[str] = []
    splits: list[str] = []
    points: list[np.ndarray] = []
    bad: dict[int, str] = {}
    for split in TOTAL:
        for path in sorted((root / split / "landmarks").glob("[!.]*.txt")):
            found, fault = read_points(path, len(LAPA106), counted=True)
            if fault:
                bad[len(images)] = fault
            images.append(f"{split}/images/{path.stem}.jpg")
            splits.append(split)
            points.append(found)
    values = np.array(points).reshape(-1, len(LAPA106), 2)
    groups = [Path(image).stem.rpartition("_")[0] or Path(image).stem for image in images]
    table = from_files(
        "lapa", LAPA106, root, images, values, splits, published=(values,), strict=strict, group=groups, bad=bad,
        labelled=np.ones(values.shape[:2], bool),
    )  # fmt: skip
    return with_counts(table, TOTAL)
