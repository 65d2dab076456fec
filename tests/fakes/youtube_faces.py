"""YouTube Faces frames as their archive unpacks, with drawn faces: a bright dot under each landmark, nothing else.

The set's quirks are kept: a first column without a name, whole numbers that count from 1, PNGs with an alpha channel
that are named .jpg, the same names in both folders for different pictures, everybody of the test part also in the
training part, pictures that no table lists, points beyond the picture's edge.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tests.fakes import ibug

PEOPLE = (
    "Luis_Fonsi",
    "Abdel_Aziz_Al-Hakim",
    "Adam_Sandler",
    "Agnes_Bruckner",
    "Aidan_Quinn",
    "Lincoln_Chafee",
    "Zoe_Ball",
)
INDEX = {"training": "training_frames_keypoints.csv", "test": "test_frames_keypoints.csv"}


def write(root: Path, people: Sequence[str] = PEOPLE, seed: int = 0, size: tuple[int, int] = ibug.SIZE) -> None:
    """Write a clip of three frames of everybody for training, and another three frames of it for the test, one listed.

    Args:
        root: the folder to fill.
        people: names, blanks as ``_``.
        seed: other faces for each.
        size: width and height of the pictures.
    """
    for folder, index in INDEX.items():
        (root / folder).mkdir(parents=True)
        names = [f"{person}_{clip % 6}{frame}.jpg" for clip, person in enumerate(people) for frame in range(3)]
        points = faces(folder, len(names), seed, size)
        for i, name in enumerate(names):
            image = ibug.picture(points[i], size, seed=i)
            path = root / folder / name
            if i % 4 == 0:
                path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))[1].tobytes())
            else:
                ibug.save(path, image)
        listed = slice(None) if folder == "training" else slice(0, None, 3)
        (root / index).write_text(table(names[listed], points[listed]))


def faces(folder: str, count: int, seed: int = 0, size: tuple[int, int] = ibug.SIZE) -> np.ndarray:
    """(count, 68, 2) the faces of a folder, 0-based, listed or not."""
    return ibug.faces(count, size, ibug.folder_seed(folder, seed))


def table(names: Sequence[str], points: np.ndarray) -> str:
    """A CSV of named faces (N, 68, 2), 0-based."""
    rows = [",".join([name, *map(str, (face.round() + 1).ravel())]) for name, face in zip(names, points, strict=True)]
    return "\n".join([",".join(["", *map(str, range(136))]), *rows]) + "\n"
