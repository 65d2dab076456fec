"""Kaggle's 15-point tables and MUCT's own form, with the drawn faces of `tests.fakes.ibug`.

Kaggle: a few labels of the first rows are missing, the later rows have four points at most; the lookup table does not
ask for every point of every picture. MUCT: five cameras; (0, 0) in cameras b and c; ``ir`` rows after all others, whose
pictures the set does not hold; a few names without a word for glasses.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from flr.data.readers.kaggle import FEATURES
from flr.landmarks.scheme import IBUG68, MUCT76
from tests.fakes import ibug

SIDE = (96, 96)
MUCT_SIZE = (480, 640)
FOUR = [0, 1, 10, 14]  # eye centres, nose tip, bottom lip
HIDDEN = {"b": [15], "c": [15, 42, 43, 44, 45, 47]}  # what MUCT's faces turned aside lack

# MUCT's points as the means of iBUG's, save the jaw, which has 15 points in place of 17.
_FROM_68 = [
    [26], [25], [23], [22], [22, 23, 42], [24, 25, 45], [17], [18], [20], [21], [20, 21, 39], [18, 19, 36],
    [36], [37, 38], [39], [40, 41], [*range(36, 42)], [45], [43, 44], [42], [46, 47], [*range(42, 48)],
    [27, 39], [29, 31], [31], [32], [33], [34], [35], [29, 35], [27, 42], [31, 32], [34, 35],
    *([i] for i in range(48, 60)), [67], [66], [65], [63], [62], [61], [62, 66], [30],
    [36, 37], [38, 39], [39, 40], [36, 41], [44, 45], [42, 43], [42, 47], [45, 46],
]  # fmt: skip


def kaggle_faces(count: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """(count, 15, 2) points and the images (96, 96) with a dot on each."""
    points = IBUG68.reduce(ibug.faces(count, SIDE, seed), "kaggle15")
    return points, [ibug.picture(face, SIDE, seed=i, grey=True) for i, face in enumerate(points)]


def present(count: int) -> np.ndarray:
    """(count, 15) bool: the labels that a training table of so many rows has."""
    labelled = np.ones((count, 15), bool)
    labelled[3::7, 9] = labelled[5::7, 7:9] = False
    late = np.arange(count) >= (count + 1) // 2
    labelled[np.ix_(late, np.setdiff1d(np.arange(15), FOUR))] = False
    labelled[-1, FOUR[3]] = False
    return labelled


def write_kaggle(root: Path, train: int = 12, test: int = 6, seed: int = 0, answers: bool = False) -> None:
    """Write training.csv, test.csv and IdLookupTable.csv; `answers` adds the test labels, which Kaggle does not give."""
    root.mkdir(parents=True, exist_ok=True)
    points, pictures = kaggle_faces(train, seed)
    rows = [row(*face) for face in zip(points, present(train), pictures, strict=True)]
    write_csv(root / "training.csv", [[*FEATURES, "Image"], *rows])
    points, pictures = kaggle_faces(test, seed + 1)
    write_csv(root / "test.csv", [["ImageId", "Image"], *([i, text(image)] for i, image in enumerate(pictures, 1))])
    lookup, truth = [], []
    for i, face in enumerate(points):
        for k in range(15) if i % 3 else FOUR:
            for axis in (0, 1):
                lookup.append([len(lookup) + 1, i + 1, FEATURES[2 * k + axis], ""])
                truth.append([len(truth) + 1, f"{face[k, axis]:.6f}"])
    write_csv(root / "IdLookupTable.csv", [["RowId", "ImageId", "FeatureName", "Location"], *lookup])
    if answers:
        write_csv(root / "answers.csv", [["RowId", "Location"], *truth])


def row(points: np.ndarray, labelled: np.ndarray, image: np.ndarray) -> list[str]:
    """A row of training.csv."""
    cells = [f"{v:.10g}" if known else "" for point, known in zip(points, labelled, strict=True) for v in point]
    return [*cells, text(image)]


def text(image: np.ndarray) -> str:
    """Pixels as they stand in an Image cell."""
    return " ".join(map(str, image.ravel().tolist()))


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """A table with commas and Unix line ends, as Kaggle gives it."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def muct_points(points: np.ndarray) -> np.ndarray:
    """(..., 76, 2) MUCT's points of iBUG's (..., 68, 2)."""
    at = np.arange(15) * 16 / 14
    low, part = at.astype(int), (at % 1)[:, None]
    jaw = points[..., low, :] * (1 - part) + points[..., np.minimum(low + 1, 16), :] * part
    rest = [points[..., group, :].mean(-2) for group in _FROM_68]
    return np.concatenate([jaw, np.stack(rest, -2)], -2)


def write_muct(
    root: Path, subjects: int = 3, seed: int = 0, count: int = 76, landmarks: str = "muct-landmarks"
) -> None:
    """Write ``LANDMARKS/muct76-opencv.csv`` and ``jpg/``: five images a subject.

    Args:
        root: the folder to fill.
        subjects: persons.
        seed: other faces for each.
        count: 76 points, or the first 68 as some copies have.
        landmarks: the table's folder.
    """
    (root / "jpg").mkdir(parents=True, exist_ok=True)
    (root / landmarks).mkdir(parents=True, exist_ok=True)
    points = muct_points(ibug.faces(5 * subjects, MUCT_SIZE, seed)).round(1).clip(1, 478)
    plain, turned = [], []
    for i, face in enumerate(points):
        camera = "abcde"[i % 5]
        name = f"{200 * (i // 10) + i // 5:03d}{'qrs'[i // 5 % 3]}{camera}-{'fm'[i // 5 % 2]}{'2' if i == 4 else 'n'}"
        ibug.save(root / f"jpg/i{name}.jpg", muct_picture(face))
        face[HIDDEN.get(camera, [])] = 0
        plain.append([f"i{name}", 0, *(f"{v:g}" for v in face[:count].ravel())])
        mirrored = np.where((face == 0).all(1, keepdims=True), 0, [479, 0] + face * [-1, 1])[MUCT76.mirror_order]
        turned.append([f"ir{name}", 0, *(f"{v:g}" for v in mirrored[:count].ravel())])
    head = ["name", "tag", *(f"{axis}{k:02d}" for k in range(count) for axis in "xy")]
    write_csv(root / landmarks / "muct76-opencv.csv", [head, *plain, *turned])


def muct_picture(points: np.ndarray) -> np.ndarray:
    """(640, 480, 3) BGR uint8: dim, with a dot on each point, right to a part of a pixel."""
    image = np.full((*MUCT_SIZE[::-1], 3), (60, 50, 40), np.uint8)
    for x, y in (points * 16).round().astype(int):
        cv2.circle(image, (int(x), int(y)), 3 * 16, (220, 230, 240), -1, cv2.LINE_AA, 4)
    return image
