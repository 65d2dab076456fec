"""How much a net's points tremble on a still face and lag on a moving one, with and without smoothing.

    python -m benchmarks.jitter CHECKPOINT        without one, the default run is trained first

Rendered faces of series 7, which no training draws, at 30 frames a second. Still: fresh sensor noise each frame.
Moving: the same under a known path of shift, turn and size. Each frame's box is that of the last frame's points, as when
a face is followed. Speaking: the points found on the still face, with the lower lip going up and down by a known
path, since no renderer here moves a mouth. Settings (min_cutoff, beta, d_cutoff) are compared on the first half of the faces:
the defaults are those of least jitter whose lag is at most half a frame above that of the points as found. The two
rows without "choice" are of the other half.
"""

import functools
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from flr.data.synthetic.renderer import render
from flr.inference.predictor import Predictor
from flr.inference.smoothing import OneEuro
from flr.landmarks.geometry import similarity, tight_box, transform, warp

FACES, SECONDS, RATE, SIDE, NOISE = 12, 5.0, 30, 240, 3.0
CUTOFFS, BETAS, SPEEDS = (0.3, 0.5, 1.0, 2.0), (0.0, 5.0, 10.0, 20.0, 40.0), (1.0, 2.0, 4.0)
SHIFTS = np.linspace(0, 0.4, 101)  # seconds that `lag` tries
LOWER_LIP = [*range(55, 60), *range(65, 68)]


def jitter(points: np.ndarray, distance: float) -> float:
    """Compute the mean motion of points from frame to frame in percent of a distance; for a still face, it is jitter.

    Args:
        points: (T, K, 2) over T frames, pixels.
        distance: Pixels, such as the distance between the outer eye corners.
    """
    return float(100 * np.linalg.norm(np.diff(points, axis=0), axis=-1).mean() / distance)


def lag(points: np.ndarray, truth: np.ndarray, seconds: np.ndarray) -> float:
    """Compute the delay of points in milliseconds: the shift in time at which they are nearest to the true points.

    A constant offset of a point, its bias, is not counted.

    Args:
        points: (T, K, 2) over T frames, pixels.
        truth: (T, K, 2) true points.
        seconds: (T,) times of the frames, rising.
    """
    points, truth = (values.reshape(len(values), -1) for values in (points, truth))
    late = seconds >= seconds[0] + SHIFTS[-1]  # frames for which earlier true points are known at each shift
    errors = []
    for shift in SHIFTS:
        before = np.stack([np.interp(seconds[late] - shift, seconds, column) for column in truth.T], 1)
        errors.append((points[late] - before).var(0).sum())
    return float(1000 * SHIFTS[np.argmin(errors)])


def path(seconds: np.ndarray) -> np.ndarray:
    """(T, 2, 3) maps of a head that nods, turns and comes nearer: up to .7 of its width a second."""
    turn = np.deg2rad(10) * np.sin(2 * np.pi * 0.4 * seconds)
    size = 1 + 0.1 * np.sin(2 * np.pi * 0.3 * seconds)
    shift = 0.12 * SIDE * np.stack([np.sin(2 * np.pi * 0.6 * seconds), 0.5 * np.sin(2 * np.pi * 0.9 * seconds)], 1)
    middle = np.full((len(seconds), 2), (SIDE - 1) / 2)
    return similarity(turn, size, middle, middle + shift)


def follow(predictor: Predictor, faces: list[np.ndarray], truths: np.ndarray, seed: int) -> np.ndarray:
    """(F, T, K, 2) of faces (T, H, W, C) whose boxes come from the points of the frame before."""
    random, known = np.random.default_rng(seed), np.ones(truths.shape[2], bool)
    boxes, found = tight_box(truths[:, 0], known), []
    for t in range(truths.shape[1]):
        images = [frames[t] + random.normal(0, NOISE, frames[t].shape) for frames in faces]
        found.append(predictor([np.clip(image, 0, 255).round().astype(np.uint8) for image in images], boxes))
        boxes, right = tight_box(found[-1], known), tight_box(truths[:, t], known)
        side = (right[:, 2:] - right[:, :2]).max(1)
        lost = abs(boxes - right).max(1) > side / 3
        boxes[lost] = right[lost]  # a detector finds it again
    return np.stack(found, 1)


def smoothed(points: np.ndarray, seconds: np.ndarray, filters: Callable[[], OneEuro]) -> np.ndarray:
    """(F, T, K, 2), each face through a filter of its own."""
    out = []
    for face in points:
        one = filters()
        out.append(np.stack([one(frame, time) for frame, time in zip(face, seconds, strict=True)]))
    return np.stack(out)


def measure(
    films: dict[str, tuple[np.ndarray, np.ndarray]], half: slice, seconds: np.ndarray,
    filters: Callable[[], OneEuro] | None,
) -> dict[str, float]:  # fmt: skip
    """Jitter in percent of the interocular distance, lag in ms, and the error that is left, percent."""
    figures = {}
    for name, (points, truth) in films.items():
        points, truth = points[half], truth[half]
        points = points if filters is None else smoothed(points, seconds, filters)
        distance = np.linalg.norm(truth[:, 0, 36] - truth[:, 0, 45], axis=-1)
        at = LOWER_LIP if name == "speaking" else range(68)
        if name == "still":
            figures["jitter"] = float(np.mean([jitter(p, d) for p, d in zip(points, distance, strict=True)]))
        else:
            lags = [lag(p[:, at], t[:, at], seconds) for p, t in zip(points, truth, strict=True)]
            figures[f"{name} lag"] = float(np.mean(lags))
            bias = (points - truth).mean(1, keepdims=True)  # what the net is off by on this face at all times
            error = np.linalg.norm(points - truth - bias, axis=-1)[:, :, at].mean((1, 2))
            figures[f"{name} error"] = float(100 * (error / distance).mean())
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        if len(sys.argv) > 1:
            checkpoint = Path(sys.argv[1])
        else:
            subprocess.run([sys.executable, "-m", "flr.train", f"paths.output_dir={folder}"], check=True)
            (checkpoint,) = Path(folder).glob("runs/*/checkpoints/best.ckpt")
        predictor = Predictor.load(checkpoint)
    channels = predictor.crop.channels
    faces = [render(7, i, SIDE, channels, 0.5) for i in range(FACES)]
    seconds = np.arange(round(SECONDS * RATE)) / RATE
    still = np.stack([np.repeat(face.points[None], len(seconds), 0) for face in faces]).astype(np.float64)
    maps = path(seconds)
    moving = np.stack([transform(maps, face.points.astype(np.float64)[None]) for face in faces])
    films = {
        "still": (follow(predictor, [[face.image] * len(seconds) for face in faces], still, 0), still),  # type: ignore[misc]
        "moving": (
            follow(predictor, [[warp(f.image, m, (SIDE, SIDE)) for m in maps] for f in faces], moving, 1), moving,  # type: ignore[misc]
        ),
    }  # fmt: skip
    said = np.zeros((len(seconds), 68, 2))
    open_mouth = 0.06 * (
        2 - np.cos(2 * np.pi * 2.6 * seconds) - np.cos(2 * np.pi * 1.7 * seconds)
    )  # never the same again
    said[:, LOWER_LIP, 1] = open_mouth[:, None]
    said = said * np.linalg.norm(still[:, 0, 36] - still[:, 0, 45], axis=-1)[:, None, None, None]
    films["speaking"] = films["still"][0] + said, still + said
    first, second = slice(0, FACES // 2), slice(FACES // 2, None)
    grid = {}
    for settings in itertools.product(CUTOFFS, BETAS, SPEEDS):
        name = ", ".join(f"{value:g}" for value in settings)
        grid[name] = measure(films, first, seconds, functools.partial(OneEuro, *settings))
    rows = {"as found": measure(films, second, seconds, None), "smoothed": measure(films, second, seconds, OneEuro)}
    table = Table(title="jitter and error in percent of the interocular distance, lag in ms")
    for column in ("", *rows["as found"]):
        table.add_column(column, justify="right" if column else "left")
    chosen = measure(films, first, seconds, None)
    for name, figures in ({"choice: as found": chosen} | {f"choice: {k}": v for k, v in grid.items()} | rows).items():
        table.add_row(name, *(f"{value:.3g}" for value in figures.values()))
    Console().print(table)
    record("jitter", "python -m benchmarks.jitter", contenders=rows, choice={"as found": chosen} | grid)


if __name__ == "__main__":
    main()
