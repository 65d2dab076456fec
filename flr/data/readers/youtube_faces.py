"""Frames of YouTube Faces (Wolf et al. 2011) with 68 points, as their CSV form has them (udacity/P1_Facial_Keypoints).

Under the root lie ``training_frames_keypoints.csv`` and ``test_frames_keypoints.csv``, each with a first column without
a name (the image) and the columns 0 ... 135 (x and y of the iBUG points in turn), and the images in ``training/``
and ``test/``; two in three of ``test/`` are listed nowhere. ``Luis_Fonsi_21.jpg`` is frame 1 of clip 2 of Luis_Fonsi,
and a PNG with an alpha channel. The points came from a model, as whole numbers, and some lie outside the image.

They count from 1, though no file says so. Held against the mirrored images, the numbers as they stand lie 1.2 px to
the right of what they mark (.9 on small faces, 1.7 on large ones), and 1.1 px below where 300-W has its points.
"""

import dataclasses
import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from flr.data.formats.records import portable
from flr.data.formats.text import read_sheet
from flr.data.readers.published import require
from flr.data.table import FaceTable, make_table
from flr.landmarks.scheme import IBUG68

URL = "https://s3.amazonaws.com/video.udacity-data.com/topher/2018/May/5aea1b91_train-test-data/train-test-data.zip"
INDEX = {"training": "training_frames_keypoints.csv", "test": "test_frames_keypoints.csv"}
TOTAL = {"training": 3462, "test": 770}
SALT = "youtube_faces/"  # part of the protocol: another salt tests other people
SHARE = TOTAL["test"] / sum(TOTAL.values())


def read(root: Path, strict: bool = False, split: Literal["identity", "published"] = "identity") -> FaceTable:
    """The annotated frames. A face is named by its folder and file, since both folders use the same names.

    The published test part holds nobody new: its 347 people are those of the training part, and each of its 770 frames
    comes from a clip of which three frames are trained on; some are the same image. Its numbers say how well a model
    knows these videos. So the default pools both parts and tests on people who are not trained on: those with a hash of
    the name below `SHARE` (65 people with 788 faces). It depends neither on the rows' order nor on who else is there.

    `form` is ``youtube_faces`` or ``youtube_faces_published``, with the counts where faces are missing:
    ``youtube_faces[training:3000|test:770]``. `group` is the person.

    Args:
        root: the folder that holds the two CSVs, ``training/`` and ``test/``.
        strict: stop at the first fault of a face.
        split: ``identity`` for disjoint people, ``published`` for the CSVs' own two parts.
    """
    get = (
        f"get the frames ({URL}; YouTube Faces is for non-commercial research) and unpack them so that this folder holds "
        f"{' '.join(INDEX.values())} training/ test/"
    )
    require(root, list(INDEX.values()), get, every=True)
    files: list[str] = []
    points: list[np.ndarray] = []
    bad: dict[int, str] = {}
    for folder, name in INDEX.items():
        path = root / name
        sheet = read_sheet(path, text=("",))
        values, faults = sheet.numbers([str(k) for k in range(2 * len(IBUG68))])
        empty = np.flatnonzero(np.isnan(values).any(1)).tolist()
        faults = {row: f"{name} line {sheet.lines[row]}: a cell is empty" for row in empty} | faults
        bad |= {len(files) + row: fault for row, fault in faults.items()}
        files += [f"{folder}/{file}" for file in sheet.text("")]
        points.append(values.reshape(-1, len(IBUG68), 2))
    names = [portable(file) for file in files]
    people = [person(name) for name in names]
    if split == "identity":
        tested = {name: _hash(name) < SHARE for name in set(people)}
        parts = ["test" if tested[name] else "train" for name in people]
    else:
        parts = ["test" if name.startswith("test/") else "train" for name in names]
    table = make_table(
        "youtube_faces" if split == "identity" else "youtube_faces_published", IBUG68, root, files,
        np.concatenate(points) - 1, parts,  # they count from 1
        published=(np.concatenate(points),), strict=strict, group=people, name=names, bad=bad,
    )  # fmt: skip
    kept = {folder: int(np.char.startswith(table.name, f"{folder}/").sum()) for folder in INDEX}
    if kept == TOTAL:
        return table
    return dataclasses.replace(table, form=f"{table.form}[training:{kept['training']}|test:{kept['test']}]")


def person(file: str) -> str:
    """Who is seen in a file: its name before the last ``_``, which the clip's and the frame's digits follow."""
    stem = PurePosixPath(file).stem
    return stem.rpartition("_")[0] or stem


def _hash(name: str) -> float:
    """A number in [0, 1) that is a function of a person's name alone."""
    return int.from_bytes(hashlib.sha256(f"{SALT}{name}".encode()).digest()[:8]) / 2**64
