"""Scenes of rendered people and of things that are no faces, and the file that holds them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import joblib
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.photo import develop
from flr.data.synthetic.renderer import RENDERER_VERSION
from flr.detection.clutter import background, shapes, text
from flr.detection.people import cover_partly, paint_person, spoil
from flr.detection.textures import TexturePool, log_uniform
from flr.files import writing

SCENES_VERSION = 1  # raise it with every change of a pixel or a box
SIDE = 224  # of a scene, pixels
MAX_PEOPLE = 6
# State of a box.
FACE, NO_FACE, IGNORED, EMPTY = 1, 0, 2, -1
_BLOCK = 500  # scenes that share textures, drawn by one process
_COUNTS, _WEIGHTS = (0, 1, 2, 3, 5), (0.06, 0.44, 0.24, 0.16, 0.10)  # people in a scene
_LARGEST = (0.62, 0.62, 0.5, 0.36, 0.36, 0.25)  # of the faces, as a share of the side, by the count of people


@dataclass(frozen=True)
class Scenes:
    """Stored scenes.

    Attributes:
        images: (N, SIDE, SIDE) uint8 grey.
        boxes: (N, MAX_PEOPLE, 4) float32: centre x, y and larger side of the points' tight box in pixels, and a state.
    """

    images: np.ndarray
    boxes: np.ndarray


def draw_scene(seed: int, index: int, textures: TexturePool) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; see `Scenes` for what is returned."""
    rng = np.random.default_rng([seed, index])
    canvas = background(rng, textures)
    boxes = np.full((MAX_PEOPLE, 4), EMPTY, np.float32)
    count = int(rng.choice(_COUNTS, p=_WEIGHTS))
    sizes = np.sort(np.exp(rng.uniform(np.log(12), np.log(SIDE * _LARGEST[count]), count)))  # far ones first
    apart = 0.45 if rng.random() < 0.2 else 0.62
    for k, size in enumerate(sizes):
        centre = _free_place(rng, boxes, size, apart)
        if centre is None:
            continue
        kind = rng.random()  # a face, an upright one that is spoilt, or one upside down
        roll = rng.uniform(-0.7, 0.7) if rng.random() < 0.35 else 0.0
        before = canvas.copy()
        draws = Draws(seed * 1_000_003 + index, k)
        roll = roll + np.pi if kind > 0.86 else roll
        points = paint_person(rng, canvas, textures, draws, float(size), centre, roll)
        if kind < 0.66:
            cover_partly(rng, canvas, points, textures)
        elif kind < 0.86:
            spoil(rng, canvas, points, textures)
        _mark_hidden(boxes, before, canvas)
        low, high = points.min(0), points.max(0)
        boxes[k] = *((low + high) / 2), (high - low).max(), FACE if kind < 0.66 else NO_FACE
    before = canvas.copy()
    if rng.random() < 0.15:
        shapes(rng, canvas, textures, int(rng.integers(1, 6)), (4, 25))
    if rng.random() < 0.04:
        text(rng, canvas)
    _mark_hidden(boxes, before, canvas)
    return develop(canvas, log_uniform(rng, 25, 90), 1, Draws(seed * 7 + 3, index)), boxes


def _free_place(rng: np.random.Generator, boxes: np.ndarray, size: float, apart: float) -> np.ndarray | None:
    """Draw the centre of a face that keeps a distance from the others; None where none was found."""
    taken = boxes[boxes[:, 3] != EMPTY]
    for _ in range(8):
        centre = rng.uniform(size * 0.35, SIDE - size * 0.35, 2)
        if (np.abs(taken[:, :2] - centre).max(1) > (taken[:, 2] + size) * apart).all():
            return centre
    return None


def _mark_hidden(boxes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Take out faces that were painted over, in place, and set those that were partly painted over to `IGNORED`."""
    changed = before != after
    for box in boxes[boxes[:, 3] != EMPTY] if changed.any() else ():
        x, y, half = box[0], box[1], box[2] * 0.45
        part = changed[max(0, int(y - half)) : int(y + half) + 1, max(0, int(x - half)) : int(x + half) + 1]
        share = part.mean() if part.size else 0.0
        at = (boxes[:, :3] == box[:3]).all(1)
        if share > 0.9:
            boxes[at, 3] = EMPTY
        elif share > 0.12 and box[3] == FACE:
            boxes[at, 3] = IGNORED


def _draw_block(seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    cv2.setNumThreads(1)
    textures = TexturePool(np.random.default_rng([seed, start, 1]), SIDE)
    drawn = [draw_scene(seed, index, textures) for index in range(start, stop)]
    return np.stack([image for image, _ in drawn]), np.stack([boxes for _, boxes in drawn])


def open_scenes(seed: int, count: int, cache: Path, workers: int) -> Scenes:
    """Return `count` scenes of a series, drawn by `workers` processes and stored in the cache at the first call."""
    identity = hashlib.sha256(repr((SCENES_VERSION, RENDERER_VERSION, seed, count)).encode()).hexdigest()[:16]
    images_path, boxes_path = (cache.absolute() / "scenes" / f"{identity}-{name}.npy" for name in ("images", "boxes"))
    images_path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(images_path.with_suffix(".lock")):
        if not boxes_path.exists():
            boxes = np.empty((count, MAX_PEOPLE, 4), np.float32)
            starts = range(0, count, _BLOCK)
            jobs = (joblib.delayed(_draw_block)(seed, start, min(start + _BLOCK, count)) for start in starts)
            with (
                writing(images_path) as aside,
                tqdm(total=count, desc="Drawing scenes", unit="scene", disable=None) as bar,
            ):
                images = np.lib.format.open_memmap(aside, "w+", np.uint8, (count, SIDE, SIDE))
                for start, block in zip(starts, joblib.Parallel(workers, return_as="generator")(jobs), strict=True):
                    images[start : start + _BLOCK], boxes[start : start + _BLOCK] = block
                    bar.update(len(block[1]))
                images.flush()
            with writing(boxes_path) as aside:
                np.save(aside, boxes)
    return Scenes(np.load(images_path, mmap_mode="r"), np.load(boxes_path))
