"""``trainer.speed=auto`` and the switches behind it, through the real command."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from flr.config.compose import CONF
from flr.training.precision import bf16_hardware, compile_net, has_bf16, resolve_precision_and_fusion
from tests.conftest import SMALL_SET, TINY, Workspace


def params(workspace: Workspace) -> dict[str, str]:
    return workspace.only_run().data.params


def test_auto_is_settled_in_what_the_run_keeps(workspace: Workspace) -> None:
    workspace.train("trainer.speed=auto", "trainer.max_epochs=1")
    kept = params(workspace)
    expected = "bf16-mixed" if has_bf16("cpu") else "32-true"
    assert (kept["trainer.speed"], kept["trainer.precision"], kept["optim.fused"]) == ("None", expected, "True")
    assert kept["hardware.bf16"] == bf16_hardware("cpu")
    # A run goes on as it began, on whatever device.
    workspace.run("flr.train", f"run={workspace.only_run().info.run_id}", "trainer.max_epochs=2")


@pytest.mark.parametrize(
    ("given", "precision", "fused"),
    [
        ({}, "bf16-mixed", True),
        ({"trainer.precision": "16-mixed"}, "16-mixed", True),
        ({"trainer.gradient_clip_val": 1.0}, "bf16-mixed", None),
        ({"optim.fused": False}, "bf16-mixed", False),
        ({"optim._target_": "torch.optim.Rprop"}, "bf16-mixed", None),
    ],
)
def test_auto_keeps_what_is_set_and_leaves_what_is_not_safe(
    given: dict[str, object], precision: str, fused: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flr.training.precision.has_bf16", lambda device: True)
    cfg = OmegaConf.create(
        {
            "trainer": {"speed": "auto", "precision": "32-true"},
            "optim": {"_target_": "torch.optim.AdamW", "fused": None},
        }
    )
    for key, value in given.items():
        OmegaConf.update(cfg, key, value)
    resolve_precision_and_fusion(cfg, "cpu")
    assert (cfg.trainer.precision, cfg.optim.fused, cfg.trainer.speed) == (precision, fused, None)


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": True}, "avx512_bf16"),  # AMD EPYC 9004
        ({"avx512_f": True, "amx_bf16": True, "avx512_bf16": True}, "amx_bf16"),  # Intel Xeon of 2023
        ({"avx512_f": True, "avx512_bf16": False}, "none"),  # Intel Xeon of 2019: emulated, and slower than 32 bit
        ({"neon": True, "bf16": True}, "none"),  # ARM
        ({}, "none"),
    ],
)
def test_auto_chooses_the_precision_by_the_features_of_the_cpu(
    features: dict[str, bool], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert bf16_hardware("cpu") == found
    cfg = OmegaConf.create(
        {"trainer": {"speed": "auto", "precision": "32-true"}, "optim": {"_target_": "torch.optim.SGD", "fused": None}}
    )
    resolve_precision_and_fusion(cfg, "cpu")
    assert cfg.trainer.precision == ("32-true" if found == "none" else "bf16-mixed")


def test_bf16_needs_the_kernels_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert bf16_hardware("cpu") == "none"


def test_the_speedrun_leaves_the_precision_to_the_device() -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", ["experiment=records/speedrun"])
    assert (cfg.trainer.speed, cfg.trainer.precision) == ("auto", "32-true")


def test_a_device_without_the_switches_gets_none() -> None:
    cfg = OmegaConf.create(
        {"trainer": {"speed": "auto", "precision": "32-true"}, "optim": {"_target_": "torch.optim.SGD", "fused": None}}
    )
    resolve_precision_and_fusion(cfg, "mps")
    assert (cfg.trainer.precision, cfg.optim.fused) == ("32-true", None)


@pytest.mark.long
def test_a_fused_optimiser_trains_the_same(workspace: Workspace, tmp_path: Path) -> None:
    curves = []
    for fused in ("false", "true"):
        other = Workspace(tmp_path / fused, workspace.cache)
        other.path.mkdir()
        other.train(f"optim.fused={fused}")
        run = other.only_run()
        curves.append([m.value for m in other.client().get_metric_history(run.info.run_id, "train/loss")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and len(curves[0]) == 2


def test_a_compiled_net_has_the_same_keys_and_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    keys, images = list(net.state_dict()), torch.rand(2, 1, 8, 8)
    expected = net(images)
    compile_net(net, "default", "cpu")
    assert torch.allclose(net(images), expected, atol=1e-4) and net._compiled_call_impl is not None
    assert list(net.state_dict()) == keys


@pytest.mark.long
def test_what_cannot_compile_is_told_before_any_run(workspace: Workspace) -> None:
    line = workspace.refuse("flr.train", "trainer.compile=default", CXX="no-such-compiler")
    assert "trainer.compile=default" in line and "no-such-compiler" in line
    assert not (workspace.outputs / "runs").exists()
    assert "trainer.compile" in workspace.refuse("flr.train", "trainer.compile=fast")
    assert "trainer.speed" in workspace.refuse("flr.train", "trainer.speed=fast")


def test_what_does_not_go_together_is_told_before_any_run(workspace: Workspace) -> None:
    two_ranks = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert "2 ranks on CPUs" in workspace.refuse("flr.train", *TINY, *SMALL_SET, *two_ranks, "trainer.compile=default")
    clipped = ("trainer=bf16", "optim.fused=true", "trainer.gradient_clip_val=1")
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET, *clipped)
    assert "optim.fused" in line and "gradient_clip_val" in line
    if has_bf16("cpu"):  # which auto then sets
        clipped = ("trainer.speed=auto", "optim.fused=true", "trainer.gradient_clip_val=1")
        assert "optim.fused" in workspace.refuse("flr.train", *TINY, *SMALL_SET, *clipped)
    assert not (workspace.outputs / "runs").exists()
