"""WFLW as its archives unpack, with drawn faces: a bright dot under each landmark, nothing else.

The set's quirks are kept: lists without a header, boxes in whole pixels that cut the face, attributes that overlap, two
faces in one picture, points beyond the picture's edge.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.fakes import ibug

PARTS = {"train": 8, "test": 6}
FOLDERS = {"train": "0--Parade/0_Parade_marchingband_1", "test": "37--Soccer/37_Soccer_soccer_ball_37"}
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"

# The mean of the real training faces in thousandths of a box round them: x and y of 98 points, rounded from what
# https://github.com/jhb86253817/PIPNet publishes (data/WFLW/meanface.txt).
# fmt: off
MEAN = np.array([
    80, 392, 83, 435, 87, 478, 91, 521, 98, 564, 109, 606, 123, 648, 142, 688, 167, 726, 197, 762, 231, 795, 269, 825,
    310, 853, 354, 878, 401, 898, 453, 911, 508, 915, 562, 909, 612, 895, 657, 874, 699, 848, 739, 820, 775, 789, 808,
    756, 836, 720, 859, 681, 877, 641, 890, 600, 899, 558, 905, 516, 908, 473, 910, 431, 912, 388, 185, 351, 241, 312,
    300, 308, 360, 314, 417, 324, 417, 353, 360, 344, 300, 339, 241, 341, 571, 321, 631, 310, 690, 304, 749, 307, 803,
    344, 749, 335, 689, 334, 630, 340, 571, 350, 495, 402, 496, 459, 496, 516, 498, 570, 407, 598, 454, 606, 501, 612,
    545, 604, 588, 596, 243, 407, 278, 391, 318, 384, 362, 390, 397, 411, 359, 420, 318, 424, 279, 419, 594, 409, 630,
    386, 677, 381, 715, 388, 748, 403, 716, 415, 680, 420, 636, 418, 339, 697, 400, 676, 472, 668, 503, 668, 534, 667,
    602, 674, 659, 693, 619, 728, 567, 755, 503, 765, 437, 757, 381, 732, 351, 699, 425, 691, 503, 691, 577, 690, 647,
    695, 580, 719, 502, 729, 422, 721, 322, 404, 675, 400,
]).reshape(98, 2) / 1000
# fmt: on


def layout() -> np.ndarray:
    """(98, 2) the mean face as upright as `ibug.layout`: its eyes at y = 0, its jaw 1 wide."""
    eyes = MEAN[[60, 72]].mean(0)
    return (MEAN - eyes) * [1, 1.2] / (MEAN[32, 0] - MEAN[0, 0])


def write(root: Path, parts: Mapping[str, int] = PARTS, seed: int = 0, size: tuple[int, int] = ibug.SIZE) -> None:
    """Write a WFLW of so many faces a part; the first two of each part share an image.

    Args:
        root: the folder to fill.
        parts: part -> number of faces.
        seed: other faces for each.
        size: width and height of a picture of one face.
    """
    (root / LISTS).mkdir(parents=True)
    for part, count in parts.items():
        points = faces(part, count, seed, size)
        images = [ibug.picture(face, size, seed=i, grey=i == 4) for i, face in enumerate(points)]
        points[1, :, 0] += size[0]  # side by side
        images[:2] = [np.hstack(images[:2])] * 2
        names = [f"{FOLDERS[part]}_{max(i, 1)}.jpg" for i in range(count)]
        for name, image in zip(names, images, strict=True):
            path = root / "WFLW_images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            ibug.save(path, image)
        rows = [line(face, flags(i), name) for i, (face, name) in enumerate(zip(points, names, strict=True))]
        (root / LISTS / f"list_98pt_rect_attr_{part}.txt").write_text("".join(rows))


def faces(part: str, count: int, seed: int = 0, size: tuple[int, int] = ibug.SIZE) -> np.ndarray:
    """(count, 98, 2) the faces of a part, each in an image of its own."""
    return ibug.faces(count, size, ibug.folder_seed(part, seed), layout())


def flags(i: int) -> list[int]:
    """The six attributes of the i-th face: one more in each, none in the first."""
    return [int(i > k) for k in range(6)]


def line(points: np.ndarray, attributes: list[int], name: str) -> str:
    """A face's line in a list."""
    left, top = points.min(0) + 2
    right, bottom = points.max(0) - 2
    box = [round(float(edge)) for edge in (left, top, right, bottom)]
    return " ".join([*(f"{x:.6f}" for x in points.ravel()), *map(str, [*box, *attributes]), name]) + "\n"
