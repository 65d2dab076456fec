"""MERL-RAV (Kumar et al. 2020, https://github.com/abhi1kumar/MERL-RAV_dataset): 68 points with visibility on AFLW's images.

The publishers' script puts AFLW's images next to the labels: ``merl_rav_organized/POSE/{trainset,testset}/image00019.jpg`` with
``image00019.pts``, where POSE is frontal, lefthalf, left, righthalf or right. A point at (-1, -1) is hidden by the face itself
and has no place; one whose coordinates are both negative is hidden by something else, at (-x, -y). An image with two faces is
stored twice, as ``image20991_1.jpg`` and ``image20991_2.jpg``. Numbers are read unchanged.
"""

from pathlib import Path

import numpy as np

from flr.data.formats.pts import pair_files, read_pair
from flr.data.readers.published import require, stack_points
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import IBUG68

SITE = "https://github.com/abhi1kumar/MERL-RAV_dataset"
POSES = ("frontal", "lefthalf", "left", "righthalf", "right")
SPLITS = {"trainset": "train", "testset": "test"}
FOLDERS = ("merl_rav_organized", "aflw_ours_organized", ".")  # the script's, an earlier one's, the root


def read(root: Path, strict: bool = False) -> FaceTable:
    """Read MERL-RAV as the publishers' script organises it. The poses are subsets; `group` is AFLW's image.

    `form` is ``merl_rav`` with the counts: ``merl_rav[train:15449|test:3865]``.
    """
    get = f"get MERL-RAV ({SITE}; for research) and AFLW's images, run its script, and move merl_rav_organized/ into this folder"
    require(root, [f"{folder}/frontal" for folder in FOLDERS[:2]] + ["frontal"], get)
    folder = next(folder for folder in FOLDERS if (root / folder / "frontal").is_dir())
    images: list[str] = []
    splits: list[str] = []
    poses: list[str] = []
    found: list[tuple[np.ndarray, str]] = []
    for pose in POSES:
        for part, split in SPLITS.items():
            place = root / folder / pose / part
            for files, labels in pair_files(place) if place.is_dir() else ():
                found.append(read_pair(files, labels, len(IBUG68)))
                images.append((files or labels)[0].relative_to(root).as_posix())
                splits.append(split)
                poses.append(pose)
    values, bad = stack_points(found, len(IBUG68))
    labelled = ~np.all(values == -1, axis=-1)
    hidden = np.all(values < 0, axis=-1)
    groups = [Path(image).stem.partition("_")[0] for image in images]
    kept = {split: splits.count(split) - sum(splits[i] == split for i in bad) for split in SPLITS.values()}
    return make_table(
        f"merl_rav[train:{kept['train']}|test:{kept['test']}]", IBUG68, root, images,
        np.where(hidden[..., None], -values, values), splits, published=(values,), strict=strict, labelled=labelled,
        visible=labelled & ~hidden, group=groups, bad=bad, subsets={pose: np.array(poses) == pose for pose in POSES if pose in poses},
    )  # fmt: skip
