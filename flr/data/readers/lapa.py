"""LaPa (Liu et al. 2020, https://github.com/JDAI-CV/lapa-dataset): 106 points of 22,176 faces.

The root contains ``train/``, ``val/`` and ``test/``, each with ``images/STEM.jpg`` and ``landmarks/STEM.txt``: a line with the
count, 106, then x and y of a point a line. (``labels/`` holds masks, which are not read.) Points are read as counted from 0,
as all known code does; no file states it. Its photos come from 300-W and MegaFace, so its training part may hold faces of 300-W's
test.
"""

from pathlib import Path

from flr.data.formats.points_text import read_points
from flr.data.readers.published import require, stack_points, with_counts
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import LAPA106

SITE = "https://github.com/JDAI-CV/lapa-dataset"
TOTAL = {"train": 18_176, "val": 2000, "test": 2000}


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read LaPa as published. A face is named by its image, ``train/images/STEM.jpg``, and grouped by its photo.

    `form` is ``lapa``, with the counts if they are not the official ones: ``lapa[train:9000|val:2000|test:2000]``.
    """
    places = [f"{split}/landmarks" for split in TOTAL]
    require(root, places, f"get LaPa ({SITE}; for research) and unpack it so that this folder holds train/ val/ test/")
    labels = [(split, path) for split in TOTAL for path in sorted((root / split / "landmarks").glob("[!.]*.txt"))]
    points, bad = stack_points((read_points(path, len(LAPA106), counted=True) for _, path in labels), len(LAPA106))
    table = make_table(
        "lapa", LAPA106, root, [f"{split}/images/{path.stem}.jpg" for split, path in labels], points,
        [split for split, _ in labels], published=(points,), strict=strict, bad=bad,
        group=[path.stem.rpartition("_")[0] or path.stem for _, path in labels],
    )  # fmt: skip
    return with_counts(table, TOTAL)
