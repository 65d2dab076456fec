"""iBUG 300-W as its .pts form lies on disk, with drawn faces: a bright dot under each landmark, nothing else.

The set's quirks are kept: each folder's own names and picture kinds, two faces cut from one photo in afw and
helen, the blank in ``ibug/image_092 _01.jpg``, some grey pictures, points beyond the picture's edge.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

PARTS = {"afw": 6, "helen/trainset": 8, "lfpw/trainset": 4, "helen/testset": 4, "lfpw/testset": 3, "ibug": 3}
SIZE = (144, 128)  # width, height


def write(
    root: Path,
    parts: Mapping[str, int] = PARTS,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    header: bool = True,
) -> None:
    """Write a 300-W of so many faces a folder (any of `PARTS`, ``300w/01_Indoor``, ``300w/02_Outdoor``).

    Equal arguments give equal faces, and a folder's faces do not depend on the other folders.

    Args:
        root: the folder to fill.
        parts: folder -> number of faces.
        seed: other faces for each.
        size: width and height of the pictures.
        header: write the version, the count and the braces, or the points alone as some copies have them.
    """
    for part, count in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        for i, points in enumerate(faces(count, size, folder_seed(part, seed))):
            path = root / part / file_name(part, i)
            save(path, picture(points, size, seed=i, grey=i % 5 == 4))
            write_pts(path.with_suffix(".pts"), points, header)


def folder_seed(part: str, seed: int) -> int:
    """A folder's own seed, so that its faces are no other folder's."""
    return zlib.crc32(f"{part} {seed}".encode())


def file_name(part: str, i: int) -> str:
    """The i-th image's name in the style of its folder."""
    folder = part.rpartition("/")[2]
    if folder in ("01_Indoor", "02_Outdoor"):
        return f"{folder[3:].lower()}_{i + 1:03d}.png"
    if part == "ibug":
        return "image_092 _01.jpg" if i == 0 else f"image_{100 + i // 2:03d}_{i % 2 + 1:02d}.jpg"
    if part.startswith("lfpw"):
        return f"image_{i + 1:04d}.png"
    return f"{100040721 + 37 * (i // 2)}_{i % 2 + 1}.jpg"


def layout() -> np.ndarray:
    """(68, 2) a frontal face, symmetric about x = 0: its eyes at y = 0, its jaw 1 wide."""

    def arc(x: float, y: float, width: float, height: float, degrees: np.ndarray) -> np.ndarray:
        turn = np.radians(degrees)
        return np.stack([x + width * np.cos(turn), y - height * np.sin(turn)], -1)

    jaw = arc(0, 0, 0.5, 0.75, np.linspace(180, 360, 17))
    brow = np.stack([np.linspace(-0.42, -0.1, 5), -0.15 - 0.05 * np.sin(np.linspace(0.3, 2.6, 5))], -1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.02, 0.2, 4)], -1)
    base = arc(0, 0.22, 0.11, 0.06, np.linspace(200, 340, 5))
    eyes = [arc(x, 0, 0.085, 0.035, np.array([180, 120, 60, 0, -60, -120])) for x in (-0.22, 0.22)]
    outer = arc(0, 0.46, 0.2, 0.1, 180 - 30 * np.arange(12))
    inner = arc(0, 0.46, 0.15, 0.04, 180 - 45 * np.arange(8))
    return np.concatenate([jaw, brow, brow[::-1] * [-1, 1], bridge, base, *eyes, outer, inner])


def faces(count: int, size: tuple[int, int] = SIZE, seed: int = 0, frontal: np.ndarray | None = None) -> np.ndarray:
    """(count, K, 2) float64: a frontal face (else `layout`) turned, scaled, narrowed and shaken, 0-based pixel centres.

    Each seventh face is so near an edge that points lie outside the picture.
    """
    random = np.random.default_rng(seed)
    width, height = size
    frontal = layout() if frontal is None else frontal
    points = np.empty((count, *frontal.shape))
    for i in range(count):
        face = frontal + random.normal(0, 0.008, frontal.shape)
        face *= [random.uniform(0.85, 1.05), random.uniform(0.95, 1.05)]
        angle = random.normal(0, 0.12)
        face = face @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        face = face * random.uniform(0.55, 0.65) * min(size) + np.array([0.5 * width, 0.38 * height])
        points[i] = face + random.uniform(-0.06, 0.06, 2) * size
        if i % 7 == 6:
            points[i, :, 0] -= points[i, :, 0].min() + 3.5
    return points.round(3)


def picture(
    points: np.ndarray,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    grey: bool = False,
) -> np.ndarray:
    """A dim slope with a dot on each point, right to a part of a pixel: (H, W, 3) BGR or (H, W), uint8."""
    random = np.random.default_rng(seed)
    width, height = size
    x, y = np.arange(width), np.arange(height)
    across, down = np.exp(-((x - points[:, :1]) ** 2) / 2), np.exp(-((y - points[:, 1:]) ** 2) / 2)
    near = (down[:, :, None] * across[:, None]).max(0)
    slope = (x / width + y[:, None] / height) / 2
    colours = random.uniform(20, 90, (2, 1, 1, 3))
    ground = colours[0] + (colours[1] - colours[0]) * slope[..., None]
    image = (ground + (240 - ground) * near[..., None]).round().astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image


def save(path: Path, image: np.ndarray) -> None:
    """Write an image in its suffix's kind. By bytes, since not every OpenCV takes every path."""
    done, data = cv2.imencode(path.suffix.lower(), image)
    assert done
    path.write_bytes(data.tobytes())


def write_pts(path: Path, points: np.ndarray, header: bool = True) -> None:
    """Write 0-based points as a .pts file, which counts from 1."""
    lines = [f"{x:.3f} {y:.3f}" for x, y in points + 1]
    if header:
        lines = ["version: 1", f"n_points:  {len(lines)}", "{", *lines, "}"]
    path.write_text("\n".join(lines) + "\n")
