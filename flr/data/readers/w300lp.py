"""300W-LP and AFLW2000-3D (Zhu et al. 2016, http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm): 68 points.

The root contains ``300W_LP/{AFW,HELEN,IBUG,LFPW}/NAME.jpg`` with ``300W_LP/landmarks/AFW/NAME_pts.mat``, which holds ``pts_2d``
and ``pts_3d`` (68, 2), and ``AFLW2000/imageNNNNN.jpg`` with ``imageNNNNN.mat``, which holds ``pt3d_68`` (3, 68) and
``Pose_Para``, whose second number is the yaw in radians. Matlab plots these numbers over the image, so they count from 1. The
3D points of a head that is turned stay on its hidden side; the 2D points follow the outline that is seen.

300W-LP turns the faces of 300-W, test split included, to larger poses, so do not test on 300-W after training on it.
Its mirrored copies (``AFW_Flip``) are not read.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from flr.data.formats.mat import read_mat
from flr.data.formats.text import MAX_NUMBER
from flr.data.readers.published import require, stack_points, with_counts
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import IBUG68

SITE = "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm"
LABELS = "300W_LP/landmarks"
SETS = ("AFW", "HELEN", "IBUG", "LFPW")
TOTAL = {"train": 61_225, "test": 2000}
LARGEST = 1 << 24  # bytes
YAWS = {"yaw30": (0, 30), "yaw60": (30, 60), "yaw90": (60, 90)}  # degrees either way


def read(root: Path, strict: bool = False, points: Literal["3d", "2d"] = "3d") -> FaceTable:
    """Read 300W-LP for training and AFLW2000-3D for the test; either may be missing.

    AFLW2000-3D has the subsets ``yaw30``, ``yaw60`` and ``yaw90`` by its papers' ranges. A face is named by its image; `group`
    is the photo that a face of 300W-LP was made from. `form` is ``w300lp-3d`` or ``w300lp-2d``, with the counts if they are not
    the official ones.

    Args:
        root: Folder of ``300W_LP/`` and ``AFLW2000/``.
        strict: Stop at the first fault of a face.
        points: Which points of 300W-LP; AFLW2000-3D has 3D points alone, so ``2d`` reads no test part.
    """
    get = f"get 300W-LP and AFLW2000-3D ({SITE}; for research) and unpack them so that this folder holds 300W_LP/ and AFLW2000/"
    require(root, [LABELS, *(["AFLW2000"] if points == "3d" else [])], get)
    train = [label for folder in SETS for label in sorted((root / LABELS / folder).glob("[!.]*_pts.mat"))]
    test = sorted((root / "AFLW2000").glob("image*.mat")) if points == "3d" else []
    names = [label.name.removesuffix("_pts.mat") for label in train]
    images = [f"300W_LP/{label.parent.name}/{name}.jpg" for label, name in zip(train, names, strict=True)]
    images += [f"AFLW2000/{label.stem}.jpg" for label in test]
    groups = [_photo(name) for name in names] + [label.stem for label in test]
    splits = np.repeat(["train", "test"], [len(train), len(test)])
    found = [_read_mat(label, f"pts_{points}") for label in train] + [_read_mat(label, "pt3d_68") for label in test]
    values, bad = stack_points(((face, fault) for face, _, fault in found), len(IBUG68))
    yaw = np.degrees(np.abs([yaw for _, yaw, _ in found]))
    table = make_table(
        f"w300lp-{points}", IBUG68, root, images, values - 1, splits, published=(values,), strict=strict, group=groups, bad=bad,
        labelled=np.ones(values.shape[:2], bool),
        subsets={
            name: (splits == "test") & (yaw <= high) & ((yaw > low) | (low == 0)) for name, (low, high) in YAWS.items()
        },
    )  # fmt: skip
    return with_counts(table, TOTAL)


def _photo(name: str) -> str:
    """The photo of a face, ``AFW_134212`` of ``AFW_134212_1_0``: a number for its pose and, but in LFPW and IBUG, one for the face."""
    stem = name.rpartition("_")[0] or name
    return stem if name.startswith(("LFPW", "IBUG")) else stem.rpartition("_")[0] or stem


def _read_mat(path: Path, key: str) -> tuple[np.ndarray, float, str]:
    """Return the points (68, 2), the yaw in radians or NaN, and why they are invalid."""
    try:
        found = read_mat(path, [key, "Pose_Para"], LARGEST)
        points = np.asarray(found[key], np.float64)
        points = points[:2].T if key == "pt3d_68" else points[:, :2]
        if points.shape != (len(IBUG68), 2):
            raise ValueError(f"{key} is {found[key].shape}")
        if (np.abs(points) >= MAX_NUMBER).any():
            raise ValueError(f"{key} holds a number that is not below {MAX_NUMBER:g}")
        yaw = float(np.asarray(found["Pose_Para"], np.float64).ravel()[1]) if "Pose_Para" in found else np.nan
        if abs(yaw) >= MAX_NUMBER:
            raise ValueError(f"its yaw is {yaw:g} radians")
        return points, yaw, ""
    except Exception as error:  # scipy has no kind of its own for a damaged file
        return (
            np.full((len(IBUG68), 2), np.nan),
            np.nan,
            f"{path.name}: not a label file of this dataset ({error!s:.60})",
        )
