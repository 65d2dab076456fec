"""Seconds of a start: ``flr.train --cfg job``, the imports of a training, and from there to the end of its first step.

    python -m benchmarks.start data=ibug data.root=DIR            any override of flr.train

Each round is a process of its own, with the crop store and the tracking database that an earlier one has made. Beside
them: torch, Lightning, Hydra and MLflow imported alone, which no training with them can be faster than.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.common import report, rounds

ROUNDS = 5
PACKAGES = (
    "flr", "torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "mlflow", "sqlalchemy", "alembic", "hydra", "cv2",
    "scipy", "matplotlib", "pydantic",
)  # fmt: skip
PEER = "import torch, pytorch_lightning, hydra, mlflow, mlflow.tracking"
# Every module that a training has loaded by its first step is loaded first; then the clock starts.
TRAINING = """
import importlib, json, os, sys, time
start = time.perf_counter()
for name in json.loads(os.environ["MODULES"]):
    importlib.import_module(name)
imports = time.perf_counter() - start
from flr.cli import run_command
from flr.module.landmark_module import LandmarkModule
from flr.train import main
start = time.perf_counter()
def stop(*args):
    loaded = [name for name in sys.modules if name.partition(".")[0] in json.loads(os.environ["PACKAGES"])]
    print(json.dumps([imports, time.perf_counter() - start, loaded]))
    sys.stdout.flush()
    os._exit(0)
LandmarkModule.on_train_batch_end = stop
sys.argv[0] = "flr.train"
run_command(main, "train")
"""


def first_step(words: list[str], modules: list[str], folder: str) -> tuple[float, float, list[str]]:
    """The seconds of the imports, those from there to the first step's end, and what was loaded then."""
    own = [f"paths.output_dir={folder}", f"tracking.uri=sqlite:///{folder}/mlflow.db", "callbacks.progress=null"]
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, *words, *own], capture_output=True, text=True, check=False,
        env=os.environ | {"MODULES": json.dumps(modules), "PACKAGES": json.dumps(PACKAGES)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    imports, step, loaded = json.loads(done.stdout.splitlines()[-1])
    return imports, step, loaded


def seconds(*command: str) -> Callable[[], float]:
    """What runs a Python command and gives its seconds, start and end of the process included."""

    def measure() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return measure


def main() -> None:
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        _, _, modules = first_step(words, [], folder)
        parts = [first_step(words, modules, folder) for _ in range(ROUNDS)]
    figures = rounds({"--cfg job": seconds("-m", "flr.train", "--cfg", "job", *words)}, ROUNDS)
    figures |= {"imports of a training": [imports for imports, _, _ in parts]}
    figures |= {"imports to the first step": [step for _, step, _ in parts]}
    figures |= rounds({PEER: seconds("-c", PEER)}, ROUNDS)
    report("start", "seconds", figures, f"python -m benchmarks.start {' '.join(words)}")


if __name__ == "__main__":
    main()
