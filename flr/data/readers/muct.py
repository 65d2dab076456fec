"""Fifteen points: Kaggle's Facial Keypoints Detection table, also passed on as "cleaned MUCT", and MUCT itself.

- Kaggle's form (https://www.kaggle.com/c/facial-keypoints-detection/data): ``training.csv`` with 30 coordinates and
  the 96 x 96 grey pixels of 7049 faces, and ``test.csv`` with the pixels of 1783 to be labelled, of which
  ``IdLookupTable.csv`` says what is asked. Coordinates are "in the space of pixel indices": 0-based pixel centres. A
  missing point is an empty cell. The first 2284 rows and the later ones were labelled by different rules, the later
  ones at four points or fewer.
- MUCT (Milborrow, Morkel and Nicolls 2010, http://www.milbo.org/muct/): ``muct76-opencv.csv``, 76 points a face, and
  ``jpg/``, 480 x 640 pixels, five cameras. Its rows ``ir...``, which are not read, are the rows ``i...`` at 479 - x, so its
  coordinates are 0-based pixel centres too. A point behind the nose or the cheek, (0, 0), has no label.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

from flr.data.formats.text import read_sheet
from flr.data.readers.kaggle import ANSWERS, GET, TRAINING, read_kaggle
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import KAGGLE15, MUCT76

LANDMARKS = ("muct76-opencv.csv", "muct-landmarks/muct76-opencv.csv")  # the latter as its archive unpacks
COLUMNS_76 = tuple(f"{axis}{k:02d}" for k in range(len(MUCT76)) for axis in "xy")
_NAME = re.compile(r"i(\d{3})[q-z][a-e]-[fm][a-z0-9]")  # subject, lighting, camera, sex, glasses


def read(
    root: Path, strict: bool = False, points: Literal[15, 76] = 15, answers: bool | None = None
) -> FaceTable:  # fmt: skip
    """Read Kaggle's table or MUCT, whichever is under `root`; `form` says which.

    Kaggle's form is ``muct_csv``. A training face is ``training.csv#ROW``, each its own group since no subject is
    known; a face of ``test.csv`` is ``test.csv#IMAGEID``, in the part ``unlabelled``. The box is the whole image.
    Where the test's labels are known, in an ``answers.csv`` of RowId and Location, those faces are the part ``test``
    and the form is ``muct_csv+answers``; Kaggle has never published such a file.

    MUCT's form is ``muct76``. The group is the subject (247 and 248 are twins). The box is
    the tight box of all labelled points grown by a quarter, about as Kaggle's images are framed. All faces are
    training faces: neither form has a test part of its own.

    The subset ``complete`` holds the faces whose every point is labelled: 2140 of Kaggle's, 3063 of MUCT's.

    Args:
        root: Folder of either form.
        strict: Stop at the first fault of a face.
        points: 15 in Kaggle's order, or, in MUCT's form, all 76 of `MUCT76`.
        answers: Whether to use ``answers.csv``; None uses it if it exists.
    """
    found = [place for place in (TRAINING, *LANDMARKS) if os.path.exists(root / place)]
    if not found:
        raise UserError(_nothing(root))
    if TRAINING in found:
        if len(found) > 1:
            raise UserError(
                f"{root}: holds both {TRAINING} (Kaggle's form) and {found[1]} (Milborrow's), which are two protocols; "
                "put one of them into a folder of its own and name the other's: data.root=DIR"
            )
        if points != len(KAGGLE15):
            raise UserError(f"{root / TRAINING}: Kaggle's form has 15 points; set data.reader.points=15")
        return read_kaggle(root, strict, answers)
    if answers:
        raise UserError(f"{root / found[0]}: MUCT's own form has no {ANSWERS}; set data.reader.answers=null")
    return _read_muct(root, found[0], strict, points)


def _nothing(root: Path) -> str:
    """Return the error text if neither form is there."""
    if not root.is_dir():
        return f"{root}: there is no such folder; {GET}"
    for place in (TRAINING, *LANDMARKS):
        for path in sorted(root.glob(f"*/{place}")):
            folder = root / path.relative_to(root).parts[0]
            return f"{root}: {place} is one folder deeper; set data.root={folder}"
    return f"{root}: neither {TRAINING} nor {LANDMARKS[0]} is in it; {GET}"


# -- Milborrow's form --------------------------------------------------------------------------------------------------


def read_landmarks(path: Path) -> tuple[list[str], np.ndarray, dict[int, str]]:
    """Read the rows of MUCT's own table, ``muct76-opencv.csv``.

    Some copies have the first 68 points alone: the last eight are more points of the eyelids.

    Returns:
        N names; (N, 76 or 68, 2) float64 points, NaN without a label; and row -> its fault.

    Raises:
        UserError: It cannot be read or is not such a table.
    """
    sheet = read_sheet(path)
    names = sheet.text("name")
    keep = [i for i, name in enumerate(names) if not name.startswith("ir")]
    names = [names[i] for i in keep]
    sheet = dataclasses.replace(sheet, cells=sheet.cells.iloc[keep], lines=[sheet.lines[i] for i in keep])
    lid = COLUMNS_76[2 * 68 :]
    values, bad = sheet.numbers(COLUMNS_76 if set(lid) & set(sheet.columns) else COLUMNS_76[: -len(lid)])
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            bad[i] = f"{path.name} line {sheet.lines[i]}: its name is not of the form i000qa-fn"
    points = values.reshape(len(names), values.shape[1] // 2, 2)
    return names, np.where((points == 0).all(-1, keepdims=True), np.nan, points), bad


def _read_muct(root: Path, place: str, strict: bool, count: Literal[15, 76]) -> FaceTable:
    names, given, bad = read_landmarks(root / place)
    if count > given.shape[1]:
        raise UserError(
            f"{root / place}: gives {given.shape[1]} points a face, not {count}; fetch it from "
            "https://github.com/StephenMilborrow/muct or set data.reader.points=15"
        )
    if not (root / "jpg").is_dir():
        raise UserError(
            f"{root}: holds {place} but no folder jpg/; unpack muct-a-jpg-v1.tar.gz to muct-e-jpg-v1.tar.gz of "
            "https://github.com/StephenMilborrow/muct there"
        )
    points = np.full((len(names), len(MUCT76), 2), np.nan)
    points[:, : given.shape[1]] = given
    labelled, published = np.isfinite(points).all(-1), points
    tight = tight_box(points, labelled)
    grow = (tight[:, 2:] - tight[:, :2]) / 8
    scheme = KAGGLE15 if count == len(KAGGLE15) else MUCT76
    points, labelled = MUCT76.reduce(points, scheme.name), MUCT76.reduce(labelled, scheme.name)
    subjects = [match[1] if (match := _NAME.fullmatch(name)) else "" for name in names]
    table = make_table(
        "muct76", scheme, root, [f"jpg/{name}.jpg" for name in names], points, ["train"] * len(names),
        published=(published,), strict=strict, labelled=labelled, box=np.concatenate([tight[:, :2] - grow, tight[:, 2:] + grow], -1),
        group=subjects, name=names, subsets={"complete": labelled.all(1)}, bad=bad,
    )  # fmt: skip
    reductions = () if scheme is MUCT76 else (f"{MUCT76.name}>{scheme.name}",)
    return dataclasses.replace(table, reductions=reductions)
