"""Seconds that many runs in a tracking store take to compare.

    python -m benchmarks.tracking                                   the embedded store, in a folder of its own
    MLFLOW_TRACKING_URI=http://HOST:5000 python -m benchmarks.tracking    a server, in a new experiment there

RUNS runs as `flr.train` leaves them, but for weights and pictures, of made-up numbers: NETS nets with as many seeds each, EPOCHS
epochs of ten metrics and of ten of the machine's, a whole config, the errors of FACES faces. Then `flr.compare group=model`.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import config, report
from flr.config.compose import flat, plain
from flr.evaluation.results import read_results
from flr.landmarks.scheme import IBUG68
from flr.tracking.connection import connect, find_runs
from flr.tracking.tracker import Tracker

ROUNDS = 3
RUNS, NETS, EPOCHS, FACES = 200, 10, 60, 554
CURVES = ("train/loss", "train/images_per_second", "lr", "val/nme", "val/mse", "val/mae", "val/loss", "val/baseline_nme",
          "epoch", "grad_norm")  # fmt: skip
TESTED = ("nme", "nme_interocular", "nme_interpupil", "nme_box", "fr8", "auc8", "fr10", "auc10", "p90", "p95", "p99", "mse",
          "mae", "baseline_nme")  # fmt: skip
PROTOCOL = "made-up ibug68 1812/532/554 truth-square-1.25 interocular 0123456789abcdef"


def fill(tracker: Tracker, folder: Path) -> None:
    """All the runs."""
    from mlflow.entities import Metric

    params = {key: value for key, value in flat(plain(config())) if not key.startswith(("tracking.", "paths."))}
    tracker.open()
    for number in range(RUNS):
        net, seed = number % NETS, number // NETS
        rng = np.random.default_rng(number)
        nme = rng.gamma(9, 0.4 + 0.01 * net, FACES)
        tracker.start(f"Net{net} seed {seed}", {"model": f"Net{net}", "seed": str(seed), "protocol": PROTOCOL})
        tracker.params({**params, "seed": seed, "hardware.cpu": "none", "hardware.gpu": "none"})
        now = int(1000 * time.time())
        curves = [*CURVES, *(f"system/metric_{i}" for i in range(10))]
        points = [Metric(name, float(rng.normal()), now, step) for step in range(EPOCHS) for name in curves]
        points += [Metric(f"test/{name}", float(nme.mean()), now, EPOCHS) for name in TESTED]
        for first in range(0, len(points), 1000):
            tracker.client.log_batch(tracker.run_id, metrics=points[first : first + 1000])
        with (folder / "errors.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(
                ["face", "nme", "baseline_nme", "normaliser", "group", *(f"error_{name}" for name in IBUG68.names)]
            )
            for i, value in enumerate(nme):
                errors = [f"{error:.4f}" for error in rng.gamma(4, 0.5, len(IBUG68))]
                rows.writerow([f"face{i:04}", f"{value:.5f}", "17.00000", "60.0000", f"photo{i:04}", *errors])
        (folder / "evaluation.json").write_text(json.dumps({"protocol": PROTOCOL, "metrics": {"nme": nme.mean()}}))
        for name in ("errors.csv", "evaluation.json"):
            tracker.file(folder / name)
        tracker.end("FINISHED")


def main() -> None:
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    with tempfile.TemporaryDirectory(prefix="flr-") as name:
        folder = Path(name)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        uri = server or f"sqlite:///{folder}/mlflow.db"
        tracker = Tracker(uri, f"benchmark {time.time():.0f}", folder / "artifacts", system_metrics=False)
        start = time.perf_counter()
        fill(tracker, folder)
        print(f"{RUNS} runs written in {time.perf_counter() - start:.0f} s to experiment {tracker.experiment}")
        command = [
            sys.executable, "-m", "flr.compare", f"tracking.uri={uri}", f"tracking.experiment='{tracker.experiment}'", "faces=0",
            f"out={folder}/page",
        ]  # fmt: skip
        figures: dict[str, list[float]] = {key: [] for key in ("flr.compare", "of which: the list", "the results")}
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            ends = [time.perf_counter()]
            runs = find_runs(connect(uri), tracker.experiment, "")
            ends.append(time.perf_counter())
            with tempfile.TemporaryDirectory(prefix="flr-") as copies:
                tested, _ = read_results(tracker.client, runs, False, Path(copies))
            ends.append(time.perf_counter())
            assert len(tested) == RUNS
            for key, seconds in zip(figures, np.diff([begin, *ends]), strict=True):
                figures[key].append(float(seconds))
    store = "server" if server else "sqlite"
    report(f"tracking_{store}", "seconds", figures, f"python -m benchmarks.tracking, {store}", runs=RUNS)


if __name__ == "__main__":
    main()
