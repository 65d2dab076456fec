"""COFW as Matlab 7.3 writes it, with drawn faces: a bright dot under each landmark, nothing else.

The form's quirks are kept: Matlab's header before the HDF5 data, axes reversed, pictures under ``#refs#`` that a cell
refers to, numbers that count from 1, some grey pictures in the colour set; LFPW's faces first, of which no point is
occluded.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from tests.fakes import ibug

PARTS = {"train": 7, "test": 4}
ENDING = {"train": "Tr", "test": "T"}
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Sep 16 12:00:00 2013 HDF5 schema 1.00 ."

# The mean of the real training faces in thousandths of the boxes given with them: x and y of 29 points, rounded from
# what https://github.com/jhb86253817/PIPNet publishes (data/COFW/meanface.txt).
# fmt: off
MEAN = np.array([
    93, 154, 932, 140, 400, 155, 624, 151, 235, 101, 237, 143, 784, 93, 789, 133, 170, 240, 864, 231, 378, 245, 657,
    241, 278, 201, 276, 266, 757, 194, 764, 258, 279, 230, 758, 223, 383, 493, 661, 489, 519, 471, 523, 540, 325, 665,
    730, 659, 523, 627, 526, 662, 527, 698, 529, 752, 535, 946,
]).reshape(29, 2) / 1000
# fmt: on


def layout() -> np.ndarray:
    """(29, 2) the mean face as upright and as large as `ibug.layout`."""
    return (MEAN - MEAN[[8, 9]].mean(0)) * [0.88, 1.06]


def write(
    root: Path,
    parts: Mapping[str, int] = PARTS,
    seed: int = 0,
    size: tuple[int, int] = ibug.SIZE,
    colour: bool = True,
) -> None:
    """Write a COFW of so many faces a part.

    Args:
        root: the folder to fill.
        parts: part -> number of faces.
        seed: other faces for each.
        size: width and height of the pictures.
        colour: write the colour set, where each fifth picture is grey, or the grey one.
    """
    root.mkdir(parents=True, exist_ok=True)
    for part, count in parts.items():
        path, points = root / f"COFW_{part}{'_color' if colour else ''}.mat", faces(part, count, seed, size)
        save(path, ENDING[part], images(points, size, colour), points, hidden(part, count))


def faces(part: str, count: int, seed: int = 0, size: tuple[int, int] = ibug.SIZE) -> np.ndarray:
    """(count, 29, 2) the faces of a part, 0-based."""
    return ibug.faces(count, size, ibug.folder_seed(part, seed), layout())


def hidden(part: str, count: int) -> np.ndarray:
    """(count, 29) bool: the i-th face has its last points hidden, the first training faces none."""
    return np.arange(29) >= 29 - np.maximum(np.arange(count) - 3 * (part == "train"), 0)[:, None]


def images(points: np.ndarray, size: tuple[int, int], colour: bool) -> list[np.ndarray]:
    """An image of each face, (H, W) or (H, W, 3) RGB."""
    pictures = [ibug.picture(face, size, seed=i, grey=not colour or i % 5 == 4) for i, face in enumerate(points)]
    return [picture if picture.ndim == 2 else picture[..., ::-1] for picture in pictures]


def save(path: Path, ending: str, pictures: list[np.ndarray], points: np.ndarray, hidden: np.ndarray) -> None:
    """Write one file of N images, points (N, 29, 2), 0-based, and flags (N, 29)."""
    with h5py.File(path, "w", userblock_size=512) as file:
        cell = file.create_dataset(f"Is{ending}", (1, len(pictures)), h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        for i, picture in enumerate(pictures):
            data = file.create_dataset(
                f"#refs#/p{i}", data=picture.T, chunks=True, compression="gzip", compression_opts=3
            )
            data.attrs["MATLAB_class"] = np.bytes_("uint8")
            cell[0, i] = data.ref
        left, top = points.min(1).round().T
        width, height = (points.max(1).round() - points.min(1).round()).T + 1
        phis = np.concatenate([points[..., 0] + 1, points[..., 1] + 1, hidden], axis=1)
        for name, data in (("phis", phis), ("bboxes", np.stack([left + 1, top + 1, width, height], axis=1))):
            array = file.create_dataset(f"{name}{ending}", data=data.T.astype(np.float64))
            array.attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as block:
        block.write(HEADER.ljust(124) + b"\x00\x02IM")
