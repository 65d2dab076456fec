"""Seconds from the start of the process to a validation NME, from random weights, on 300-W.

    python -m benchmarks.speedrun experiment=records/speedrun data.root=DIR          any override of flr.train; ROUNDS=1 before it

Each round is the real command with another seed: imports, the store (warm from the second round on), every validation and
checkpoint are in the time, the test on helen is not. Peers, measured elsewhere on two cores with the same training faces:
dlib's regression trees reach 3.71 % on helen in 530 s; a 4.7 M heatmap net 3.65 % in 322 s and 3.25 % in 759 s.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
from rich.console import Console
from rich.table import Table

from benchmarks.common import record

GOALS = (5.0, 4.0, 3.7, 3.3)


def run(words: list[str], seed: int, folder: Path) -> tuple[list[float | None], dict[str, float]]:
    """The seconds to each goal (None where it was not met), and the run's last metrics."""
    uri = f"sqlite:///{folder}/mlflow.db"
    own = [f"seed={seed}", f"tracking.uri={uri}", f"paths.output_dir={folder}", "tracking.system_metrics=false"]
    start = time.time()
    subprocess.run([sys.executable, "-m", "flr.train", *words, *own], check=True, stderr=subprocess.DEVNULL)
    client = mlflow.MlflowClient(uri)
    stored = client.search_runs([client.get_experiment_by_name("flr").experiment_id], max_results=1)[0]
    curve = client.get_metric_history(stored.info.run_id, "val/nme")
    met = [next((m.timestamp / 1000 - start for m in curve if m.value <= goal), None) for goal in GOALS]
    return met, stored.data.metrics


def main() -> None:
    words, rounds = sys.argv[1:], int(os.environ.get("ROUNDS", "1"))
    rows = []
    for seed in range(rounds):
        with tempfile.TemporaryDirectory(prefix="flr-") as folder:
            met, metrics = run(words, seed, Path(folder))
        row = dict(zip((f"{goal} %" for goal in GOALS), met, strict=True))
        rows.append({"seed": seed, "seconds to": row, **{key: metrics[key] for key in ("val/nme", "test/nme")}})
        print(json.dumps(rows[-1]))
    table = Table(title="seconds to a validation NME: min, median, max")
    for goal in GOALS:
        times = [row["seconds to"][f"{goal} %"] for row in rows]
        known = [value for value in times if value is not None]
        spread = f"{min(known):.0f}, {statistics.median(known):.0f}, {max(known):.0f}" if known else "not met"
        table.add_row(f"{goal} %", spread + ("" if len(known) == rounds else f" ({len(known)} of {rounds})"))
    Console().print(table)
    record("speedrun", f"ROUNDS={rounds} python -m benchmarks.speedrun {' '.join(words)}", rounds=rows)


if __name__ == "__main__":
    main()
