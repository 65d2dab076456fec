"""A study: its trials in MLflow and in Optuna's storage; what is shared, pruned, stopped, killed, refused."""

import csv
import os
import shlex
import signal
import sqlite3
import subprocess
import time

import hydra
import optuna
import pytest

from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.config.schema import Tune
from flr.config.validate import check
from flr.sweeps.space import Choice, Dimension, Range
from tests.conftest import SMALL_SET, TINY, Done, Workspace, wait_for_file

WORDS = (*TINY, *SMALL_SET, "data.batch_size=24", "tune/sampler=random")
# Rates of which the last leaves the net as it was; the config's own is among them.
RATES = ("~tune.space.optim.lr", "+tune.space.optim.lr={choices: [0.003, 0.01, 1e-9]}")

# A user's own callback: fails or waits as files say.
OWN = """
import time
from pathlib import Path
import pytorch_lightning as pl
from flr.errors import UserError

class Fails(pl.Callback):
    def on_fit_start(self, trainer, module):
        if Path("refuses").exists():
            raise UserError("not with these data; take others")
        if Path("breaks").exists() and (Path("breaks").read_text() or trainer.optimizers[0].param_groups[0]["weight_decay"] > 0.5):
            raise ArithmeticError("it broke")

    def on_train_epoch_start(self, trainer, module):
        if Path("slow").exists() and trainer.current_epoch == 1:
            Path("waits").touch()
            time.sleep(600)
"""
FAILS = "+callbacks.own._target_=own.Fails"


def tune(workspace: Workspace, *words: str, code: int = 0) -> Done:
    return workspace.run("flr.tune", *WORDS, *words, code=code, FLR_TRUST="own")


def runs(workspace: Workspace) -> tuple[list, list]:
    """The runs of studies and those of trials, oldest first."""
    client = workspace.client()
    found = client.search_runs(
        [client.get_experiment_by_name(workspace.experiment).experiment_id], order_by=["start_time"]
    )
    return [run for run in found if "flr.grid" in run.data.tags], [run for run in found if "flr.trial" in run.data.tags]


def study_of(workspace: Workspace) -> optuna.Study:
    (name,) = optuna.get_all_study_names(f"sqlite:///{workspace.outputs}/tune.db")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{workspace.outputs}/tune.db")


def states(workspace: Workspace) -> list[str]:
    return [trial.state.name for trial in study_of(workspace).trials]


def test_a_study_finds_and_goes_on(workspace: Workspace) -> None:
    words = ("tune=augment", "tune.trials=4", "trainer.max_epochs=1", "tune.seed=3")
    done = tune(workspace, *words)
    (parent,), trials = runs(workspace)
    assert states(workspace) == ["COMPLETE"] * 4 and [run.info.status for run in trials] == ["FINISHED"] * 4
    assert parent.info.status == "FINISHED" and parent.info.run_name.startswith("tune lr, strength")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert trials[0].info.run_name == "lr 0.003 strength 1"  # the config's own values come first
    # The test part is not scored, nothing is registered, and no sweep takes a trial for a job that is done.
    for run in trials:
        assert not [key for key in run.data.metrics if key.startswith("test")]
        assert "flr.recipe" not in run.data.tags
        assert not (workspace.folder(run.info.run_id) / "evaluation.json").exists()
    client = workspace.client()
    assert client.search_registered_models() == []
    lowest = {int(run.data.tags["flr.trial"]): run.data.metrics["val/nme"] for run in trials}
    best = min(lowest, key=lowest.__getitem__)
    assert parent.data.tags["flr.best"] == str(best)
    assert parent.data.metrics["best/val_nme"] == pytest.approx(lowest[best])
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"trials.csv", "history.png", "importances.png", "slices.png"}
    folder = workspace.outputs / "studies" / parent.data.tags["flr.study"]
    with (folder / "trials.csv").open() as file:
        assert {int(row["number"]): float(row["value"]) for row in csv.DictReader(file)} == pytest.approx(lowest)
    assert f"best: trial {best}, val/nme {lowest[best]:.2f} %" in done.stdout
    assert f"own values: {lowest[0]:.2f} %" in done.stdout
    # The printed command trains the config of the best trial.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("python -m flr.train ")]
    assert line in parent.data.tags["mlflow.note.content"]
    (run,) = [run for run in trials if run.data.tags["flr.trial"] == str(best)]
    overrides = dict(word.split("=", 1) for word in shlex.split(line)[3:])
    assert overrides["optim.lr"] == run.data.params["optim.lr"]
    assert float(overrides["augment.rotation"]) == float(run.data.params["augment.rotation"])

    done = tune(workspace, *words)
    assert states(workspace) == ["COMPLETE"] * 4 and "Trial 4" not in done.stdout
    tune(workspace, *words, "tune.trials=5")
    assert states(workspace) == ["COMPLETE"] * 5
    assert [run.info.run_id for run in runs(workspace)[0]] == [parent.info.run_id]
    # A comparison skips trials by name; another config is another study.
    assert "no test result" in workspace.refuse("flr.compare", "group=seed")
    study = f"tune.study={parent.data.tags['flr.study']}"
    assert "of another config or space" in workspace.refuse("flr.tune", *WORDS, *words, study, "ema=0.5")
    other = f"tracking.uri=sqlite:///{workspace.path}/other.db"
    assert "no run" in workspace.refuse("flr.tune", *WORDS, *words, other)


def test_hopeless_trials_are_pruned(workspace: Workspace) -> None:
    pruner = ("tune/pruner=none", "tune.pruner._target_=optuna.pruners.ThresholdPruner", "+tune.pruner.upper=0.001")
    tune(workspace, *RATES, *pruner, "tune.trials=3", "trainer.max_epochs=3")
    # The config's own values are never pruned: all is held against them.
    assert states(workspace) == ["COMPLETE", "PRUNED", "PRUNED"]
    (parent,), trials = runs(workspace)
    assert [run.info.status for run in trials] == ["FINISHED", "KILLED", "KILLED"]
    client = workspace.client()
    for run, epochs in zip(trials, (3, 1, 1), strict=True):
        assert len(client.get_metric_history(run.info.run_id, "val/nme")) == epochs
        assert (workspace.folder(run.info.run_id) / "checkpoints").exists() == (epochs == 3)
        assert run.data.tags.get("flr.end") == (None if epochs == 3 else "pruned at epoch 1")
    assert parent.data.metrics["trials/pruned"] == 2 and parent.info.status == "FINISHED"


@pytest.mark.long
def test_two_processes_that_start_together_share_a_study(workspace: Workspace) -> None:
    words = (*WORDS, "tune.trials=6", "trainer.max_epochs=1")
    processes = [workspace.start("flr.tune", *words) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, f"{out[-2000:]}{err[-4000:]}"
        assert "Traceback" not in err
    assert states(workspace) == ["COMPLETE"] * 6
    (parent,), trials = runs(workspace)
    assert sorted(run.data.tags["flr.trial"] for run in trials) == list("012345")
    assert len({run.data.tags["flr.process"] for run in trials}) == 2
    assert len({run.info.run_name for run in trials}) == 6  # no draw came twice
    assert parent.info.status == "FINISHED" and parent.data.metrics["trials/finished"] == 6


def waiting(workspace: Workspace, *words: str) -> "subprocess.Popen[str]":
    """A study whose running trial has come to its second epoch and stays there."""
    process = workspace.start("flr.tune", *WORDS, *words, FLR_TRUST="own", PYTHONPATH=workspace.python_path)
    wait_for_file(process, workspace.path / "waits")
    return process


@pytest.mark.long
def test_a_study_that_was_stopped_or_killed_goes_on(own: Workspace) -> None:
    words = (FAILS, "tune.trials=2")
    (own.path / "slow").touch()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = waiting(own, *words)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err, err
        (parent,), (trial,) = runs(own)
        stopped = "RUNNING" if number == signal.SIGKILL else "KILLED"
        assert parent.info.status == trial.info.status == stopped
    assert states(own) == ["FAIL", "FAIL", "RUNNING"]
    (own.path / "slow").unlink()
    done = tune(own, *words)
    assert states(own) == ["FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    (again,), trials = runs(own)
    assert again.info.run_id == parent.info.run_id and again.info.status == "FINISHED"
    # It went on in its own run from its last checkpoint, each time.
    assert [run.info.status for run in trials] == ["FINISHED"] * 2 and trials[0].info.run_id == trial.info.run_id
    assert f"resuming run {trial.info.run_id}" in done.stdout
    steps = [point.step for point in own.client().get_metric_history(trial.info.run_id, "val/nme")]
    assert steps == [1, 3]
    assert len(study_of(own).trials[3].intermediate_values) == 2
    assert "2 finished of 2 trials" in done.stdout


@pytest.mark.long
def test_a_trial_of_a_machine_that_is_gone_is_tried_again(workspace: Workspace) -> None:
    words = ("trainer.max_epochs=1", "tune.trials=2")
    tune(workspace, *words, "tune.trials=1")
    study = optuna.load_study(
        study_name=study_of(workspace).study_name,
        storage=optuna.storages.RDBStorage(f"sqlite:///{workspace.outputs}/tune.db", heartbeat_interval=60),
    )
    for silent in (False, True):
        trial = study.ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
        trial.set_user_attr("host", "elsewhere")
        trial.set_user_attr("process", "1@1.0")
        study._storage.record_heartbeat(trial._trial_id)
        if silent:
            with sqlite3.connect(workspace.outputs / "tune.db") as database:
                database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-4 minutes')")
        done = tune(workspace, *words, *["tune.trials=3"] * silent)
        if not silent:
            assert states(workspace) == ["COMPLETE", "RUNNING"] and "1 finished, 1 running of 2" in done.stdout
    assert states(workspace) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    trials = study_of(workspace).trials
    assert [trial.params for trial in trials[3:]] == [trial.params for trial in trials[1:3]]


def test_a_failed_trial_stops_no_other(own: Workspace) -> None:
    (own.path / "breaks").touch()
    words = ("~tune.space.optim.lr", "+tune.space.optim.weight_decay={choices: [0.01, 0.9]}", "tune/sampler=grid")
    done = tune(own, FAILS, *words, "trainer.max_epochs=1")
    assert states(own) == ["COMPLETE", "FAIL"] and "of 2 trials" in done.stdout  # the grid has no more
    (parent,), trials = runs(own)
    assert parent.info.status == "FINISHED" and trials[1].info.status == "FAILED"
    assert trials[1].data.tags["flr.end"] == "ArithmeticError: it broke" and "ArithmeticError: it broke" in done.stdout


@pytest.mark.long
def test_a_study_of_failures_ends(own: Workspace) -> None:
    (own.path / "refuses").touch()
    words = (FAILS, "trainer.max_epochs=1", "tune.trials=9")
    assert "not with these data" in own.refuse("flr.tune", *WORDS, *words, FLR_TRUST="own")
    assert states(own) == ["FAIL", "WAITING"]  # to be tried again, when what all would meet is mended
    assert runs(own)[0][0].info.status == "FAILED"
    (own.path / "refuses").unlink()
    (own.path / "breaks").write_text("always")
    done = tune(own, *words, code=1)
    assert states(own) == ["FAIL"] * 4 and "ArithmeticError: it broke" in done.stdout
    assert "no trial of study" in done.stderr and runs(own)[0][0].info.status == "FAILED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+tune.space={optim.rl: {low: 1e-4, high: 1}}"], "no config key 'optim.rl' (did you mean 'optim.lr'?)"),
        (["+tune.space.ema={low: 0.1, hi: 0.2}"], "tune.space.ema.hi is not a key of flr.sweeps.space.Range (did you mean 'high'?)"),
        (["tune.space.optim.lr.low=1"], "low=1 is not below high=0.1"),
        (["+tune.space.optim.lr.step=0.1"], "has no meaning with log"),
        (["+tune.space.ema={low: 0.5, high: 1.5}"], "tune.space.ema: ema=1.5: expected"),
        (["+tune.space.ema={choices: [0.5]}"], "leaves no choice"),
        (["+tune.space.ema=3"], "tune.space.ema=3 is not a range"),
        (["+tune.space.seed={low: 0, high: 3}"], "seed cannot be chosen by its NME"),
        (["tune=augment", "augment=none"], "no config key 'augment.rotation'"),
        (["tune=augment", "+tune.space.augment.rotation={low: 1, high: 3}"], "sets augment.rotation twice"),
        (["~tune.space.optim"], "tune.space is empty"),
        (["tune/sampler=grid"], "needs a step or choices"),
        (["tune.sampler._target_=os.system"], "is not among the objects that a run may build"),
        (["tune.storage=mysql://me:secret@host/x"], "name sqlite:/// and an absolute path, or postgresql"),
        pytest.param(
            ["tune.storage=${tracking.uri}"], "a database of another application",
            marks=pytest.mark.sqlite("the embedded store's file as the study's"),
        ),
        (["trainer.devices=2", "trainer=ddp"], "start this command once a device"),
        (["run=abc"], "resumes one run by flr.train"),
        (["sweep=seeds"], "neither -m nor sweep="),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_no_study_is_refused(workspace: Workspace, words: list[str], message: str) -> None:
    line = workspace.refuse("flr.tune", *words)
    assert message in line and "secret" not in line
    assert not list(workspace.outputs.glob("runs/*"))


def test_a_value_is_an_override() -> None:
    lr = Dimension("optim.lr", Range(1e-4, 1e-2, log=True), {"optim.lr": 3e-3})
    assert lr.overrides(0.00123456789) == ["optim.lr=0.00123457"]
    assert lr.default in lr.values and 1 not in lr.values and lr.values.size == float("inf")
    strength = Dimension("strength", Range(0.0, 2.0, step=0.5, scales=["a", "b"]), {"a": 30, "b": 0.15})
    assert strength.overrides(0.5) == ["a=15", "b=0.075"] and strength.default == 1 and strength.values.size == 5
    batch = Dimension("data.batch_size", Range(16, 64), {"data.batch_size": 32})
    trial = optuna.create_study().ask()
    assert isinstance(batch.suggest(trial), int) and batch.values.size == 49 and 20.5 not in batch.values
    choice = Dimension("x", Choice([True, None, 1, "[8,16]", "a b"]), {"x": [8, 16]})
    overrides = [override for value in choice.values.choices for override in choice.overrides(value)]
    assert overrides == ["x=true", "x=null", "x=1", "x=[8,16]", 'x="a b"'] and choice.default in choice.values


SAMPLERS, PRUNERS = (
    sorted(path.stem for path in (CONF / "tune" / kind).glob("*.yaml")) for kind in ("sampler", "pruner")
)


@pytest.mark.parametrize(("sampler", "pruner"), list(zip(SAMPLERS, PRUNERS, strict=True)))
def test_every_sampler_and_pruner_is_built(sampler: str, pruner: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("tune", [f"tune/sampler={sampler}", f"tune/pruner={pruner}"])
    check(cfg, Tune, trusted=False)
    study = optuna.create_study(sampler=build(cfg.tune.sampler), pruner=build(cfg.tune.pruner))
    for _ in range(7):
        trial = study.ask({"x": optuna.distributions.IntDistribution(1, 9)})
        trial.report(trial.params["x"], 0)
        trial.should_prune()
        study.tell(trial, trial.params["x"])


def test_a_study_in_postgresql(workspace: Workspace) -> None:
    uri = os.environ.get("FLR_POSTGRES")
    if not uri:
        pytest.skip("FLR_POSTGRES names no database, as postgresql+psycopg2://USER@HOST/DATABASE")
    study = f"test-{os.getpid()}-{time.time_ns()}"
    words = (*WORDS, f"tune.storage={uri}", f"tune.study={study}", "tune.trials=4", "trainer.max_epochs=1")
    processes = [workspace.start("flr.tune", *words) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, f"{out[-2000:]}{err[-4000:]}"
    try:
        found = optuna.load_study(study_name=study, storage=uri).trials
        assert [trial.state.name for trial in found] == ["COMPLETE"] * 4
    finally:
        optuna.delete_study(study_name=study, storage=uri)
