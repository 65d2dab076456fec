"""What a GPU would refuse or wait for, found on a CPU; see `tests.fakes.gpu`."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.launches import count
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.data.batches import StoreTensors
from flr.data.datamodule import FaceData
from flr.errors import UserError
from flr.evaluation import score
from flr.inference import onnx
from flr.inference.predictor import Predictor
from flr.module.assembly import assemble
from flr.module.device import allow_tf32, find_device
from flr.module.landmark_module import LandmarkModule
from flr.objectives import Objective
from flr.training import session
from flr.training.precision import check_batch_norm, settle_batch_norm
from tests.conftest import SMALL_SET, TINY, Workspace
from tests.fakes.gpu import FakeGPU
from tests.objectives.test_objectives import OBJECTIVES, SIZE, raw_for, truth

SMALL = (
    "data.reader.train=32", "data.reader.val=16", "data.reader.test=16", "data.reader.size=64", "data.crop.size=64",
    "data.batch_size=8", "data.workers=0",
)  # fmt: skip
RECIPES = {
    "standard": ("augment=standard", "optim.fused=true"),
    "heavy in colour": ("augment=heavy", "data.crop.channels=3", "objective.likelihood_weight=1"),
    "published": ("model=ytf_cnn", "augment=ytf_cnn", "optim=adam"),
    "albumentations": ("model=ytf_cnn", "augment=albumentations", "optim=adam"),
}

# The field's objectives and models; what moves the data is that of the recipes above.
FIELD = {
    "simcc": ("model=rtmpose", "model.width=0.25", "model.hidden=16"),
    "pixel in pixel": ("model=pipnet", "model.width=4"),
    "dark": ("model=hourglass", "objective=dark", "model.width=8"),
    "star": ("model=hrnet", "objective=star", "model.width=2"),
    "adaptive wing": ("model=resnet18", "objective=adaptive_wing", "model.width=4"),
    "residual log-likelihood": ("model=resnet18", "objective=likelihood", "model.width=4"),
}


def config(cache: Path, *words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [*SMALL, f"paths.cache_dir={cache}", *words])
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def data_and_module(cache: Path, *words: str) -> tuple[FaceData, LandmarkModule]:
    cfg = config(cache, *words)
    data = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
    data.prepare()
    return data, assemble(cfg, data.scheme, data.crop, data.mean_face())


@pytest.mark.parametrize(("kind", "free"), [("cuda", 80 * 10**9), ("cuda", 0), ("mps", 0)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_step_waits_for_nothing(
    recipe: str, kind: str, free: int, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, module = data_and_module(shared_cache, *RECIPES[recipe])
    gpu = FakeGPU(kind, free)
    waits, launches = gpu.train(module, data, "bf16-mixed" if kind == "cuda" else "32-true")
    assert not waits and launches
    assert len(module.evaluated["index"]) == 16
    assert ("stay in host memory" in capsys.readouterr().err) == (kind == "cuda" and not free)
    assert gpu.holds(data.tensors[gpu.device].images) == (kind == "cuda" and free > 0)


def test_a_step_of_two_ranks_waits_for_nothing(shared_cache: Path) -> None:
    data, module = data_and_module(shared_cache, *RECIPES["published"], "data.batch_size=8")
    waits, launches = FakeGPU(ranks=2).train(module, data, "bf16-mixed")
    assert not waits and launches


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment" / "fair").glob("*.yaml")))
def test_a_step_of_the_fair_comparison_waits_for_nothing(name: str, tmp_path: Path) -> None:
    assert [count(f"fair/{name}", str(tmp_path), free)[0] for free in (10**12, 0)] == [0, 0]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_has_the_host_wait_for_nothing(objective: Objective) -> None:
    objective.zero_grad()  # gradients that another test left lie on the host
    gpu = FakeGPU("cuda")
    with gpu:
        held = [*objective.parameters(), *objective.buffers(), raw := raw_for(objective), points := truth()]
        for tensor in (*held, labelled := torch.ones(3, 5, dtype=torch.bool)):
            gpu.place(tensor, True)
        objective.loss(raw, points, labelled, SIZE)[0].backward()
        objective.decode(raw, SIZE)
        objective.spread(raw, SIZE)
    assert not gpu.waits and gpu.launches


@pytest.mark.long
@pytest.mark.parametrize("recipe", FIELD)
def test_a_step_of_the_fields_objectives_waits_for_nothing(recipe: str, shared_cache: Path) -> None:
    data, module = data_and_module(shared_cache, *FIELD[recipe])
    waits, launches = FakeGPU("cuda").train(module, data, "bf16-mixed")
    assert not waits and launches
    assert len(module.evaluated["index"]) == 16


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_prediction_mixes_no_devices(kind: str, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(kind == "cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    data, module = data_and_module(shared_cache, "tta=true")
    crops = data.store.images[:4, :64, :64]
    expected = Predictor(module, data.crop, data.pixels, None).run(crops)[0]
    gpu = FakeGPU(kind)
    with gpu:
        found = Predictor(module, data.crop, data.pixels, None, device=f"{kind}:0").run(crops)[0]
    assert gpu.launches and np.allclose(found, expected, atol=1e-3)


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpu", "cuda:a", "cpu:", "cuda:\u00b2", "auto:1", ""):
        for find in (find_device, onnx.execution_providers):
            with pytest.raises(UserError, match=f"device={name}: set auto"):
                find(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="device=cuda:1: this machine has 1"):
        find_device("cuda:1")
    assert find_device("cuda") == torch.device("cuda")


def test_an_evaluation_takes_the_device_that_is_named(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    found = torch.cuda.device_count()
    line = workspace.refuse("flr.evaluate", f"run={run}", f"device=cuda:{found}")
    assert f"device=cuda:{found}: this machine has {found}" in line
    workspace.run("flr.evaluate", f"run={run}", "split=val", "device=cpu")


def test_onnx_runs_where_its_runtime_can(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnx.onnxruntime, "get_available_providers", lambda: installed)
    assert onnx.execution_providers("auto") == onnx.execution_providers("cuda") == ["CPUExecutionProvider"]
    assert "needs onnxruntime-gpu" in capsys.readouterr().err
    installed.insert(0, "CUDAExecutionProvider")
    assert onnx.execution_providers("auto")[0] == "CUDAExecutionProvider"
    assert onnx.execution_providers("cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": 1})
    assert onnx.execution_providers("cpu") == ["CPUExecutionProvider"]


def test_a_run_of_a_gpu_is_evaluated_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = OmegaConf.create({"trainer": {"accelerator": "gpu", "precision": "32-true"}})
    assert score.tester(config).strategy.root_device.type in ("cpu", "mps")
    with pytest.raises(UserError, match="device=cuda: this machine has 0"):
        score.tester(config, "cuda")


def test_a_run_keeps_how_exactly_it_was_computed(workspace: Workspace) -> None:
    try:
        allow_tf32(False)
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        workspace.train("trainer.deterministic=true", "trainer.tf32=true", "trainer.max_epochs=1")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        run = workspace.only_run()
        assert run.data.params["trainer.tf32"] == run.data.params["trainer.deterministic"] == "True"
        assert {"hardware.driver", "hardware.cudnn", "hardware.cuda"} <= run.data.params.keys()
        assert json.loads((workspace.folder(run.info.run_id) / "evaluation.json").read_text())["tf32"] is True
    finally:
        torch.use_deterministic_algorithms(False)
        allow_tf32(False)


@pytest.mark.parametrize(
    ("device", "faces", "given", "expected"),
    [("cuda", 32, None, False), ("cuda", 16, None, True), ("cuda", 32, True, True), ("cpu", 16, True, False)],
)
def test_large_batches_have_their_own_statistics(device: str, faces: int, given: bool | None, expected: bool) -> None:
    cfg = OmegaConf.create({"trainer": {"sync_batchnorm": given}, "data": {"batch_size": faces}})
    settle_batch_norm(cfg, device, ranks=2)
    assert cfg.trainer.sync_batchnorm == expected


def test_a_norm_that_does_more_is_not_synchronised() -> None:
    class WithActivation(nn.BatchNorm2d):
        pass

    check_batch_norm(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UserError, match="sync_batchnorm=false"):
        check_batch_norm(nn.Sequential(WithActivation(3)))


def test_jobs_of_one_process_free_what_the_job_before_held(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    alive = []
    of, build_module = StoreTensors.of, session.assemble

    def keep(thing: Any) -> Any:
        made.append(weakref.ref(thing))
        return thing

    def assembled(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(reference() is not None for reference in made))
        return keep(build_module(*args, **kwargs))

    monkeypatch.setattr(StoreTensors, "of", staticmethod(lambda *args: keep(of(*args))))
    monkeypatch.setattr(session, "assemble", assembled)
    workspace.run("flr.train", "-m", *TINY, *SMALL_SET, "seed=0,1,2", "trainer.max_epochs=1")
    assert alive == [0, 0, 0] and len(made) == 6


def test_too_little_memory_is_one_line(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LandmarkModule, "training_step", full)
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET)
    assert all(key in line for key in ("out of memory", "data.batch_size=16", "data.crop.size=32", "crops of"))
    assert workspace.only_run().info.status == "FAILED"


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
