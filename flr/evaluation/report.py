"""Write the result of an evaluation to its folder, its run in the tracking store and the terminal."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from flr.data.boxes import OFFSETS, TIGHT_SOURCES
from flr.data.datamodule import FaceData
from flr.evaluation.score import Result
from flr.files import write_json
from flr.landmarks.draw import draw_face, sheet, with_legend
from flr.landmarks.geometry import transform
from flr.metrics.functional import point_errors
from flr.reporting.figures import ced_figure, curves_figure
from flr.reporting.tables import TextTable, markdown_table, print_table, write_csv
from flr.tracking.pages import artifact
from flr.tracking.tracker import Tracker

# Metrics that only evaluation.json holds.
DETAILS = ("point/", "line/", "region/")
# What the terminal and a run's description show.
MAIN = {"nme": "NME", "baseline_nme": "NME of the mean face", "fr8": "failures above 8 %", "auc8": "AUC to 8 %"}
COSTS = {
    "parameters": ("parameters", "{:,.0f}".format),
    "macs": ("multiply-accumulates", "{:,.0f}".format),
    "latency_ms": ("latency of one face", "{:.2f} ms".format),
}
WORST = 20  # faces of worst_faces.png
STRIP = 6  # faces of faces.png, 620 pixels wide: MLflow cuts a wider image


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
    write_csv(folder / "errors.csv", [
        {"face": table.name[row], "nme": f"{100 * result.values[i]:.5f}", "baseline_nme": f"{100 * result.baseline[i]:.5f}",
         "normaliser": f"{result.data.normaliser[row]:.4f}", "group": table.group[row], "spread": _cell(result.spread[i]),
         **{f"error_{name}": _cell(error) for name, error in zip(table.scheme.names, errors[i], strict=True)}}
        for i, row in enumerate(result.rows)
    ])  # fmt: skip


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def log_result(result: Result, tracker: Tracker, folder: Path, prefix: str = "") -> None:
    """Log the metrics, files and images of an evaluation in a run; without a prefix, as the run's own result."""
    shown = {key: value for key, value in result.metrics.items() if not key.startswith(DETAILS)}
    # At step 0, MLflow shows a metric of one point as a bar.
    tracker.log_metrics({f"{prefix}{result.split}/{key}": value for key, value in shown.items()}, 0)
    for name in ("evaluation.json", "errors.csv"):
        tracker.file(folder / name, prefix.rstrip("/") or None)
    tracker.figure(ced_figure({"model": result.values, "mean face": result.baseline}), f"{prefix}ced.png")
    order = np.argsort(-np.nan_to_num(result.values))
    count = min(WORST, len(order))
    worst = with_legend(
        _sheet_of(result, order[:count], 240), f"the {count} worst of {len(order)} faces, with their NME"
    )
    tracker.image(worst, f"{prefix}worst_faces.png")
    if not prefix:
        tracker.params({f"cost.{key}": f"{value:.6g}" for key, value in result.cost.items()})
        if len(tracker.history["train/loss"]) > 1:
            tracker.figure(curves_figure(tracker.history), "curves.png")
        strip = order[np.linspace(len(order) - 1, 0, min(STRIP, len(order))).astype(int)]
        tracker.image(_sheet_of(result, strip, 100, columns=STRIP), "faces.png")
        tracker.describe(_description(result, tracker.run_id))


def _description(result: Result, run_id: str) -> str:
    """Return the Markdown of a run's page: faces first, of which MLflow shows the top before "Show more"."""
    images = {name: f"![{name}]({artifact(run_id, f'{name}.png')})" for name in ("faces", "ced", "worst_faces")}
    text = f"{result.data.name} {result.split}, {len(result.rows)} faces, here from the best to the worst"
    return (
        f"{images['faces']}\n\n{text}; truth green, prediction magenta.\n\n{markdown_table(_main_table(result))}\n"
        f"{result.data.protocol.name}\n\n{images['ced']}\n\n{images['worst_faces']}\n"
    )


def _main_table(result: Result) -> TextTable:
    """Return the main metrics; the others are in ``evaluation.json``."""
    rows = [[name, f"{result.metrics[key]:.2f} %"] for key, name in MAIN.items()]
    rows += [[name, form(result.cost[key])] for key, (name, form) in COSTS.items()]
    return TextTable(["metric", "value"], rows)


def show_result(result: Result) -> None:
    """Print the main metrics."""
    print(f"{result.data.name} {result.split}, {len(result.rows)} faces")
    print_table(_main_table(result))
    print(result.data.protocol.name)


def show_next(run_id: str, words: str, data: FaceData) -> None:
    """Print the commands that follow a training on some data, with some overrides."""
    known = {data.scheme.name, *data.scheme.reductions} & OFFSETS.keys() and data.crop.policy.source in TIGHT_SOURCES
    whole = "" if known else " detector=whole"  # no detector knows where the model's points lie in its boxes
    print(f"""Next:
  python -m flr.evaluate run={run_id}{words}
  python -m flr.predict run={run_id}{words} source=photo.jpg{whole}
  python -m flr.compare{words}""")


def _sheet_of(result: Result, which: np.ndarray, side: int, columns: int = 0) -> np.ndarray:
    """Draw some faces of a result, by their places in it, with their NME."""
    rows = result.rows[which]
    points = transform(result.data.store.to_crop()[rows], result.points[which].astype(np.float64))
    captions = [f"{100 * result.values[i]:.1f} %" for i in which]
    return face_sheet(result.data, rows, points, side, captions, columns)


def face_sheet(
    data: FaceData, rows: np.ndarray, points: np.ndarray, side: int, captions: list[str] | None = None,
    columns: int = 0,
) -> np.ndarray:  # fmt: skip
    """Draw a sheet of crops with true and predicted points.

    Args:
        data: The prepared dataset.
        rows: (n,) of its table.
        points: (n, K, 2) predicted, crop pixels.
        side: Pixels of a face.
        captions: One per face.
        columns: Faces in a row; 0 for a square sheet.
    """
    each = zip(data.store.crops(rows), data.labels[rows], points, data.prepare().labelled[rows], strict=True)
    faces = [draw_face(*face, side, captions[i] if captions else "") for i, face in enumerate(each)]
    return sheet(faces, columns or int(np.ceil(np.sqrt(len(faces)))))
