"""Seconds that a sweep adds to its jobs: many of the smallest trainings, one after another and by hydra/launcher=joblib.

    python -m benchmarks.sweep            100 jobs; JOBS=N sets another number

A job's own seconds are those from its run's start to its end in MLflow, its imports and the ends of its process not
among them. Beside them: the command of a job in a process of its own, as a loop in a shell would start it, which
imports anew.
"""

import os
import subprocess
import sys
import tempfile
import time

from benchmarks.common import record
from flr.system import cores

JOBS = int(os.environ.get("JOBS", "100"))
ALONE = 5  # jobs of the loop in a shell
WAYS = {  # the launcher, and how many jobs it runs at once
    "one after another": ((), 1),
    "joblib, one at once": (("hydra/launcher=joblib", "hydra.launcher.jobs=1"), 1),
    "joblib": (("hydra/launcher=joblib",), cores()),
}
WORDS = (
    "data.crop.size=32", "model.widths=[8,8,8,8]", "model.path=8", "model.blocks=1", "data.batch_size=24", "trainer.max_epochs=1", "data.reader.train=24",
    "data.reader.val=8", "data.reader.test=8", "data.reader.size=48", "tracking.system_metrics=false",
    "tracking.register=false", "callbacks.progress=null", "callbacks.pictures=null",
)  # fmt: skip


def measure(folder: str, *words: str) -> tuple[float, list[float]]:
    """The seconds of a command from start to end, and those of each of its runs."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "flr.train", *words, *WORDS, f"paths.output_dir={folder}"]
    uri = f"sqlite:///{folder}/mlflow.db"
    subprocess.run([*command, f"tracking.uri={uri}"], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    from mlflow import MlflowClient

    found = MlflowClient(uri).search_runs(["1"], "params.overrides != ''", max_results=1000)
    assert {run.info.status for run in found} == {"FINISHED"}
    return whole, [(run.info.end_time - run.info.start_time) / 1000 for run in found]


def main() -> None:
    figures: dict[str, dict[str, float | list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        cache = f"paths.cache_dir={folder}/cache"
        measure(f"{folder}/warm", cache)  # makes the crop store
        alone = [measure(f"{folder}/alone{i}", cache)[0] for i in range(ALONE)]
        for name, (more, at_once) in WAYS.items():
            whole, jobs = measure(
                f"{folder}/{name}".replace(" ", "").replace(",", "-"), "-m", f"seed=range({JOBS})", cache, *more
            )
            assert len(jobs) == JOBS
            figures[name] = {
                "rounds": [whole], "at_once": at_once, "job": sum(jobs) / JOBS,
                "added_a_job": (whole * at_once - sum(jobs)) / JOBS,
            }  # fmt: skip
            print(name, figures[name], flush=True)
    if alone:
        figures["a command a job, seconds each"] = {"rounds": alone}
        print(alone)
    record("sweep", "python -m benchmarks.sweep", jobs=JOBS, contenders=figures)


if __name__ == "__main__":
    main()
