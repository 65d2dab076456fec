"""Several ranks: the training of one device, one run, and one end."""

import contextlib
import csv
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from tests.conftest import SMALL_SET, TINY, Workspace
from tests.fakes import table as fake_table
from tests.test_resume import last, wait_for_epoch

TWO = ("trainer=ddp", "trainer.accelerator=cpu")  # devices=2
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flr.train")
LONG = (*TINY, *SMALL_SET, *TWO, "trainer.max_epochs=400")  # still at work when it is stopped

# A user's own callbacks.
OWN = """
from pathlib import Path
import pytorch_lightning as pl

class Faces(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with Path(f"faces{trainer.global_rank}").open("a") as file:
            print(*batch.index.tolist(), file=file)

class Fails(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            raise ArithmeticError("not this one")
"""


def error_lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("flr: ")]


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def rank(number: int, processes: list[psutil.Process]) -> psutil.Process:
    return next(process for process in processes if process.environ().get("RANK") == str(number))


def none_is_left(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def processes_of(workspace: Workspace) -> list[psutil.Process]:
    """Whatever runs that a command of this workspace has started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLR_OUTPUT") == str(workspace.outputs):
                found.append(process)
    return found


# -- the training ------------------------------------------------------------------------------------------------------


def test_two_ranks_train_as_one_device(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace.path / "set"
    fake_table.write(root, parts={"train": 37, "val": 1, "test": 17})  # two ranks have equal shares of none
    rows = [line.split(",") for line in (root / "labels.csv").read_text().splitlines()]
    for i, row in enumerate(rows[1:38]):
        for mark in (2, 3, 4)[: i % 4]:  # of nose and mouth some are not labelled
            row[2 + 2 * mark : 4 + 2 * mark] = ["", ""]
    (root / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    words = (
        "model=celeba_cnn", "model.dropout=0", "model.dense_dropout=0", "data=table", f"data.root={root}",
        "data.crop.size=64", "data.batch_size=9", "augment=standard", "optim=sgd", "optim.lr=1e-3", "trainer.max_epochs=2",
        "tracking.system_metrics=false", "callbacks.progress=null", "+callbacks.faces._target_=own.Faces",
    )  # fmt: skip
    one, two = spaces = [Workspace(workspace.path / name, workspace.cache) for name in ("one", "two")]
    for space in spaces:
        space.path.mkdir()
        (space.path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(one.path)
    one.run("flr.train", *words, FLR_TRUST="own")
    monkeypatch.delitem(sys.modules, "own")
    done = two.apart("flr.train", *words, *TWO, FLR_TRUST="own")

    def faces(space: Workspace, rank: int) -> list[list[int]]:
        lines = (space.path / f"faces{rank}").read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    whole = faces(one, 0)
    for both, first, second in zip(whole, faces(two, 0), faces(two, 1), strict=True):
        mixed = [0] * len(both)
        mixed[0::2], mixed[1::2] = first, second
        assert mixed == both  # the same faces in the same order: none twice, none lost
    for epoch in (whole[:4], whole[4:]):
        assert [len(set(batch)) for batch in epoch] == [9] * 4 and len(
            {face for batch in epoch for face in batch}
        ) == 36

    # 32 bit, added up in another order: 4e-7 was seen, as much as when each weight starts one unit in its last place off.
    alone, together = (last(space, space.only_run().info.run_id) for space in spaces)
    assert alone["global_step"] == together["global_step"] == 8
    assert list(alone["state_dict"]) == list(together["state_dict"])
    for name, value in alone["state_dict"].items():
        torch.testing.assert_close(together["state_dict"][name], value, rtol=1e-5, atol=3e-6, msg=name)
    for name in ("train/loss", "val/nme", "val/loss", "test/nme", "test/nme_eyes"):
        values = [space.only_run().data.metrics[name] for space in spaces]
        assert values[0] == pytest.approx(values[1], rel=1e-5), name
    lists = []
    for space in spaces:
        with (space.folder(space.only_run().info.run_id) / "errors.csv").open() as file:
            lists.append([row["face"] for row in csv.DictReader(file)])
    assert lists[0] == lists[1] and len(set(lists[0])) == 17
    run = two.only_run()
    assert done.stdout.count("resumes it after a stop") == done.stdout.count("Next:") == 1
    assert run.info.status == "FINISHED" and run.data.tags["flr.ranks"] == "2"
    assert [path.name for path in (two.outputs / "runs").iterdir()] == [run.info.run_id]


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.cluster)])
def test_a_sweep_of_two_ranks_makes_a_run_a_job(workspace: Workspace, launcher: str) -> None:
    """Of the first job rank 1 fails in its second epoch, which ends that job alone, and leaves no rank."""
    (workspace.path / "own.py").write_text(OWN)
    words = (*TINY, *SMALL_SET, *TWO, "trainer.max_epochs=2,1", "+callbacks.fails._target_=own.Fails")
    done = workspace.apart("flr.train", "-m", f"hydra/launcher={launcher}", *words, code=1, FLR_TRUST="own")
    none_is_left(processes_of(workspace))
    jobs = {run.info.run_name: run for run in workspace.stored()}
    assert {name: (run.data.tags.get("flr.ranks"), run.info.status) for name, run in jobs.items()} == {
        "max_epochs 2": ("2", "FAILED"), "max_epochs 1": ("2", "FINISHED"),
        "sweep max_epochs": (None, "FAILED"),
    }  # fmt: skip
    assert "rank 1 failed: ArithmeticError" in jobs["max_epochs 2"].data.tags["flr.end"]
    assert "rank 1 failed: ArithmeticError" in done.stdout and "1 of 2 jobs finished" in done.stdout


def slurm(workspace: Workspace, port: int, *words: str) -> "list[subprocess.Popen[str]]":
    """What srun starts: two tasks on one node."""
    given = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    return [
        workspace.start("flr.train", *words, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **given)
        for rank in range(2)
    ]


@pytest.mark.long
def test_slurm_makes_one_run_which_ends_as_one(workspace: Workspace, free_port: int) -> None:
    tasks = slurm(workspace, free_port, *LONG)
    folder = wait_for_epoch(workspace, tasks[0], 0)
    tasks[1].kill()
    for task in tasks:
        task.communicate(timeout=60)
    assert tasks[0].returncode == 1 and workspace.only_run().info.status == "FAILED"
    assert [path.name for path in (workspace.outputs / "runs").iterdir()] == [folder.name]


@pytest.mark.long
def test_torchrun_makes_one_run_which_ends_as_one(workspace: Workspace) -> None:
    process = workspace.start(*TORCHRUN, *LONG)
    folder = wait_for_epoch(workspace, process, 0)
    every = family(process)
    rank(1, every).kill()
    process.communicate(timeout=60)
    none_is_left(every)
    run = workspace.only_run()
    # torchrun ends rank 0 by SIGTERM, which may come before rank 0 sees that a collective fails.
    assert process.returncode == 1 and run.info.status in ("FAILED", "KILLED") and run.data.tags["flr.ranks"] == "2"
    assert [path.name for path in (workspace.outputs / "runs").iterdir()] == [folder.name]


@pytest.mark.parametrize("started", [{"SLURM_NTASKS_PER_NODE": "2"}, {}], ids=["other devices", "no tasks by node"])
def test_ranks_that_do_not_fit_the_config_are_refused(workspace: Workspace, started: dict[str, str]) -> None:
    given = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", **started}
    line = workspace.refuse("flr.train", *TINY, *SMALL_SET, **given)
    assert ("trainer=ddp" if started else "--ntasks-per-node") in line


def test_a_strategy_that_cannot_end_is_refused(workspace: Workspace) -> None:
    assert "set ddp" in workspace.refuse("flr.train", *TINY, *SMALL_SET, *TWO, "trainer.strategy=ddp_spawn")


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_rank_that_is_killed_ends_all(workspace: Workspace) -> None:
    process = workspace.start("flr.train", *LONG)
    folder = wait_for_epoch(workspace, process, 0)
    every = family(process)
    rank(0, every).kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(error_lines(err)) == 1 and "rank 0 was killed by SIGKILL" in err and "Traceback" not in err
    run = workspace.only_run()
    assert run.info.status == "FAILED" and "rank 0 was killed" in run.data.tags["flr.end"]
    stored = {artifact.path for artifact in workspace.client().list_artifacts(folder.name, "checkpoints")}
    assert stored == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    none_is_left(every)


@pytest.mark.long
def test_a_parent_that_is_killed_ends_all_and_its_run_is_closed_by_the_next_start(workspace: Workspace) -> None:
    process = workspace.start("flr.train", *LONG)
    folder = wait_for_epoch(workspace, process, 0)
    every = family(process)
    process.kill()
    _, err = process.communicate(timeout=60)
    none_is_left(every)
    assert not error_lines(err) and "Traceback" not in err
    assert workspace.only_run().info.status == "RUNNING"
    workspace.train("trainer.max_epochs=1")
    run = workspace.client().get_run(folder.name)
    assert run.info.status == "FAILED" and run.data.tags["flr.end"] == "its process died"


@pytest.mark.long
def test_ranks_end_where_they_are_interrupted_and_resume(workspace: Workspace) -> None:
    words, epoch = LONG, 0
    for sent, exit_code, all_get_it in (
        (signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True),
    ):  # fmt: skip
        process = workspace.start("flr.train", *words)
        folder = wait_for_epoch(workspace, process, epoch)
        every = family(process)
        for one in every[::-1] if all_get_it else every[:1]:
            one.send_signal(sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == exit_code and "Traceback" not in err
        assert workspace.only_run().info.status == "KILLED"
        none_is_left(every)
        words, epoch = (f"run={folder}",), last(workspace, folder.name)["epoch"] + 1
    # No epoch is missing, and one that was stopped between its metrics and its checkpoint is measured again, and the same.
    points = {(m.step, m.value) for m in workspace.client().get_metric_history(folder.name, "val/nme")}
    steps = sorted(step for step, _ in points)
    assert len(steps) >= epoch and steps == list(range(2, 3 * len(steps), 3))


@pytest.mark.long
def test_an_error_of_the_user_is_reported_once(workspace: Workspace) -> None:
    done = workspace.apart("flr.train", *LONG, "optim=sgd", "optim.lr=1e30", "ema=0", code=2)
    lines = error_lines(done.stderr)
    assert len(lines) == 1 and "not a finite number" in lines[0] and "Traceback" not in done.stderr
    assert workspace.only_run().info.status == "FAILED"
