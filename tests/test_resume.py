"""A run that was stopped goes on and ends where an uninterrupted one ends; the dead are seen and closed."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from flr.training.resume import exhausted
from tests.conftest import SMALL_SET, TINY, Workspace

EPOCHS = ("trainer.max_epochs=8", "augment=standard", "seed=3", "model.widths=[16,16,16,16]")


def last(workspace: Workspace, run_id: str) -> dict:
    return torch.load(workspace.folder(run_id) / "checkpoints" / "last.ckpt", weights_only=True)


def wait_for_epoch(workspace: Workspace, process: "subprocess.Popen[str]", epoch: int) -> Path:
    """Until the checkpoint of that epoch is there; the next one is then being trained."""
    for _ in range(2000):
        assert process.poll() is None, process.communicate()[1][-3000:]
        for path in workspace.outputs.glob("runs/*/checkpoints/last.ckpt"):
            if torch.load(path, weights_only=True)["epoch"] >= epoch:
                return path.parent.parent
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Workspace, str]:
    workspace = Workspace(tmp_path_factory.mktemp("uninterrupted"), shared_cache)
    workspace.run("flr.train", *TINY, *SMALL_SET, *EPOCHS)
    return workspace, workspace.only_run().info.run_id


def assert_same_weights(a: dict, b: dict) -> None:
    assert a["global_step"] == b["global_step"]
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name


def test_a_killed_run_is_closed_by_the_next_start_and_ends_where_an_uninterrupted_one_ends(
    workspace: Workspace, uninterrupted: tuple[Workspace, str]
) -> None:
    process = workspace.start("flr.train", *TINY, *SMALL_SET, *EPOCHS)
    folder = wait_for_epoch(workspace, process, 0)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert workspace.only_run().info.status == "RUNNING"

    workspace.train("trainer.max_epochs=1")
    client = workspace.client()
    run = client.get_run(folder.name)
    assert run.info.status == "KILLED" and run.data.tags["flr.end"] == "its process died"
    kept = {artifact.path for artifact in client.list_artifacts(folder.name, "checkpoints")}
    assert kept == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}

    workspace.run("flr.train", f"run={folder}", "callbacks.progress=null")
    run = client.get_run(folder.name)
    assert run.info.status == "FINISHED"
    before, run_id = uninterrupted
    assert_same_weights(last(workspace, run.info.run_id), last(before, run_id))
    reference = before.client().get_run(run_id).data.metrics
    for name in ("train/loss", "val/nme", "test/nme"):
        assert run.data.metrics[name] == reference[name]
    # Killed between an epoch's metrics and its checkpoint, it measures that epoch again, and the same.
    points = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val/nme")}
    assert points == {(m.step, m.value) for m in before.client().get_metric_history(run_id, "val/nme")}


@pytest.mark.parametrize(
    ("sent", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_one_process_trains_a_run_which_when_interrupted_resumes_from_mlflow_alone(
    workspace: Workspace, sent: signal.Signals, exit_code: int
) -> None:
    # A long run: it must still be at work when the signal comes.
    process = workspace.start("flr.train", *TINY, *SMALL_SET, *EPOCHS, "trainer.max_epochs=400")
    try:
        folder = wait_for_epoch(workspace, process, 0)
        assert "another process is training" in workspace.refuse("flr.train", f"run={folder}")
        assert workspace.client().get_run(folder.name).info.status == "RUNNING"
    finally:
        process.send_signal(sent)
        process.communicate(timeout=60)
    run = workspace.only_run()
    assert process.returncode == exit_code and run.info.status == "KILLED"
    shutil.move(folder, workspace.path / "elsewhere")
    epochs = 2 + torch.load(workspace.path / "elsewhere" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    workspace.run("flr.train", f"run={folder.name}", f"trainer.max_epochs={epochs}")
    run = workspace.only_run()
    assert run.info.status == "FINISHED" and "test/nme" in run.data.metrics


def test_a_finished_run_goes_on_further_than_it_was_planned(workspace: Workspace) -> None:
    workspace.train("trainer.max_epochs=2")
    run_id = workspace.only_run().info.run_id
    workspace.run("flr.train", f"run={run_id}", "trainer.max_epochs=4", "callbacks.progress=null")
    run = workspace.only_run()
    assert run.info.status == "FINISHED" and run.info.run_id == run_id
    assert len(workspace.client().get_metric_history(run_id, "val/nme")) == 4
    rates = [m.value for m in workspace.client().get_metric_history(run_id, "lr")]
    assert rates[-1] < 1e-4 < rates[-2]  # the new plan's own end


def test_what_a_resumed_run_refuses(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    for fewer in ((), ("trainer.max_epochs=1",)):
        line = workspace.refuse("flr.train", f"run={run_id}", *fewer)
        assert "its 2 epochs are done; set trainer.max_epochs above 2" in line
    assert "optim.lr cannot change" in workspace.refuse("flr.train", f"run={run_id}", "optim.lr=1")
    assert "no such folder" in workspace.refuse("flr.train", "run=0123456789abcdef")
    assert "not the folder of a run" in workspace.refuse("flr.train", f"run={os.getcwd()}")
    assert workspace.client().get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("trainer", "said"), [
    ({"max_steps": 8}, "its 8 steps are done"), ({"max_time": "00:00:01:00"}, "max_time=00:00:01:00 is used up"),
    ({"max_time": {"minutes": 1}}, "is used up"), ({"max_steps": 9, "max_time": "00:00:02:00"}, ""), ({}, ""),
])  # fmt: skip
def test_a_limit_that_is_reached_is_named(trainer: dict, said: str) -> None:
    state = {"global_step": 8, "callbacks": {"Timer": {"time_elapsed": {"train": 61.0}}}}
    found = exhausted(OmegaConf.create(trainer), state)
    assert said in found and bool(said) == bool(found)
