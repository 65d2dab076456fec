"""A sweep in MLflow: its run, its jobs, its table; what is done stays done, what failed or was stopped goes on."""

import csv
import signal
import subprocess
from pathlib import Path
from typing import Any

import hydra
import pytest
from filelock import FileLock

from flr.config.compose import CONF, label_of
from flr.config.schema import Train
from flr.config.validate import check
from flr.errors import UserError
from flr.sweeps.record import sweep_name
from flr.tracking.provenance import code_digest
from tests.conftest import SMALL_SET, TINY, Done, Workspace, wait_for_file
from tests.test_grid import grid

WORDS = (*TINY, *SMALL_SET, "data.batch_size=24", "tracking.register=false")

# A user's own callback: what it does to a job depends on the seed, until the file `mended` is there.
OWN = """
import time
from pathlib import Path
import pytorch_lightning as pl
from flr.errors import UserError

class Fails(pl.Callback):
    def on_fit_start(self, trainer, module):
        if module.seed == 2 and not Path("mended").exists():
            raise UserError("no seed 2 here; take another")

    def on_train_epoch_start(self, trainer, module):
        if module.seed == 1 and trainer.current_epoch == 1 and not Path("mended").exists():
            if Path("slow").exists():
                Path("waits").touch()
                time.sleep(600)
            raise ArithmeticError("seed 1 broke")
"""
FAILS = "+callbacks.own._target_=own.Fails"


def typed(words: tuple[str, ...]) -> list[str]:
    """The words of a small sweep; Hydra takes its own flags first."""
    return sorted([*WORDS, *words], key=lambda word: word != "-m")


def sweep(workspace: Workspace, *words: str, code: int = 0) -> Done:
    return workspace.run("flr.train", *typed(words), code=code, FLR_TRUST="own")


def runs(workspace: Workspace) -> tuple[list, dict]:
    """The runs of sweeps, oldest first, and those of jobs by what distinguishes them, the newest of each."""
    found = workspace.stored()
    sweeps = [run for run in found if "flr.grid" in run.data.tags]
    return sweeps, {
        run.data.tags.get("flr.job", run.info.run_name): run for run in found if "flr.grid" not in run.data.tags
    }


def only_job(workspace: Workspace, sweep: Any) -> Any:
    """The run of a sweep's one job."""
    (run,) = [run for run in workspace.stored() if run.data.tags.get("mlflow.parentRunId") == sweep.info.run_id]
    return run


def table(workspace: Workspace, sweep: str) -> dict[str, dict[str, str]]:
    with (workspace.outputs / "sweeps" / sweep / "table.csv").open() as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def test_jobs_fail_alone_and_the_same_command_goes_on(own: Workspace) -> None:
    words = ("sweep=seeds", FAILS)  # a preset needs no -m
    done = sweep(own, *words, code=1)
    (parent,), jobs = runs(own)
    assert {name: run.info.status for name, run in jobs.items()} == {
        "seed 0": "FINISHED", "seed 1": "FAILED", "seed 2": "FAILED"
    }  # fmt: skip
    # Where only the seed varies, it names a job in its sweep, but not a run among others.
    names = {seed: run.info.run_name for seed, run in jobs.items()}
    assert all(name.startswith("heatmap_fpn synthetic") and name.endswith(seed) for seed, name in names.items())
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs.values()} == {parent.info.run_id}
    assert {run.data.tags["flr.sweep"] for run in jobs.values()} == {parent.data.tags["flr.sweep"]}
    assert parent.info.status == "FAILED" and parent.info.run_name == "sweep seeds"
    assert parent.data.tags["flr.data"] == "synthetic"
    assert parent.data.tags["flr.grid"] == "seed=0,1,2"
    assert parent.data.tags["flr.jobs"] == "1 of 3 jobs finished"
    rows = table(own, parent.data.tags["flr.sweep"])
    assert [row["exit_code"] for row in rows.values()] == ["0", "1", "2"]
    assert rows["seed 1"]["reason"] == "ArithmeticError: seed 1 broke"
    assert rows["seed 2"]["reason"] == "no seed 2 here; take another"
    assert "\nseed 2: no seed 2 here; take another\n" in done.stdout
    finished = jobs["seed 0"]
    assert float(rows["seed 0"]["test"]) == finished.data.metrics["test/nme"]
    assert done.stderr.count("Traceback") == 1 and "flr: seed 2: no seed 2 here" in done.stderr
    client = own.client()
    assert "error.txt" in {item.path for item in client.list_artifacts(jobs["seed 1"].info.run_id)}
    for text in (done.stdout, parent.data.tags["mlflow.note.content"]):
        assert "1 of 3 jobs finished" in text and "seed 1 broke" in text and finished.info.run_id in text

    (own.path / "mended").touch()
    done = sweep(own, *words)
    (again,), after = runs(own)
    assert again.info.run_id == parent.info.run_id and again.info.status == "FINISHED"
    assert {run.info.run_id for run in after.values()} == {run.info.run_id for run in jobs.values()}
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert (
        after["seed 0"].info.end_time == finished.info.end_time
        and f"done before, by run {finished.info.run_id}" in done.stdout
    )
    steps = [point.step for point in client.get_metric_history(after["seed 1"].info.run_id, "val/nme")]
    assert steps == [1, 3]  # from its checkpoint on
    assert not {"flr.end", "flr.exit"} & set(after["seed 1"].data.tags)
    assert again.data.tags["flr.jobs"] == "3 of 3 jobs finished"
    assert [row["reused"] for row in table(own, again.data.tags["flr.sweep"]).values()] == ["True", "False", "False"]

    # Another grid takes what the first has trained; one that is forced does not.
    sweep(own, "-m", "seed=1,0", FAILS)
    sweeps, others = runs(own)
    assert len(sweeps) == 2 and {n: r.info.run_id for n, r in others.items()} == {
        n: r.info.run_id for n, r in after.items()
    }
    assert [row["run_id"] for row in table(own, sweeps[1].data.tags["flr.sweep"]).values()] == [
        after["seed 1"].info.run_id, after["seed 0"].info.run_id
    ]  # fmt: skip
    words = ("-m", "seed=0", "trainer.max_epochs=1", FAILS)
    sweep(own, *words, "again=true")
    (*_, forced), _ = runs(own)
    first = only_job(own, forced)
    assert first.info.status == "FINISHED" and first.info.run_id not in {run.info.run_id for run in after.values()}
    assert "a sweep, which trained no model" in own.refuse("flr.evaluate", f"run={parent.info.run_id}")

    # Other code trains anew.
    (own.path / "own.py").write_text(f"{OWN}# another line\n")
    code_digest.cache_clear()
    done = sweep(own, *words)
    assert f"run {first.info.run_id} had this config, but other code" in done.stdout
    (*_, newest), _ = runs(own)
    second = only_job(own, newest)
    assert second.info.run_id != first.info.run_id
    (row,) = table(own, newest.data.tags["flr.sweep"]).values()
    assert row["run_id"] == second.info.run_id


def test_jobs_that_are_refused_say_so_once(workspace: Workspace) -> None:
    words = ("-m", "trainer.max_epochs=1", "data.crop.channels=two,1", "model.blocks=1")
    for status in ("FINISHED", "FINISHED before"):
        done = sweep(workspace, *words, code=2)
        assert "Traceback" not in done.stderr and "flr: channels two: data.crop.channels=two: expected" in done.stderr
        assert status in done.stdout
    (parent,), jobs = runs(workspace)
    assert len(workspace.client().search_runs([parent.info.experiment_id])) == 3
    assert jobs["channels two"].info.status == "FAILED" and "expected" in jobs["channels two"].data.tags["flr.end"]


def waiting(workspace: Workspace, *words: str) -> "subprocess.Popen[str]":
    """A sweep whose second job has come to its second epoch and stays there."""
    process = workspace.start("flr.train", *typed(words), FLR_TRUST="own", PYTHONPATH=workspace.python_path)
    wait_for_file(process, workspace.path / "waits")
    return process


@pytest.mark.long
def test_a_sweep_that_was_stopped_or_killed_goes_on(own: Workspace) -> None:
    words = ("-m", "seed=0,1,3", FAILS)
    (own.path / "slow").touch()
    process = waiting(own, *words)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    (parent,), jobs = runs(own)
    assert parent.info.status == "KILLED"
    assert {name: run.info.status for name, run in jobs.items()} == {"seed 0": "FINISHED", "seed 1": "KILLED"}
    assert "not started" in out and "1 of 3 jobs finished" in out

    process = waiting(own, *words)
    process.kill()
    process.communicate()
    (parent,), jobs = runs(own)
    assert parent.info.status == jobs["seed 1"].info.status == "RUNNING"
    (own.path / "mended").touch()
    sweep(own, *words)
    (again,), after = runs(own)
    assert {again.info.status, *(run.info.status for run in after.values())} == {"FINISHED"}
    assert again.info.run_id == parent.info.run_id and set(after) == {"seed 0", "seed 1", "seed 3"}
    for name in jobs:
        assert after[name].info.run_id == jobs[name].info.run_id
    assert after["seed 0"].info.end_time == jobs["seed 0"].info.end_time
    steps = [point.step for point in own.client().get_metric_history(after["seed 1"].info.run_id, "val/nme")]
    assert steps == [1, 3]


# -- the grid ----------------------------------------------------------------------------------------------------------


PRESETS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_job_of_a_preset_fits(preset: str, tmp_path: Path) -> None:
    found = grid(f"sweep={preset}", f"paths.output_dir={tmp_path}")
    assert found.preset == preset and len(found.jobs) >= 3
    assert len({label_of(words, found.values) for words in found.jobs}) == len(found.jobs)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for words in found.jobs:
            check(hydra.compose("train", words), Train, trusted=False)


def test_the_same_jobs_are_the_same_sweep() -> None:
    def name(*words: str, experiment: str = "flr", again: bool = False) -> str:
        return sweep_name(grid(*words), experiment, again)

    first = name("seed=0,1", "model=sepconv,ytf_cnn")
    assert first.startswith("model-seed-")
    assert first == name("sweep=seeds", "model=ytf_cnn,sepconv", "seed=range(2)", "data.workers=1", "paths.data_dir=/x")
    others = [
        name("seed=0,2", "model=sepconv,ytf_cnn"),
        name("seed=0,1", "model=sepconv,ytf_cnn", "optim.lr=0.5"),
        name("seed=0,1", "model=sepconv,ytf_cnn", experiment="other"),
        name("seed=0,1", "model=sepconv,ytf_cnn", again=True),
    ]
    assert len({first, *others}) == 5


def test_what_is_no_sweep_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="matches nothing"):
        grid("experiment=glob(published/*)")
    for words, message in (
        (["experiment=glob(published/*)"], "matches nothing"),
        (["tracking.experiment=a,b"], "tracking.experiment cannot vary"),
        (["model=sepconv,nosuch"], "no config 'model/nosuch'"),
        (["optim.rl=1,2"], "no config key 'optim.rl'"),
    ):
        assert message in workspace.refuse("flr.train", "-m", *words)
    assert runs(workspace) == ([], {})
    folder = workspace.outputs / "sweeps" / sweep_name(grid("seed=0,1"), workspace.experiment, False)
    folder.mkdir(parents=True)
    with FileLock(folder / "sweep.lock"):
        assert "another process runs this sweep" in workspace.refuse("flr.train", "-m", "seed=0,1")
