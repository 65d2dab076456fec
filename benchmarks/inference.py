"""Milliseconds a face of each net, exported and run by ONNX Runtime, beside the same net run by torch: one thread, one face.

    python -m benchmarks.inference [NET ...]           nets of conf/experiment/fair/, by default all

From a picture of 640 x 480 and a box to points in the picture, the crop included and the detector not; what the detector takes for
such a picture stands beside it. It is the time of a core, so that a busy machine does not count. The weights are those that a training
starts from: they change no time. The goal is what dlib's regression trees take for a face and its 68 points, 0.86 ms, measured elsewhere.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import config, record, rounds
from flr.cli import quiet
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.data.boxes import Haar
from flr.data.crops import crop
from flr.data.synthetic import render
from flr.inference.export import make_metadata, write_model, write_onnx
from flr.inference.landmarker import Landmarker
from flr.inference.onnx import OnnxPredictor
from flr.inference.predictor import Predictor
from flr.landmarks.scheme import IBUG68
from flr.module.assembly import assemble

GOAL = 0.86  # ms
ROUNDS, SECONDS = 9, 0.1  # of a round, whose figure is its fastest face
PRECISIONS = ("fp32", "int8")


def least(work: Callable[[], object]) -> Callable[[], float]:
    """Milliseconds of a core that some work takes, which on one thread are those it takes where nothing else runs."""

    def measure() -> float:
        times: list[float] = []
        while len(times) < 3 or sum(times) < 1000 * SECONDS:
            start = time.process_time()
            work()
            times.append(1000 * (time.process_time() - start))
        return min(times)

    return measure


def predictor_of(name: str) -> Predictor:
    """A net of the fair recipe, untrained."""
    cfg = config(f"experiment=fair/{name}")
    settings = build(cfg.data.crop)
    module = assemble(cfg, IBUG68, settings, np.zeros((68, 2), np.float32))
    return Predictor(module, settings, tuple(cfg.data.pixels), None)


def main() -> None:
    quiet()
    logging.disable(logging.WARNING)  # the exporters' remarks
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = sys.argv[1:] or sorted(path.stem for path in (CONF / "experiment" / "fair").glob("*.yaml"))
    picture = np.full((480, 640), 128, np.uint8)
    face = render(0, 0, 300, 1, 0.5).image.reshape(300, 300)
    picture[90:390, 170:470] = face
    box = np.array([[245.0, 165, 395, 315]])
    nets: dict[str, dict[str, object]] = {}
    settings = predictor_of(names[0]).crop
    affine = settings.policy.crop(box, settings.size)[0]
    haar = rounds({"haar": least(lambda: Haar().detect(picture))}, 3)["haar"]
    cropped = rounds({"crop": least(lambda: crop(picture, affine, settings.size, settings.channels))}, 3)["crop"]
    table = Table(title=f"ms of a core a face; Haar {median(haar):.1f} a picture, the crop alone {median(cropped):.3f}")
    for column in ("net", "parameters", "torch", *(f"ONNX {p}" for p in PRECISIONS), f"under {GOAL}"):
        table.add_column(column, justify="left" if column == "net" else "right")
    for name in names:
        runners: dict[str, Landmarker] = {"torch": predictor_of(name)}
        size = {}
        with tempfile.TemporaryDirectory() as folder:
            source, plain = predictor_of(name), Path(folder) / "fp32.onnx"
            metadata = make_metadata(source, plain, {}, "fp32")
            write_model(source, metadata, plain, "fp32")
            write_onnx(onnx.load(plain), metadata, Path(folder) / "int8.onnx", int8=True)
            for precision in PRECISIONS:
                path = Path(folder) / f"{precision}.onnx"
                size[precision] = path.stat().st_size
                runners[precision] = OnnxPredictor.load(path, threads=1)
        figures = rounds({k: least(lambda run=run: run([picture], box)) for k, run in runners.items()}, ROUNDS)
        middle = {kind: median(values) for kind, values in figures.items()}
        count = sum(p.numel() for p in predictor_of(name).module.net.parameters())
        fast = [precision for precision in PRECISIONS if middle[precision] < GOAL]
        nets[name] = {"parameters": count, "bytes": size, "ms": middle, "rounds": figures, f"under {GOAL} ms": fast}
        table.add_row(
            name, f"{count:,}", *(f"{middle[k]:.2f}" for k in ("torch", *PRECISIONS)), ", ".join(fast) or "no"
        )
    Console().print(table)
    command = " ".join(["python -m benchmarks.inference", *sys.argv[1:]])
    beside = {"haar ms a 640x480 picture": haar, "crop ms": cropped}
    record("inference", command, goal_ms=GOAL, size=settings.size, **beside, nets=nets)


if __name__ == "__main__":
    main()
