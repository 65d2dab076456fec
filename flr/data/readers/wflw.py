"""WFLW (Wu et al. 2018, https://wywu.github.io/projects/LAB/WFLW.html): 98 points and six attributes.

Under the root lie ``WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt`` and, in
``WFLW_images/``, the images. The lists have no header, and in a line 207 words: x and y of 98 points, the upper left
and the lower right corner of a detection (whole pixels), a 0 or 1 for each attribute, and the image's path. The 10000
faces lie in fewer images. Points are read as counted from 0, as all known code does; no file says so.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from flr.data.formats.records import portable
from flr.data.formats.text import read_sheet
from flr.data.readers.published import require, with_counts
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import WFLW98

SITE = "https://wywu.github.io/projects/LAB/WFLW.html"
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
IMAGE_FOLDER = "WFLW_images"
# Numbers are counted from the test list on, so that the faces of a test keep their names whatever there is to train on.
INDEX = {"test": f"{LISTS}/list_98pt_rect_attr_test.txt", "train": f"{LISTS}/list_98pt_rect_attr_train.txt"}
TOTAL = {"train": 7500, "test": 2500}
ATTRIBUTES = ("pose", "expression", "illumination", "make_up", "occlusion", "blur")
BOX = ("x_min", "y_min", "x_max", "y_max")
NUMBERS = (*(f"{axis}{k}" for k in range(len(WFLW98)) for axis in "xy"), *BOX, *ATTRIBUTES)


def read(root: Path, strict: bool = False) -> FaceTable:
    """WFLW as published. A face is named by its image's path, ``#`` and its number among that image's faces.

    Each attribute is a subset over both parts; `group` is the image. `form` is ``wflw``, with the counts where they
    are not the official ones: ``wflw[train:7000|test:2500]``.
    """
    get = (
        f"get WFLW ({SITE}; for research) and unpack WFLW_annotations.tar.gz and WFLW_images.tar.gz so that this folder holds "
        f"{LISTS}/ and {IMAGE_FOLDER}/"
    )
    require(root, list(INDEX.values()), get, every=True)
    images: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    numbers: list[np.ndarray] = []
    bad: dict[int, str] = {}
    number: Counter[str] = Counter()
    for split, place in INDEX.items():
        path = root / place
        sheet = read_sheet(path, header=(*NUMBERS, "image"), text=("image",))
        values, faults = sheet.numbers(NUMBERS)
        for row, fault in _faults(values).items():
            faults.setdefault(row, f"{path.name} line {sheet.lines[row]}: {fault}")
        bad |= {len(images) + row: fault for row, fault in faults.items()}
        for image in sheet.text("image"):
            number[image] += 1
            names.append(f"{portable(image)}#{number[image]}")
        images += sheet.text("image")
        splits += [split] * len(sheet)
        numbers.append(values)
    values = np.concatenate(numbers)
    points, box, flags = np.split(values, [2 * len(WFLW98), 2 * len(WFLW98) + 4], axis=1)
    table = make_table(
        "wflw", WFLW98, root, [f"{IMAGE_FOLDER}/{image}" for image in images], points.reshape(-1, len(WFLW98), 2), splits,
        published=(values,), strict=strict, box=box + [-0.5, -0.5, 0.5, 0.5],
        group=[portable(image) for image in images], name=names, bad=bad,
        subsets={attribute: flags[:, k] == 1 for k, attribute in enumerate(ATTRIBUTES)},
    )  # fmt: skip
    return with_counts(table, TOTAL)


def _faults(values: np.ndarray) -> dict[int, str]:
    """Row -> what is wrong with the box or an attribute of (N, 206) numbers."""
    box, flags = values[:, -10:-6], values[:, -6:]
    faults = {int(row): "its box has no size" for row in np.flatnonzero(~(box[:, 2:] > box[:, :2]).all(1))}
    for k, attribute in enumerate(ATTRIBUTES):
        for row in np.flatnonzero(~np.isin(flags[:, k], (0, 1))):
            faults[int(row)] = f"its {attribute} is {flags[row, k]:g}, not 0 or 1"
    return faults
