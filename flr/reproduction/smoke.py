"""The smoke tier: a few training steps on rendered faces, on one CPU."""

import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback

from flr.config.compose import compose_training
from flr.config.instantiate import build
from flr.config.schema import Train
from flr.config.validate import check
from flr.module.assembly import assemble
from flr.reproduction.record import Run
from flr.training.precision import trainer_of

# Of the smoke tier.
BATCH, STEPS = 4, 3
PART = 100_000  # of each weight's numbers whose way it measures; all would be another copy of the widest net's 152 M
SCHEMES = {"celeba": "celeba5", "muct": "kaggle15"}  # rendered faces have 68 points, these sets fewer


def rendered(name: str, cache: str, changes: Sequence[str] = ()) -> DictConfig:
    """An experiment's config for a few steps on a few rendered faces and one CPU; all else is its own.

    Args:
        name: the experiment's.
        cache: the folder of rendered sets and of crops.
        changes: overrides that make another recipe of it.
    """
    own = compose_training([f"experiment={name}", *changes])
    counts = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}
    faces = compose_training(["data=synthetic", *(f"data.reader.{part}={n}" for part, n in counts.items())]).data
    scheme = own.data.scheme or SCHEMES.get(own.data.name)
    kept = {"crop": own.data.crop, "pixels": own.data.pixels, "scheme": scheme, "batch_size": BATCH}
    own.data = OmegaConf.merge(faces, kept)
    if own.data.crop.policy.source != "truth":
        own.data.crop.policy.source = "picture"  # these faces have no box of their own, and a detector may miss them
    own.paths.cache_dir = cache
    one_cpu = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_epochs": 1}
    own.trainer = OmegaConf.merge(own.trainer, one_cpu)
    return own


def smoke(cfg: DictConfig, threads: int = 1) -> Run:
    """The loss of each step of a short training, how far it moved the weights, and a validation.

    Set up as by ``flr.train``, but with no store and no checkpoint: the widest net's would be 3 GB.

    Args:
        cfg: of `rendered`.
        threads: of torch; another number sums in another order.
    """

    check(cfg, Train, trusted=False)
    began, losses = time.perf_counter(), list[float]()
    keep = LambdaCallback(on_train_batch_end=lambda _, __, outputs, *___: losses.append(float(outputs["loss"])))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pl.seed_everything(cfg.seed, verbose=False)
        data = build(cfg.data, augment=build(cfg.augment), seed=cfg.seed, cache=cfg.paths.cache_dir)
        data.prepare()
        module = assemble(cfg, data.scheme, data.crop, data.mean_face())
        weights = [weight.detach() for weight in module.net.parameters()]
        start = torch.cat([weight.flatten()[:PART] for weight in weights])
        trainer = trainer_of(cfg, callbacks=[keep], logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(module, data)
        moved = torch.cat([weight.flatten()[:PART] for weight in weights]) - start
    finally:
        torch.set_num_threads(before)
    metrics = {f"loss of step {i}": loss for i, loss in enumerate(losses, 1)}
    metrics["weights moved by"] = float(moved.square().mean().sqrt())
    metrics |= {name: float(trainer.callback_metrics[name]) for name in ("val/loss", "val/nme")}
    minutes = (time.perf_counter() - began) / 60
    return Run(cfg.seed, metrics, data.protocol.name, data.protocol.fingerprint, minutes)
