"""The smoke tier: a few training steps on rendered faces, on one CPU."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback

from flr.config.compose import compose_training
from flr.config.schema import Train
from flr.config.validate import check
from flr.module.assembly import assemble, build_data
from flr.reproduction.record import Run
from flr.training.precision import trainer_of

BATCH, STEPS = 4, 3
MAX_NUMBERS = 100_000  # of each weight whose motion is measured; all would copy the widest model's 152 M
SCHEMES = {"celeba": "celeba5", "muct": "kaggle15"}  # rendered faces have 68 points, these datasets fewer


def rendered(name: str, cache: str, changes: Sequence[str] = ()) -> DictConfig:
    """Compose an experiment's config for a few steps on a few rendered faces and one CPU.

    Args:
        name: Name of the experiment.
        cache: Folder of the rendered faces and of crops.
        changes: Overrides that change the recipe.
    """
    config = compose_training([f"experiment={name}", *changes])
    counts = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}
    faces = compose_training(["data=synthetic", *(f"data.reader.{part}={n}" for part, n in counts.items())]).data
    scheme = config.data.scheme or config.data.reader.get("scheme") or SCHEMES.get(config.data.name)
    settings = {"crop": config.data.crop, "pixels": config.data.pixels, "scheme": scheme, "batch_size": BATCH}
    config.data = OmegaConf.merge(faces, settings)
    if config.data.crop.policy.source != "truth":
        config.data.crop.policy.source = "picture"  # these faces have no box of their own, and a detector may miss them
    config.paths.cache_dir = cache
    one_cpu = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_epochs": 1}
    config.trainer = OmegaConf.merge(config.trainer, one_cpu)
    return config


def train_briefly(
    cfg: DictConfig, make: Callable[[], tuple[Any, pl.LightningDataModule]], threads: int, **options: Any
) -> tuple[dict[str, float], pl.Trainer]:  # fmt: skip
    """Train what `make` returns, after the seed is set, for a few steps; without a store and checkpoints.

    Args:
        cfg: A checked config with ``seed`` and ``trainer``.
        make: Makes the module, whose model is ``net``, and its data.
        threads: Threads of torch; another number sums in another order.
        options: Further options of the Trainer.

    Returns:
        The loss of each step and how far the weights moved; and the Trainer.
    """
    losses: list[float] = []
    keep = LambdaCallback(on_train_batch_end=lambda _, __, outputs, *___: losses.append(float(outputs["loss"])))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pl.seed_everything(cfg.seed, verbose=False)
        module, data = make()
        weights = [weight.detach() for weight in module.net.parameters()]
        start = torch.cat([weight.flatten()[:MAX_NUMBERS] for weight in weights])
        trainer = trainer_of(
            cfg, callbacks=[keep], logger=False, enable_checkpointing=False, enable_progress_bar=False, **options
        )
        trainer.fit(module, data)
        moved = torch.cat([weight.flatten()[:MAX_NUMBERS] for weight in weights]) - start
    finally:
        torch.set_num_threads(before)
    metrics = {f"loss of step {i}": loss for i, loss in enumerate(losses, 1)}
    return metrics | {"weights moved by": float(moved.square().mean().sqrt())}, trainer


def smoke(cfg: DictConfig, threads: int = 1) -> Run:
    """Measure the loss of each step of a short training, how far it moved the weights, and a validation."""
    check(cfg, Train, trusted=False)
    began = time.perf_counter()
    data = build_data(cfg)
    data.prepare()
    metrics, trainer = train_briefly(
        cfg, lambda: (assemble(cfg, data.scheme, data.crop, data.mean_face()), data), threads
    )
    metrics |= {name: float(trainer.callback_metrics[name]) for name in ("val/loss", "val/nme")}
    minutes = (time.perf_counter() - began) / 60
    return Run(cfg.seed, metrics, data.protocol.name, data.protocol.fingerprint, minutes)
