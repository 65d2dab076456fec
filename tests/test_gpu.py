"""What a GPU would refuse or wait for, found on a CPU; see `tests.fakes.gpu`."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from flr.augment.device import noise_bank, resampling
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.data.datamodule import FaceData
from flr.module.assembly import assemble
from flr.module.landmark_module import LandmarkModule
from tests.fakes.gpu import FakeGPU

SMALL = (
    "data.reader.train=32", "data.reader.val=16", "data.reader.test=16", "data.reader.size=64", "data.crop.size=64",
    "data.batch_size=8", "data.workers=0",
)  # fmt: skip
HEAVY = ("augment=heavy", "data.crop.channels=3", "objective.likelihood_weight=1")
RECIPES = {
    "standard": ("augment=standard", "optim.fused=true"),
    "heavy in colour": HEAVY,
    "published": ("model=ytf_cnn", "augment=ytf_cnn", "optim=adam"),
}
MORE = {"albumentations": ("augment=albumentations",)}


class StepCounts(pl.Callback):
    """What has been waited for and launched at the end of each step."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.ends = gpu, []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append((len(self.gpu.waits), sum(self.gpu.launches.values())))


@pytest.fixture(autouse=True)
def new_constants() -> None:
    """Those of another fake device are not on this one."""
    noise_bank.cache_clear()
    resampling.cache_clear()


def config(cache: Path, *words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [*SMALL, f"paths.cache_dir={cache}", *words])
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def data_and_module(cache: Path, *words: str) -> tuple[FaceData, LandmarkModule]:
    cfg = config(cache, *words)
    data = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
    data.prepare()
    return data, assemble(cfg, data.scheme, data.crop, data.mean_face())


def fit(gpu: FakeGPU, cache: Path, *words: str, precision: str = "32-true") -> list[tuple[int, int]]:
    """Train and test; return (waits, launches) at the end of each step."""
    data, module = data_and_module(cache, *words)
    counts = StepCounts(gpu)
    with gpu:
        trainer = gpu.trainer(precision, max_epochs=1, callbacks=[counts], num_sanity_val_steps=0, log_every_n_steps=20)
        trainer.fit(module, data)
        trainer.test(module, datamodule=data, verbose=False)
    return counts.ends


@pytest.mark.parametrize("free", [80 * 10**9, 0], ids=["store on the device", "store on the host"])
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("recipe", [*RECIPES, *MORE])
def test_a_training_step_waits_for_nothing(recipe: str, kind: str, free: int, shared_cache: Path) -> None:
    gpu = FakeGPU(kind, free)
    ends = fit(gpu, shared_cache, *(RECIPES | MORE)[recipe], precision="bf16-mixed" if kind == "cuda" else "32-true")
    assert not gpu.waits[ends[1][0] : ends[2][0]]


class NoWaits(pl.Callback):
    """Has CUDA raise where the host waits for it in a step."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.warm else "default")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.warm = trainer.global_step > 1 and trainer.global_step + 1 < trainer.num_training_batches

    warm = False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_step_on_a_real_gpu_waits_for_nothing(recipe: str, shared_cache: Path) -> None:
    data, module = data_and_module(shared_cache, *RECIPES[recipe], "data.reader.train=64")
    trainer = pl.Trainer(
        accelerator="cuda", devices=1, precision="bf16-mixed", max_epochs=1, callbacks=[NoWaits()], logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.callbacks[0].warm is False and trainer.global_step == 8  # type: ignore[attr-defined]
