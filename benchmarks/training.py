"""What the framework costs over a bare PyTorch loop, and where the time of a training step goes.

    python -m benchmarks.training model=sepconv_light          any override of flr.train

Both train and validate the same net on the same rendered faces with the same batches, objective, optimiser, schedule and
averaged weights. `flr` adds Lightning, the MLflow tracker (sqlite), metrics by torchmetrics, checkpoints of the best and
the last epoch, and the progress bar; pictures are off. The rounds alternate. On a CPU the time is the process's own CPU
time on one thread, which other work on the machine disturbs less than a clock.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from benchmarks.common import config, report, rounds
from flr.cli import quiet
from flr.config.instantiate import build
from flr.data.datamodule import FaceData
from flr.landmarks.geometry import transform
from flr.metrics.functional import nme, percent_mean, point_errors
from flr.module.assembly import assemble
from flr.module.landmark_module import LandmarkModule, WeightAverage
from flr.system import keep_memory
from flr.tracking.tracker import Tracker
from flr.training.callbacks import Progress
from flr.training.precision import resolve_precision_and_fusion, trainer_of

EPOCHS, ROUNDS = 1, 3
# As many as 300-W's, so that what comes once an epoch (a checkpoint, the tracker's metrics) has its true weight.
FACES = (
    "data.reader.train=1812",
    "data.reader.val=202",
    "data.reader.test=1",
    "data.batch_size=32",
    "data.crop.size=128",
)
PARTS = ("batch", "forward", "backward", "optimiser", "average", "validation")


class Clock:
    """Seconds by part of the work; on a GPU what its queue holds is waited for, so parts are timed apart from speed."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[part] += now() - start


def now() -> float:
    """Seconds: of the clock where a GPU works, else of this process on the CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def bare(cfg: Any, data: FaceData, clock: Clock) -> float:
    """Train and validate by a plain loop; its seconds."""
    module = assemble(cfg, data.scheme, data.crop, data.mean_face())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, average, objective = module.net.to(device), module.ema_net, module.objective
    average = average.to(device) if average is not None else None
    averaging = WeightAverage(average, net) if average is not None else None
    rows = data.rows("train")
    steps = len(rows) // data.batch_size
    module.trainer = Steps(steps * EPOCHS)  # type: ignore[assignment]  # all that it is asked here
    configured: Any = module.configure_optimizers()
    optimiser, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    size, kind, half = data.crop.size, device.type, cfg.trainer.precision == "bf16-mixed"
    start = now()
    for epoch in range(EPOCHS):
        net.train()
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(rows))
        for step in range(steps):
            data.place_crops(device)
            with clock("batch"):
                batch = data.batch(order[step * data.batch_size :][: data.batch_size], epoch, device=device)
            with clock("forward"), torch.autocast(kind, torch.bfloat16, enabled=half):
                total, count = objective.loss(net(batch.images), batch.points, batch.labelled, size)
                loss = total / count.clamp_min(1)
            with clock("backward"):
                loss.backward()
            with clock("optimiser"):
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
            if averaging is not None:
                with clock("average"):
                    passed = epoch * steps + step + 1
                    averaging.step(min(cfg.ema, (1 + passed) / (10 + passed)))
        with clock("validation"):
            validate(data, average or net, module, device, half)
    return now() - start


@torch.no_grad()
def validate(data: FaceData, net: torch.nn.Module, module: LandmarkModule, device: torch.device, half: bool) -> float:
    """The NME of the validation part, percent."""
    net.eval()
    rows, points = data.rows("val"), []
    for first in range(0, len(rows), data.batch_size):
        batch = data.batch(torch.from_numpy(rows[first : first + data.batch_size]), None, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            found = module.objective.decode(net(batch.images), data.crop.size)
        points.append(transform(batch.to_original, found).cpu().numpy())
    table = data.prepare()
    errors = point_errors(np.concatenate(points), table.points[rows], table.labelled[rows])
    return percent_mean(nme(errors, data.normaliser[rows]))


class Steps:
    """Stands for a trainer where only the number of steps is asked for."""

    def __init__(self, steps: int) -> None:
        self.estimated_stepping_batches = steps


def framework(cfg: Any, data: FaceData) -> float:
    """Train and validate as flr.train does; its seconds."""
    module = assemble(cfg, data.scheme, data.crop, data.mean_face())
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "benchmark", Path(folder), system_metrics=False)
        tracker.open()
        tracker.start("benchmark", {})
        best = ModelCheckpoint(folder, "best", monitor="val/nme", save_weights_only=True, save_on_train_epoch_end=False)
        last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)
        cfg.trainer.max_epochs = EPOCHS
        trainer = trainer_of(cfg, logger=tracker, callbacks=[Progress(), best, last], default_root_dir=folder)
        start = now()
        trainer.fit(module, data)
        seconds = now() - start
        tracker.end("FINISHED")
    return seconds


def main() -> None:
    quiet()
    keep_memory()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    words = sys.argv[1:]
    cfg = config("data=synthetic", "augment=standard", *FACES, *words)
    resolve_precision_and_fusion(cfg, "cuda" if torch.cuda.is_available() else "cpu")
    data: FaceData = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
    data.prepare()
    clock = Clock()
    contenders: dict[str, Callable[[], float]] = {
        "flr": lambda: framework(cfg, data), "bare loop": lambda: bare(cfg, data, clock)
    }  # fmt: skip
    for warm in contenders.values():  # what a process does once is not the framework's
        warm()
    clock.seconds = dict.fromkeys(PARTS, 0.0)
    figures = rounds(contenders, ROUNDS)
    whole = sum(figures["bare loop"])
    shares = {part: seconds / whole for part, seconds in clock.seconds.items()}
    print("of the bare loop's time: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))
    name = f"training_{cfg.model._target_.rsplit('.', 1)[1].lower()}"
    report(name, "seconds", figures, f"python -m benchmarks.training {' '.join(words)}", shares=shares)


if __name__ == "__main__":
    main()
