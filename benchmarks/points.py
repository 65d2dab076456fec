"""Error of the points that `flr.find_faces` returns on photos of 300-W or YouTube Faces, from the photo alone: detector, model and refinement.

    python -m benchmarks.points [data=ibug] [part=test] [root=DIR] [run=RUN] [refine=1] [every=1] [DETECTOR ...]

`data` is ibug or youtube_faces; `part` is test (of ibug helen, 330 photos, which choose nothing) or train; `every` takes each nth photo. RUN is a value of ``run=``, by
default the included model. A DETECTOR is as in `benchmarks.detectors`; "truth" means the boxes of the true points. The
detected face whose box overlaps the true one most counts, from an overlap of .3 on; a face without one is missed. The NME is
the mean over the faces found, also by the yaw of the head; failures are faces above 8 % and those missed.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from benchmarks.detectors import of_config, yaws
from flr.data.boxes import overlap
from flr.data.readers import ibug, youtube_faces
from flr.data.table import FaceTable
from flr.inference.detectors import Detections, Detector
from flr.inference.faces import find_faces
from flr.inference.landmarker import Landmarker
from flr.inference.loading import INCLUDED, find_model, load_file
from flr.metrics.functional import nme, point_errors

WORDS = ("data", "part", "root", "run", "refine", "every")
YAWS = (0, 15, 30, 45, 60, 91)  # degrees
READERS = {"ibug": (ibug.read, "300w"), "youtube_faces": (youtube_faces.read, "youtube_faces")}
FOUND = 0.3  # intersection over union of a face and its box


class Truth:
    """The box of the true points, as a detector."""

    def __init__(self, table: FaceTable) -> None:
        self.boxes = {
            str(name): box[None].astype(np.float64) for name, box in zip(table.name, table.tight, strict=True)
        }

    def __call__(self, image: np.ndarray, name: str, model: object) -> Detections:
        return self.boxes[name], np.ones(1)


def errors(model: Landmarker, detector: Detector, table: FaceTable, rows: np.ndarray, refine: int) -> np.ndarray:
    """NME of each face (N,), percent; NaN for a face that is missed."""
    values = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        faces = find_faces(
            model, detector, np.ascontiguousarray(table.load(int(row))), str(table.name[row]), refine=refine
        )
        if not faces:
            continue
        shares = overlap(np.array([face.box for face in faces]), table.tight[row].astype(np.float64))
        if shares.max() >= FOUND:
            points, labelled = table.points[row][None], table.labelled[row][None]
            off = point_errors(faces[int(shares.argmax())].points[None], points, labelled)
            values[i] = 100 * nme(off, table.scheme.distance(points, labelled))[0]
    return values


def main() -> None:
    cv2.setNumThreads(1)
    words = dict(word.split("=", 1) for word in sys.argv[1:] if word.partition("=")[0] in WORDS)
    names = [word for word in sys.argv[1:] if word.partition("=")[0] not in WORDS] or ["truth", "builtin", "haar"]
    data, part, run, refine, every = (
        words.get(*pair)
        for pair in (("data", "ibug"), ("part", "test"), ("run", INCLUDED), ("refine", "1"), ("every", "1"))
    )
    read, folder = READERS[data]
    table = read(Path(words.get("root", os.environ.get("FLR_DATA", "data"))) / folder)
    rows = np.flatnonzero(table.split == part)[:: int(every)]
    model = load_file(find_model(run, "", Path()), threads=1)
    yaw = np.abs(yaws(table.points[rows]))
    turned = {f"yaw {low} to {high}": (yaw >= low) & (yaw < high) for low, high in pairwise(YAWS)}
    shown = Table(title=f"{data} {part}, {len(rows)} faces, {run}, refine={refine}")
    for column in ("detector", "missed", "NME, %", "failures, %", "median", "worst 1 %", *turned):
        shown.add_column(column, justify="left" if column == "detector" else "right")
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        values = errors(model, Truth(table) if name == "truth" else of_config(name), table, rows, int(refine))
        results[name] = {
            "missed": int(np.isnan(values).sum()), "nme": float(np.nanmean(values)), "failures": 100 - 100 * float((values <= 8).mean()),
            "median": float(np.nanmedian(values)), "p99": float(np.nanpercentile(values, 99)),
            **{key: [float(np.nanmean(values[some])) if some.any() else None, int(some.sum())] for key, some in turned.items()},
        }  # fmt: skip
        one = results[name]
        shown.add_row(
            name, str(one["missed"]), *(f"{one[key]:.2f}" for key in ("nme", "failures", "median", "p99")),
            *(f"{one[key][0]:.2f} ({one[key][1]})" if some.any() else "" for key, some in turned.items()),
        )  # fmt: skip
    Console(width=160).print(shown)
    if data == "ibug" and part == "test" and every == "1" and run == INCLUDED and refine == "1":
        record("points", f"python -m benchmarks.points {' '.join(names)}", faces=len(rows), detectors=results)


if __name__ == "__main__":
    main()
