"""Frames a second of a 640 x 480 video with one face that is followed, as `flr.predict` follows it, and what each part takes.

    python -m benchmarks.video RUN ...            checkpoints; without one the default run is trained first

A rendered face of series 7, which no training draws, moves as in `benchmarks.jitter` before grey, at 30 frames a second. Each net runs by
ONNX Runtime on all cores. "track" is detector, net and smoothing on frames in memory; "all" decodes the video before, and draws and
encodes after. The detector looks at every tenth frame, as by default; "every frame" has it look at each. Rounds alternate between the nets.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from benchmarks.jitter import RATE, path
from flr.data.synthetic.renderer import render
from flr.inference.detectors import BuiltinDetector
from flr.inference.export import make_metadata, write_model
from flr.inference.faces import FaceTracker
from flr.inference.onnx import OnnxPredictor
from flr.inference.predictor import Predictor
from flr.inference.smoothing import OneEuro
from flr.inference.sources import Video
from flr.inference.writer import open_video
from flr.landmarks.draw import draw_landmarks
from flr.landmarks.geometry import compose, tight_box, transform, warp
from flr.module.checkpoints import load_checkpoint

GOAL = 30  # frames a second
FRAMES, ROUNDS, SIDE, WIDTH, HEIGHT = 300, 3, 240, 640, 480


class Timed:
    """A detector, which is called, or a net, which is asked to find; and the seconds that this took."""

    def __init__(self, inner: object) -> None:
        self.inner, self.seconds, self.calls = inner, 0.0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def __call__(self, *args: object) -> object:
        return self._timed(self.inner, *args)

    def find(self, *args: object) -> object:
        return self._timed(self.inner.find, *args)  # type: ignore[attr-defined]

    def _timed(self, work: object, *args: object) -> object:
        start = time.perf_counter()
        try:
            return work(*args)  # type: ignore[operator]
        finally:
            self.seconds += time.perf_counter() - start
            self.calls += 1


def moving_face() -> tuple[Iterator[np.ndarray], np.ndarray]:
    """Return the frames (HEIGHT, WIDTH, 3) RGB uint8 of the video, and the true points (T, 68, 2)."""
    face = render(7, 1, SIDE, 3, 0.5)
    middle = np.array([[1.0, 0.0, (WIDTH - SIDE) / 2], [0.0, 1.0, (HEIGHT - SIDE) / 2]])
    maps = compose(middle, path(np.arange(FRAMES) / RATE))

    def frames() -> Iterator[np.ndarray]:
        noise = np.random.default_rng(0)
        for affine in maps:
            frame = warp(face.image, affine, (WIDTH, HEIGHT)) + noise.normal(0, 3, (HEIGHT, WIDTH, 3))
            yield np.clip(frame, 0, 255).round().astype(np.uint8)

    return frames(), transform(maps, face.points.astype(np.float64)[None])


def film(to: Path) -> np.ndarray:
    """Write the video; (T, 68, 2) where the points are."""
    frames, points = moving_face()
    with open_video(to, RATE, (WIDTH, HEIGHT)) as write_frame:
        for frame in frames:
            write_frame(frame)
    return points


def exported(checkpoint: Path, folder: Path) -> OnnxPredictor:
    """A run's net by ONNX Runtime, as `flr.export` writes it."""
    predictor, out = Predictor.load(checkpoint, tta=False), folder / f"{checkpoint.parent.parent.name}.onnx"
    predictor.half = False
    metadata = make_metadata(predictor, checkpoint, load_checkpoint(checkpoint)["flr"]["protocol"], "fp32")
    write_model(predictor, metadata, out, "fp32")
    return OnnxPredictor.load(out)


def follow(net: OnnxPredictor, frames: list[np.ndarray], every: int, truth: np.ndarray) -> dict[str, float]:
    """What following a face over frames in memory takes, ms a frame; and how well it is followed: the error in percent of its width."""
    timed, detector = Timed(net), Timed(BuiltinDetector())
    tracker = FaceTracker(timed, detector, every, smooth=OneEuro)  # type: ignore[arg-type]
    took, off, faces = [], [], set[int | None]()
    for i, frame in enumerate(frames):
        start = time.perf_counter()
        found = tracker(frame, "", i / RATE)
        took.append(time.perf_counter() - start)
        faces |= {face.identity for face in found}
        known = np.ones(68, bool)
        box = tight_box(truth[i], known)
        off += [np.linalg.norm(face.points - truth[i], axis=1).mean() / np.ptp(box[::2]) for face in found[:1]]
    return {
        "track": 1000 * float(np.mean(took)), "p95": 1000 * float(np.percentile(took, 95)),
        "detector": 1000 * detector.seconds / len(frames), "a look of the detector": 1000 * detector.seconds / detector.calls,
        "net": 1000 * timed.seconds / len(frames), "identities": len(faces), "found": len(off) / len(frames),
        "error": 100 * float(np.mean(off)) if off else float("nan"),
    }  # fmt: skip


def whole(net: OnnxPredictor, source: Path, to: Path) -> float:
    """Milliseconds a frame from the file to the annotated file."""

    def frames() -> Iterator[np.ndarray]:
        tracker = FaceTracker(net, BuiltinDetector(), smooth=OneEuro)
        for frame in Video(str(source)):
            faces = tracker(frame.image, "", frame.seconds)
            points = np.array([face.points for face in faces]).reshape(-1, 68, 2)
            boxes = np.array([face.box for face in faces]).reshape(-1, 4)
            yield draw_landmarks(frame.image, points, boxes, [str(f.identity) for f in faces], net.scheme, False, False)

    start = time.perf_counter()
    with open_video(to, RATE, (WIDTH, HEIGHT)) as write_frame:
        for shown in frames():
            write_frame(shown)
    return 1000 * (time.perf_counter() - start) / FRAMES


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flr-") as name:
        folder = Path(name)
        checkpoints = [Path(word) for word in sys.argv[1:]]
        if not checkpoints:
            subprocess.run([sys.executable, "-m", "flr.train", f"paths.output_dir={folder}"], check=True)
            checkpoints = list(folder.glob("runs/*/checkpoints/best.ckpt"))
        source = folder / "film.mp4"
        truth = film(source)
        frames = [frame.image for frame in Video(str(source))]
        nets = {}
        for checkpoint in checkpoints:
            config = load_checkpoint(checkpoint)["flr"]["config"]
            nets[
                f"{config['name'] or config['model']['_target_'].rpartition('.')[2]} {config['data']['crop']['size']} px"
            ] = exported(checkpoint, folder)
        figures: dict[str, dict[str, list[float]]] = {net: {} for net in nets}
        for _ in range(ROUNDS):
            for net, run in nets.items():
                figure = follow(run, frames, 10, truth)
                figure["every frame"] = follow(run, frames, 1, truth)["track"]
                figure["all"] = whole(run, source, folder / "out.mp4")
                for key, value in figure.items():
                    figures[net].setdefault(key, []).append(value)
    table = Table(
        title=f"a face followed over {FRAMES} frames of {WIDTH} x {HEIGHT}: ms a frame, median of {ROUNDS} rounds"
    )
    columns = ("track", "p95", "detector", "net", "every frame", "all")
    for column in ("net", *columns, "frames/s, all", "at every frame", f"{GOAL} frames/s", "error, %", "identities"):
        table.add_column(column, justify="left" if column == "net" else "right")
    for net, figure in figures.items():
        middle = {key: median(values) for key, values in figure.items()}
        table.add_row(
            net, *(f"{middle[c]:.1f}" for c in columns), f"{1000 / middle['all']:.0f}", f"{1000 / middle['every frame']:.0f}",
            "yes" if middle["all"] < 1000 / GOAL else "no", f"{middle['error']:.2f}", f"{middle['identities']:.0f}",
        )  # fmt: skip
    Console(width=160).print(table)
    record("video", "python -m benchmarks.video RUN ...", goal_frames_per_second=GOAL, ms_a_frame=figures)


if __name__ == "__main__":
    main()
