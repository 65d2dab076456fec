"""Train the face detector for its record, ``name=box/detector``. Its recipe is ``conf/train_detector.yaml``."""

import hashlib
import json
import time
from collections.abc import Sequence

import pytorch_lightning as pl
from omegaconf import DictConfig

from flr.config.compose import compose_training, task_overrides, under
from flr.config.detector_schema import TrainDetector
from flr.config.instantiate import build
from flr.config.validate import check
from flr.data.synthetic.renderer import RENDERER_VERSION
from flr.detection import training
from flr.detection.module import DetectorModule
from flr.detection.scenes import SCENES_VERSION
from flr.reproduction.record import Run, check_recordable
from flr.reproduction.smoke import train_briefly
from flr.tracking.connection import connect, get_run

PASSED_ON = ("data.workers", "trainer", "tracking", "paths")  # overrides that a training takes as they were typed
FEW = (
    "data.scenes=32", "data.validation_scenes=8", "data.batches=3", "data.batch_size=8", "trainer.max_epochs=1",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.speed=null",
)  # fmt: skip


def compose(seed: int, changes: Sequence[str] = ()) -> tuple[DictConfig, list[str]]:
    """Compose the recipe with a seed and what the user has set, and check it; return the config and its overrides."""
    overrides = [f"seed={seed}", *changes]
    overrides += [word for word in task_overrides() if under(word.split("=", 1)[0], PASSED_ON)]
    cfg = compose_training(overrides, "train_detector")
    check(cfg, TrainDetector, trusted=False)
    return cfg, overrides


def train(cfg: DictConfig, seeds: Sequence[int]) -> list[Run]:
    """Train the detector with each seed; the metric is the recall on rendered scenes that took no part."""
    runs = []
    for seed in seeds:
        print(f"Training {cfg.name}, seed {seed}", flush=True)
        config, overrides = compose(seed)
        file = training.train(config, overrides)
        note = json.loads(file.with_name("run.json").read_text(encoding="utf-8"))
        stored = get_run(connect(note["uri"], create=False), note["run_id"])
        if cfg.record:
            check_recordable(stored)
        recall = {"val/recall": stored.metrics["val/recall"]}
        runs.append(Run(seed, recall, *_data(config), stored.minutes, stored, str(config.trainer.precision)))
    return runs


def smoke(cache: str, threads: int = 1) -> Run:
    """Measure the loss of each step of a short training on few scenes, and how far it moved the weights."""
    cfg, _ = compose(0, (*FEW, f"paths.cache_dir={cache}"))
    began = time.perf_counter()

    def make() -> tuple[DetectorModule, pl.LightningDataModule]:
        module = DetectorModule(build(cfg.model), build(cfg.optim), build(cfg.schedule))
        return module, build(cfg.data, seed=cfg.seed, cache=cfg.paths.cache_dir)

    metrics, _ = train_briefly(cfg, make, threads, reload_dataloaders_every_n_epochs=1)
    return Run(cfg.seed, metrics, *_data(cfg), (time.perf_counter() - began) / 60)


def _data(cfg: DictConfig) -> tuple[str, str]:
    """Return the name of the scenes and their fingerprint."""
    name = f"scenes-{SCENES_VERSION} renderer-{RENDERER_VERSION} {cfg.data.scenes}/{cfg.data.validation_scenes}"
    return name, hashlib.sha256(name.encode()).hexdigest()[:16]
