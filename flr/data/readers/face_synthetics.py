"""FaceSynthetics (Wood et al. 2021, https://github.com/microsoft/FaceSynthetics): 100,000 rendered faces with 70 points.

The root contains ``000000.png``, ``000000_ldmks.txt`` with x and y of 70 points a line, the 68 of 300-W and the pupils, and
``000000_seg.png``, which is not read. Points are read as counted from 0; no file states it. Nor does one state which pupil comes
first: each pupil is matched with the eye that it is in.
"""

import dataclasses
from pathlib import Path

import numpy as np

from flr.data.formats.points_text import read_points
from flr.data.readers.published import require, stack_points
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import IBUG70

SITE = "https://github.com/microsoft/FaceSynthetics"
TOTAL = 100_000
LABELS = "_ldmks.txt"


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read FaceSynthetics as published, all as training faces, so that ``data.test_fraction`` holds out a test part.

    `form` is ``face_synthetics``, with the count if it is not the official one: ``face_synthetics[1000]``.
    """
    files = sorted(path.name for path in root.glob(f"[!.]*{LABELS}"))
    get = (
        f"get FaceSynthetics ({SITE}; for research) and unpack dataset_100000.zip or dataset_1000.zip into this folder"
    )
    require(root, files[:1] or [f"000000{LABELS}"], get)
    points, bad = stack_points((read_points(root / name, len(IBUG70)) for name in files), len(IBUG70))
    table = make_table(
        "face_synthetics", IBUG70, root, [f"{name.removesuffix(LABELS)}.png" for name in files], _order_pupils(points),
        ["train"] * len(files), published=(points,), strict=strict, bad=bad,
    )  # fmt: skip
    return table if len(table) == TOTAL else dataclasses.replace(table, form=f"face_synthetics[{len(table)}]")


def _order_pupils(points: np.ndarray) -> np.ndarray:
    """Exchange the pupils (N, 70, 2) of all faces if most are in the eye of the other."""
    right, left = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    pupils = points[:, 68:]
    straight = np.linalg.norm(pupils - np.stack([right, left], 1), axis=-1).sum(1)
    crossed = np.linalg.norm(pupils - np.stack([left, right], 1), axis=-1).sum(1)
    if np.nanmedian(straight - crossed) <= 0:
        return points
    return np.concatenate([points[:, :68], points[:, :67:-1]], 1)
