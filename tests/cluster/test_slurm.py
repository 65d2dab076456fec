"""`hydra/launcher=slurm` on a real SLURM of two nodes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.cluster import slurm
from tests.conftest import Done, Workspace
from tests.test_launchers import OWN, ROOT, hear, listen
from tests.test_sweep import runs, table, typed

pytestmark = pytest.mark.cluster

WORDS = ("-m", "hydra/launcher=slurm", "+callbacks.own._target_=own.Own")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    pytest.importorskip("submitit", reason="no submitit here: pip install 'flr[cluster]'")
    if gone := slurm.missing():
        pytest.skip(gone)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as variables:
        yield variables


@pytest.fixture
def own(workspace: Workspace) -> Workspace:
    (workspace.path / "own.py").write_text(OWN)
    return workspace


@pytest.fixture
def variables(own: Workspace, cluster: dict[str, str]) -> dict[str, str]:
    """What the commands of a test need."""
    return {**cluster, "FLR_TRUST": "own", "PYTHONPATH": f"{ROOT}:{own.path}"}


@pytest.fixture
def sweep(own: Workspace, variables: dict[str, str]) -> Callable[..., Done]:
    def run(*words: str, code: int = 0) -> Done:
        return own.apart("flr.train", *typed((*WORDS, *words)), code=code, **variables)

    return run


def ask(variables: dict[str, str], *command: str) -> str:
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout.strip()


def requeue(variables: dict[str, str], job: str, training: list[psutil.Process]) -> None:
    """Have SLURM tell a job to stop, as it does before the time limit; see the training end and the job wait anew."""
    ask(variables, "scancel", "--signal=USR2", job)
    assert not psutil.wait_procs(training, timeout=60)[1]
    while ask(variables, "squeue", "--noheader", "--format=%T") != "PENDING":
        time.sleep(0.2)
    ask(variables, "scontrol", "update", f"jobid={job}", "starttime=now+4")  # for two minutes it would wait


def test_the_table_is_that_of_one_after_another(own: Workspace, sweep: Callable[..., Done]) -> None:
    """Of a job array of which one job is refused."""
    words = ("trainer.max_epochs=1", "model.blocks=1,2", "seed=0,1")
    done = sweep(*words)
    assert "4 of 4 jobs finished" in done.stdout
    (parent,), jobs = runs(own)
    alone = Workspace(own.path / "alone", own.cache)
    alone.path.mkdir()
    (alone.path / "own.py").write_text(OWN)
    alone.apart(
        "flr.train", *typed(("-m", WORDS[2], *words)), FLR_TRUST="own",
        PYTHONPATH=f"{ROOT}:{alone.path}",
    )  # fmt: skip
    tables = []
    for space in (own, alone):
        rows = table(space, parent.data.tags["flr.sweep"])
        tables.append({name: (row["status"], row["val"], row["test"]) for name, row in rows.items()})
    assert tables[0] == tables[1] and len(jobs) == 4
    done = sweep("trainer.max_epochs=1", "seed=0,1", "data.crop.channels=two", code=2)
    assert "is FAILED as SLURM job" in done.stderr and "expected" in done.stderr and "0.log" in done.stderr


def test_a_job_goes_on_in_its_run_when_it_is_requeued(own: Workspace, variables: dict[str, str]) -> None:
    """After the signal that SLURM sends before the time limit, here by scancel."""
    pipe = listen(own)
    words = typed((*WORDS, "trainer.max_epochs=100", "seed=0"))
    process = own.start("flr.train", *words, **variables)
    first = hear(pipe, process, 1)
    job = ask(variables, "squeue", "--noheader", "--array", "--format=%i")
    requeue(variables, job, first)
    (_,), jobs = runs(own)
    (run,) = jobs.values()
    assert run.info.status == "KILLED"
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "1 of 1 jobs finished" in out
    (_,), jobs = runs(own)
    (after,) = jobs.values()
    assert after.info.run_id == run.info.run_id and after.info.status == "FINISHED"
    log = (own.outputs / "sweeps" / after.data.tags["flr.sweep"] / "0.log").read_text()
    assert log.count("Job 0: ") == 2 and f"resuming run {run.info.run_id}" in log
    steps = [point.step for point in own.client().get_metric_history(run.info.run_id, "val/nme")]
    assert len(steps) == 100 and steps == sorted(set(steps))


def test_two_nodes_train_one_run(own: Workspace, variables: dict[str, str]) -> None:
    """A rank on each, requeued as one; then the sweep is stopped."""
    pipe = listen(own)
    words = typed((
        *WORDS, "seed=0", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2",
        "trainer.max_epochs=400", "hydra.launcher.nodes=2",
    ))  # fmt: skip
    # Both nodes are this machine, which knows neither by its name.
    process = own.start("flr.train", *words, **variables, MASTER_ADDR="127.0.0.1")
    first = hear(pipe, process, 1)
    job = ask(variables, "squeue", "--noheader", "--array", "--format=%i")
    assert ask(variables, "squeue", "--noheader", "--format=%D %N") == "2 one,two"
    requeue(variables, job, first)
    (_,), jobs = runs(own)
    (run,) = jobs.values()
    assert run.info.status == "KILLED" and run.data.tags["flr.ranks"] == "2"
    log = own.outputs / "sweeps" / run.data.tags["flr.sweep"] / "0.log"
    while log.read_text().count("resuming run") < 1:
        assert process.poll() is None
        time.sleep(0.2)
    epochs = len(own.client().get_metric_history(run.info.run_id, "val/nme"))
    while len(own.client().get_metric_history(run.info.run_id, "val/nme")) < epochs + 2:
        assert process.poll() is None
        time.sleep(0.2)
    every = psutil.process_iter(["cmdline"])
    ranks = [p for p in every if {"flr.train", "hydra.mode=RUN"} <= set(p.info["cmdline"] or ())]
    assert len(ranks) == 2
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "0 of 1 jobs finished" in out, err
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    (parent,), jobs = runs(own)
    assert parent.info.status == "KILLED" and len(jobs) == 1
    assert {found.info.status for found in jobs.values()} == {"KILLED"}
    steps = [point.step for point in own.client().get_metric_history(run.info.run_id, "val/nme")]
    assert steps == sorted(set(steps)) and len(steps) > epochs
    assert not ask(variables, "squeue", "--noheader")


def test_what_sbatch_refuses_is_told(own: Workspace, variables: dict[str, str]) -> None:
    line = own.refuse("flr.train", *typed((*WORDS, "seed=0,1", "hydra.launcher.partition=nosuch")), **variables)
    assert "sbatch refuses" in line and "invalid partition" in line
    words = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert "that is 1 rank(s), and the config is for 2" in own.refuse(
        "flr.train", *typed((*WORDS, "seed=0,1", *words)), **variables
    )
    assert runs(own) == ([], {})
