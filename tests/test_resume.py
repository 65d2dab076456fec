"""A run resumes where it was stopped, or trains further; see test_faults.py for the faults that stop one."""

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


@pytest.mark.long
@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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


def test_a_finished_run_goes_on_further_and_keeps_its_model_version(workspace: Workspace) -> None:
    workspace.train("trainer.max_epochs=2", "tracking.register=my net")
    client, run_id = workspace.client(), workspace.only_run().info.run_id
    (before,) = client.search_model_versions("name = 'my net'")
    workspace.run("flr.train", f"run={run_id}", "trainer.max_epochs=4", "callbacks.progress=null")
    run = workspace.only_run()
    assert run.info.status == "FINISHED" and run.info.run_id == run_id
    assert len(client.get_metric_history(run_id, "val/nme")) == 4
    rates = [m.value for m in client.get_metric_history(run_id, "lr")]
    assert rates[-1] < 1e-4 < rates[-2]  # the new plan's own end
    (version,) = client.search_model_versions("name = 'my net'")
    assert float(version.tags["test/nme"]) == pytest.approx(run.data.metrics["test/nme"], rel=1e-4)
    assert version.tags["test/nme"] != before.tags["test/nme"] and version.tags["test/nme"] in version.description


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


def test_a_training_that_a_limit_ends_says_so(workspace: Workspace) -> None:
    done = workspace.train("trainer.max_epochs=3", "+trainer.max_steps=1")
    assert "note: a limit of time or steps, or a callback ended the training after" in done.stderr
    assert "of 3 epochs" in done.stderr
    assert "ended the training" not in workspace.train("trainer.max_epochs=1", "seed=1").stderr
