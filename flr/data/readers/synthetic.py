"""Rendered faces with exact points, as if they had been downloaded: rendered once into ``root``, then read."""

import hashlib
import os
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated, Literal

import joblib
import numpy as np
from annotated_types import Ge, Gt
from filelock import FileLock
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from flr.data.crops import reserve
from flr.data.synthetic.renderer import RENDERER_VERSION, render
from flr.data.table import FaceTable, make_table
from flr.errors import UserError
from flr.files import writing_folder
from flr.landmarks.scheme import IBUG68
from flr.system import cores, start_worker

FACES_OF_A_PROCESS = 100  # about the time that a process takes to start
BATCH = 16  # faces that a process renders at a time


def read(
    root: Path, strict: bool = False, train: int = 1000, val: int = 100, test: int = 100,
    seed: Annotated[int, Ge(0)] = 0, size: int = 208, face: float = 0.5, channels: Literal[1, 3] = 1,
    box: Annotated[float, Gt(0)] | None = None, even_tones: bool = False,
) -> FaceTable:  # fmt: skip
    """Return the faces (seed, 0), (seed, 1), ...: first the test part, then validation, then training.

    So a larger training part keeps the other parts, and a dataset is the first faces of every larger one.

    Args:
        root: Folder of rendered datasets.
        strict: No effect: no face here is faulty.
        train: Number of training faces.
        val: Number of validation faces.
        test: Number of test faces.
        seed: Number of the series.
        size: Side of an image, pixels.
        face: Extent of the points as a share of the image.
        channels: 1 for grey, 3 for RGB.
        box: Side of each face's box over the larger side of its 68 points, round their middle, for
            ``crop.policy.source=file``; null states no box.
        even_tones: Whether dark skins are as frequent as light ones, not less frequent.

    Raises:
        UserError: A part is empty, or `root` cannot be written.
    """
    if min(train, val, test) < 1:
        raise UserError(
            f"data.reader: a part of {train}/{val}/{test} faces is empty; set train, val and test to 1 or more"
        )
    count = train + val + test
    # What a face shows is a function of these and of its number alone.
    settings = f"renderer {RENDERER_VERSION}, seed {seed}, size {size}, face {float(face)!r}, channels {channels}"
    settings += ", even tones" * even_tones
    folder = root.absolute() / hashlib.sha256(f"{settings}, {count} faces".encode()).hexdigest()[:16]
    _render_once(folder, count, seed, size, channels, face, even_tones)
    points, visible = np.load(folder / "points.npy"), np.load(folder / "visible.npy")
    images = np.load(folder / "images.npy", mmap_mode="r")
    stated = settings if box is None else f"{settings}, box {float(box)!r}"
    split = np.repeat(["test", "val", "train"], [test, val, train])
    name = np.array([f"{seed}/{i}" for i in range(count)])
    return make_table(
        "synthetic" if seed == 0 else f"synthetic-{seed}", IBUG68, root, np.arange(count).astype(str), points, split,
        strict=strict, visible=visible, box=None if box is None else _boxes(points, box), group=name, name=name,
        # No rendered value: the last bits of the points differ between CPUs.
        published=(np.array([stated] * count), np.arange(count)),
        read_image=lambda name: np.asarray(images[int(name)]), version=np.full(count, int(folder.name[:15], 16), np.int64),
    )  # fmt: skip


def _boxes(points: np.ndarray, scale: float) -> np.ndarray:
    low, high = points.min(1), points.max(1)
    half = scale / 2 * np.ptp(points, 1).max(1, keepdims=True)
    return np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half], 1).astype(np.float32)


def _render_once(folder: Path, count: int, seed: int, size: int, channels: int, face: float, even_tones: bool) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _render_all(folder, count, seed, size, channels, face, even_tones)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); set paths.cache_dir=DIR or data.root=DIR"
        ) from error


def _render_all(folder: Path, count: int, seed: int, size: int, channels: int, face: float, even_tones: bool) -> None:
    """Render the faces into a folder, in processes, since most of the work is Python's and holds the interpreter."""
    points, visible = np.empty((count, 68, 2), np.float32), np.empty((count, 68), bool)
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    workers = min(cores(), 1 + count // FACES_OF_A_PROCESS)
    parallel = joblib.Parallel(
        workers, "loky", return_as="generator", batch_size=BATCH, initializer=start_worker, initargs=(os.getpid(),)
    )
    with writing_folder(folder) as aside:
        images = np.lib.format.open_memmap(aside / "images.npy", "w+", np.uint8, shape)
        reserve(aside / "images.npy")
        faces = parallel(joblib.delayed(render)(seed, i, size, channels, face, even_tones) for i in range(count))
        try:
            for i, one in enumerate(tqdm(faces, "Rendering", count, unit="face", disable=None)):
                images[i], points[i], visible[i] = one.image, one.points, one.visible
        except BrokenExecutor as error:
            raise UserError(
                "a process that renders faces was killed, as happens when memory runs out; free memory and run this again"
            ) from error
        finally:
            if workers > 1:
                get_reusable_executor().shutdown(kill_workers=True)  # else they hold their memory for minutes
        images.flush()
        del images  # Windows renames no folder with a file that is mapped
        np.save(aside / "points.npy", points)
        np.save(aside / "visible.npy", visible)
