"""Several jobs of a sweep at once on this machine; what no launcher may be asked. Clusters: see tests/cluster."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flr.errors import UserError
from flr.sweeps.launchers import local
from tests.conftest import Done, Workspace
from tests.test_ranks import error_lines, none_is_left, processes_of
from tests.test_sweep import runs, table, typed

# A user's own callback, which acts by the seed.
OWN = """
import json, os, signal, time
from pathlib import Path
import pytorch_lightning as pl
import torch
from flr.errors import UserError
from flr.sweeps.launchers import local
from flr.sweeps.launchers.slurm import Slurm

def event(word):
    with Path("events").open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")

class Own(pl.Callback):
    def on_fit_start(self, trainer, module):
        if module.seed == 7 and not Path("mended").exists():
            raise UserError("no seed 7 here; take another")
        about = {"cores": sorted(os.sched_getaffinity(0)), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
                 "threads": [os.environ["OMP_NUM_THREADS"], torch.get_num_threads()]}
        Path(f"job{os.getpid()}").write_text(json.dumps(about))
        event("begin")
        # The first two wait for each other, so that they are seen together however long each took to start.
        while Path("pairs").exists() and Path("events").read_text().count("begin") < 2:
            time.sleep(0.05)

    def on_train_epoch_start(self, trainer, module):
        if module.seed == 8 and trainer.current_epoch == 1 and not Path("mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.current_epoch == 1 and Path("epochs").exists():
            with Path("epochs").open("w") as file:
                file.write(f"{os.getpid()} ")

    def on_fit_end(self, trainer, module):
        event("end")
"""
ROOT = Path(local.__file__).parents[3]
WORDS = ("hydra/launcher=joblib", "+callbacks.own._target_=own.Own")


def sweep(workspace: Workspace, *words: str, code: int = 0, **env: str) -> Done:
    return workspace.run("flr.train", *typed(("-m", *WORDS, *words)), code=code, FLR_TRUST="own", **env)


def listen(workspace: Workspace) -> int:
    """A pipe into which each training writes its pid when it has come to its second epoch."""
    os.mkfifo(workspace.path / "epochs")
    return os.open(workspace.path / "epochs", os.O_RDWR)  # its own writer: it never ends


def hear(pipe: int, process: "subprocess.Popen[str]", count: int) -> list[psutil.Process]:
    """So many trainings, once they are there, of a sweep that lives."""
    text = ""
    while len(text.split()) < count:
        while not select.select([pipe], [], [], 1)[0]:
            assert process.poll() is None, process.communicate()
        text += os.read(pipe, 1000).decode()
    return [psutil.Process(int(pid)) for pid in text.split()]


def test_jobs_at_once_share_out_gpus_and_cores_and_give_the_same_table(own: Workspace) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core cannot be shared out")
    tables = []
    given = {"CUDA_VISIBLE_DEVICES": "4,GPU-6", "PYTHONPATH": f"{ROOT}:{own.path}"}
    for output, more in (("one", ("hydra/launcher=basic",)), ("two", ("hydra.launcher.jobs=2",))):
        space = Workspace(own.path / output, own.cache)
        space.path.mkdir()
        if output == "two":
            (space.path / "pairs").touch()
        sweep(space, "trainer.max_epochs=1", "seed=0,1,2", *more, **given)
        (parent,), _ = runs(space)
        rows = table(space, parent.data.tags["flr.sweep"])
        tables.append({name: (row["status"], row["val"], row["test"]) for name, row in rows.items()})
    assert tables[0] == tables[1] and len(tables[0]) == 3
    assert {row[0] for row in tables[0].values()} == {"FINISHED"}

    jobs = {path.name: json.loads(path.read_text()) for path in space.path.glob("job*")}
    assert len(jobs) == 3 and {job["gpu"] for job in jobs.values()} == {"4", "GPU-6"}
    assert all(len(job["cores"]) == len(cores) // 2 and job["threads"] == ["1", 1] for job in jobs.values())
    running: dict[str, dict] = {}
    together = 0
    for line in (space.path / "events").read_text().splitlines():
        word, pid = line.split()
        if word == "end":
            del running[pid]
            continue
        job = jobs[f"job{pid}"]
        for other in running.values():
            assert other["gpu"] != job["gpu"] and not set(other["cores"]) & set(job["cores"])
            together += 1
        running[pid] = job
    assert together and not running  # or the test has seen nothing


def test_a_job_that_is_killed_stops_no_other(own: Workspace) -> None:
    done = sweep(own, "seed=7,8,0", code=1)
    (parent,), jobs = runs(own)
    assert {name: run.info.status for name, run in jobs.items()} == {
        "seed 0": "FINISHED", "seed 7": "FAILED", "seed 8": "KILLED"
    }  # fmt: skip
    rows = table(own, parent.data.tags["flr.sweep"])
    assert rows["seed 8"]["reason"] == "its process died; see 1.log" and rows["seed 8"]["exit_code"] == "1"
    assert rows["seed 7"]["reason"] == "no seed 7 here; take another; see 0.log"
    assert rows["seed 0"]["reason"] == ""
    lines = error_lines(done.stderr)
    assert len(lines) == 2 and "Traceback" not in done.stderr
    (killed,) = [line for line in lines if "seed 8" in line]
    assert "killed by SIGKILL, as when memory runs out" in killed and "1.log" in killed
    (refused,) = [line for line in lines if "seed 7" in line]
    assert "ended with exit code 2" in refused and "no seed 7 here" in refused

    (own.path / "mended").touch()
    done = sweep(own, "seed=7,8,0")
    assert "3 of 3 jobs finished" in done.stdout and "done before" in done.stdout
    (_,), after = runs(own)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in jobs.items()
    }
    steps = [point.step for point in own.client().get_metric_history(after["seed 8"].info.run_id, "val/nme")]
    assert steps == [1, 3]  # from its checkpoint on


@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_jobs_end_with_the_sweep_and_go_on_with_it(own: Workspace, sent: signal.Signals, code: int) -> None:
    pipe = listen(own)
    words = typed(("-m", *WORDS, "seed=0,1,2", "hydra.launcher.jobs=2", "hydra.launcher.cores=1"))
    given = {"FLR_TRUST": "own", "PYTHONPATH": f"{ROOT}:{own.path}"}
    process = own.start("flr.train", *words, "trainer.max_epochs=400", **given)
    every = hear(pipe, process, 2)
    process.send_signal(sent)
    process.wait(timeout=100)
    none_is_left(every)
    none_is_left(processes_of(own))
    out, err = process.communicate(timeout=100)
    assert process.returncode == code and "Traceback" not in err, err
    (parent,), jobs = runs(own)
    assert set(jobs) == {"seed 0", "seed 1"} and {run.info.status for run in jobs.values()} == {"KILLED"}
    if sent != signal.SIGKILL:
        assert parent.info.status == "KILLED" and "not started" in out and "0 of 3 jobs finished" in out


def test_what_a_launcher_refuses(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: str, **env: str) -> str:
        return workspace.refuse("flr.train", "-m", "seed=0,1", *words, **env)

    assert "did you mean 'hydra.launcher.gpus'" in refuse("hydra/launcher=joblib", "hydra.launcher.gpu=1")
    assert "hydra.launcher.jobs=0: expected" in refuse("hydra/launcher=joblib", "hydra.launcher.jobs=0")
    line = refuse("hydra/launcher=joblib", "hydra.launcher.jobs=2", CUDA_VISIBLE_DEVICES="0")
    assert "2 job(s) of 1 GPU(s) at once, and this machine has 1" in line
    for launcher, module in (("slurm", "submitit"), ("ray", "ray")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f"needs {module}" in (line := refuse(f"hydra/launcher={launcher}")) and "flr[cluster]" in line
    ranks = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    ranks |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
    assert "starts the jobs itself" in refuse("hydra/launcher=joblib", **ranks)
    assert runs(workspace) == ([], {})


def shares(monkeypatch: pytest.MonkeyPatch, ranks: int | None = 1, visible: str = "", **wanted: float) -> list:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: set(range(4, 12)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launcher = local.Joblib(**wanted)
    launcher.prepare(ranks, "auto")
    return launcher.shares


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch) == [([core], None) for core in range(4, 12)]
    assert shares(monkeypatch, cores=4) == [([4, 5, 6, 7], None), ([8, 9, 10, 11], None)]
    assert shares(monkeypatch, ranks=2, jobs=3) == [([4, 5], None), ([6, 7], None), ([8, 9], None)]
    assert shares(monkeypatch, visible="0,2") == [([4, 5, 6, 7], ["0"]), ([8, 9, 10, 11], ["2"])]
    assert shares(monkeypatch, ranks=2, visible="0,1,2") == [([*range(4, 12)], ["0", "1"])]
    halves = shares(monkeypatch, visible="0,MIG-1a/2", jobs=3, gpus=0.5)
    assert [gpus for _, gpus in halves] == [["0"], ["MIG-1a/2"], ["0"]]
    assert [gpus for _, gpus in shares(monkeypatch, visible="0,-1,1")] == [["0"]]  # CUDA stops at -1 too
    assert [gpus for _, gpus in shares(monkeypatch, visible="0,1", jobs=2, gpus=0)] == [[], []]
    with pytest.raises(UserError, match="whole number"):
        shares(monkeypatch, visible="0,1", gpus=1.5)
    assert len(shares(monkeypatch, jobs=9)) == 9
    with pytest.raises(UserError, match="has 8; set that or fewer"):
        shares(monkeypatch, cores=9)


def test_hydra_loads_the_launchers_at_no_cost() -> None:
    code = "import sys, hydra_plugins.flr_launchers; print([m for m in ('torch', 'ray', 'submitit', 'joblib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
