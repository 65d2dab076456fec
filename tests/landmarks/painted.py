"""Pictures of dots whose places are known to a part of a pixel, and tables of such faces."""

from collections.abc import Callable

import numpy as np

from flr.data.table import FaceTable
from flr.landmarks.scheme import CELEBA5

LAYOUT = np.array([[-0.3, -0.3], [0.3, -0.3], [0.0, 0.05], [-0.25, 0.35], [0.25, 0.35]])
LEVELS = (120, 150, 180, 210, 240)  # one brightness a landmark, so that a dot tells which one it is


def paint(
    points: np.ndarray, width: int, height: int, sigma: float = 2.0, levels: tuple[int, ...] = LEVELS
) -> np.ndarray:
    """(H, W) uint8: on black, a Gaussian dot of `sigma` pixels on each point (K, 2)."""
    x, y = np.arange(width), np.arange(height)
    across = np.exp(-((x - points[:, :1]) ** 2) / (2 * sigma**2))
    down = np.exp(-((y - points[:, 1:]) ** 2) / (2 * sigma**2))
    dots = np.asarray(levels)[: len(points), None, None] * down[:, :, None] * across[:, None]
    return dots.max(0).round().astype(np.uint8)


def dot(image: np.ndarray, near: np.ndarray, radius: int = 9) -> tuple[np.ndarray, float]:
    """The dot within `radius` of a point in an image (H, W): its intensity-weighted centroid (2,) and its mass."""
    x, y = np.arange(image.shape[1]), np.arange(image.shape[0])[:, None]
    weight = np.where((abs(x - near[0]) <= radius) & (abs(y - near[1]) <= radius), image, 0).astype(np.float64)
    mass = weight.sum()
    return np.array([(weight * x).sum(), (weight * y).sum()]) / mass, mass


def face_points(count: int, seed: int = 0, width: int = 120, height: int = 100) -> np.ndarray:
    """(count, 5, 2) float32: the layout turned, scaled and moved, all inside the image."""
    random = np.random.default_rng(seed)
    points = np.empty((count, 5, 2))
    for i in range(count):
        angle, scale = random.normal(0, 0.15), random.uniform(50, 70)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points[i] = scale * LAYOUT @ turn + np.array([width / 2, height / 2]) + random.uniform(-6, 6, 2)
    return points.astype(np.float32)


def face_picture(points: np.ndarray) -> np.ndarray:
    """(100, 120) uint8: a face of `face_points`, its dots small enough to lie whole in a crop."""
    return paint(points, 120, 100, sigma=1.2)


def face_table(
    splits: tuple[str, ...], groups: tuple[str, ...] | None = None, seed: int = 0,
    load: Callable[[int], np.ndarray] | None = None, labelled: np.ndarray | None = None,
) -> FaceTable:  # fmt: skip
    """One painted CelebA-like face for each word of `splits`; each its own group where None are named."""
    count = len(splits)
    points = face_points(count, seed)
    labelled = np.ones((count, 5), bool) if labelled is None else labelled
    return FaceTable(
        form="dots",
        scheme=CELEBA5,
        points=points,
        labelled=labelled,
        visible=labelled.copy(),
        box=np.full((count, 4), np.nan, np.float32),
        group=np.array(groups or [f"g{i}" for i in range(count)]),
        split=np.array(splits),
        name=np.array([f"face{i}" for i in range(count)]),
        image=np.arange(count).astype(str),
        subsets={"even": np.arange(count) % 2 == 0},
        read_image=lambda name: load(int(name)) if load else face_picture(points[int(name)]),
        published=np.arange(count).astype(str),
        version=np.zeros(count, np.int64),
    )
