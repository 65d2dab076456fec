"""Write the result of an evaluation to its folder, its run in the tracking store and the terminal."""

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from flr.data.datamodule import FaceData
from flr.evaluation.score import Result
from flr.files import write_json, writing
from flr.landmarks.draw import draw_face, sheet
from flr.landmarks.geometry import transform
from flr.metrics.functional import point_errors
from flr.reporting.figures import ced_figure
from flr.reporting.tables import TextTable, print_table
from flr.tracking.tracker import Tracker

# Metrics that only evaluation.json holds.
DETAILS = ("point/", "line/")


def write_result(result: Result, folder: Path, checkpoint: str) -> None:
    """Write ``evaluation.json`` and ``errors.csv``, one row a face, to `folder`."""
    table = result.data.prepare()
    write_json(
        folder / "evaluation.json",
        {
            "split": result.split,
            "tta": result.tta,
            "refine": result.refine,
            "checkpoint": checkpoint,
            "protocol": result.data.protocol.name,
            "metrics": {key: value if np.isfinite(value) else None for key, value in result.metrics.items()},
            "cost": result.cost,
            "tf32": torch.backends.cudnn.allow_tf32,  # of the latency
            "faces": len(result.rows),
            "skipped": [str(fault) for fault in table.faults],
            **asdict(result.data.protocol),
        },
    )
    errors = point_errors(result.points, table.points[result.rows], table.labelled[result.rows])
    with writing(folder / "errors.csv") as partial_file, partial_file.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["face", "nme", "baseline_nme", "normaliser", "group", "spread"]
            + [f"error_{name}" for name in table.scheme.names]
        )
        for i, row in enumerate(result.rows):
            cells = ["" if np.isnan(e) else f"{e:.4f}" for e in errors[i]]
            rows.writerow(
                [table.name[row], f"{100 * result.values[i]:.5f}", f"{100 * result.baseline[i]:.5f}",
                 f"{result.data.normaliser[row]:.4f}", table.group[row],
                 "" if np.isnan(result.spread[i]) else f"{result.spread[i]:.4f}", *cells]
            )  # fmt: skip


def log_result(result: Result, tracker: Tracker, folder: Path, step: int, prefix: str = "") -> None:
    """Log the metrics, files and images of an evaluation in a run."""
    shown = {key: value for key, value in result.metrics.items() if not key.startswith(DETAILS)}
    tracker.log_metrics({f"{prefix}{result.split}/{key}": value for key, value in shown.items()}, step)
    if not prefix:
        tracker.log_metrics({f"cost/{key}": value for key, value in result.cost.items()}, step)
    for name in ("evaluation.json", "errors.csv"):
        tracker.file(folder / name, prefix.rstrip("/") or None)
    tracker.figure(ced_figure({"model": result.values, "mean face": result.baseline}), f"{prefix}ced.png")
    worst = np.argsort(-np.nan_to_num(result.values))[:20]
    rows = result.rows[worst]
    points = transform(result.data.store.to_crop()[rows], result.points[worst].astype(np.float64))
    captions = [f"{100 * result.values[i]:.1f} %" for i in worst]
    tracker.image(face_sheet(result.data, rows, points, 240, captions), f"{prefix}worst_faces.png")


def show_result(result: Result) -> None:
    """Print the metrics."""
    shown = {key: value for key, value in result.metrics.items() if not key.startswith(DETAILS)}
    rows = [[key, f"{value:.6f}" if key in ("mse", "mae") else f"{value:.2f}"] for key, value in shown.items()]
    rows += [[key, f"{value:,.0f}" if value > 1000 else f"{value:.2f}"] for key, value in result.cost.items()]
    print(f"{result.data.name} {result.split}, {len(result.rows)} faces")
    print_table(TextTable(["metric", "value"], rows))
    print(result.data.protocol.name)


def face_sheet(
    data: FaceData, rows: np.ndarray, points: np.ndarray, side: int, captions: list[str] | None = None
) -> np.ndarray:
    """Draw a sheet of crops with true and predicted points.

    Args:
        data: The prepared dataset.
        rows: (n,) of its table.
        points: (n, K, 2) predicted, crop pixels.
        side: Pixels of a face.
        captions: One per face.
    """
    assert data.table is not None
    margin, size = data.store.margin, data.crop.size
    faces = []
    for i, row in enumerate(rows):
        image = data.store.images[row, margin : margin + size, margin : margin + size]
        caption = captions[i] if captions else ""
        faces.append(draw_face(image, data.labels[row], points[i], data.table.labelled[row], side, caption))
    return sheet(faces, columns=int(np.ceil(np.sqrt(len(faces)))))
