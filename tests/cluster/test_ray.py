"""`hydra/launcher=ray` on a real Ray of one machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flr import launchers
from tests.conftest import Workspace
from tests.test_launchers import OWN, hear, listen, none_is_left
from tests.test_sweep import runs, table, typed

pytestmark = pytest.mark.cluster

WORDS = ("-m", "hydra/launcher=ray", "+callbacks.own._target_=own.Own")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a head with two cores and a GPU that it is told of."""
    pytest.importorskip("ray", reason="no ray here: pip install 'flr[cluster]'")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Ray's own sockets lie below this folder, and their paths may have 107 characters.
    folder = f"/tmp/flr-ray-{os.getpid()}"
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        "--include-dashboard=false", "--num-cpus=2", "--num-gpus=1", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(launchers.__file__).parents[1])}
    head = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert head.stdout
    said = []
    for line in head.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            break
    assert head.poll() is None, "".join(said)
    every = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.communicate(timeout=60)
        _, alive = psutil.wait_procs(every, timeout=20)
        for process in alive:
            process.kill()


@pytest.fixture
def own(workspace: Workspace) -> Workspace:
    (workspace.path / "own.py").write_text(OWN)
    return workspace


def given(workspace: Workspace) -> dict[str, str]:
    return {"FLR_TRUST": "own", "PYTHONPATH": f"{Path(launchers.__file__).parents[1]}:{workspace.path}"}


def test_the_table_is_that_of_one_after_another(own: Workspace, address: str) -> None:
    """Of jobs of which one is killed, and one refused."""
    words = ("trainer.max_epochs=2", "model.blocks=1,2", "seed=0,1,7,8")
    at = f"hydra.launcher.address={address}"
    done = own.apart("flr.train", *typed((*WORDS, at, *words)), code=1, **given(own))
    (parent,), jobs = runs(own)
    rows = table(own, parent.data.tags["flr.sweep"])
    assert rows["blocks 1 seed 8"]["status"] == "KILLED" and "its process died" in rows["blocks 1 seed 8"]["reason"]
    assert "was killed by SIGKILL" in done.stderr and "no seed 7 here" in done.stderr and len(jobs) == 8
    assert "4 of 8 jobs finished" in done.stdout

    (own.path / "mended").touch()
    own.apart("flr.train", *typed((*WORDS, at, *words)), **given(own))
    alone = Workspace(own.path / "alone", own.cache)
    alone.path.mkdir()
    (alone.path / "own.py").write_text(OWN)
    (alone.path / "mended").touch()
    alone.apart("flr.train", *typed(("-m", WORDS[2], *words)), **given(alone))
    tables = []
    for space in (own, alone):
        rows = table(space, parent.data.tags["flr.sweep"])
        tables.append({name: (row["status"], row["val"], row["test"]) for name, row in rows.items()})
    assert tables[0] == tables[1] and {row[0] for row in tables[0].values()} == {"FINISHED"}


def test_jobs_have_their_gpu_and_end_with_the_sweep(own: Workspace, address: str) -> None:
    pipe = listen(own)
    words = ("seed=0,1", "hydra.launcher.gpus=1", f"hydra.launcher.address={address}", "trainer.max_epochs=400")
    process = own.start("flr.train", *typed((*WORDS, *words)), **given(own))
    (job,) = hear(pipe, process, 1)
    assert job.environ()["CUDA_VISIBLE_DEVICES"] == "0"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    none_is_left([job])
    (parent,), jobs = runs(own)
    assert {parent.info.status, *(run.info.status for run in jobs.values())} == {"KILLED"}
    assert len(jobs) == 1 and "not started" in out and "0 of 2 jobs finished" in out


def test_what_the_cluster_cannot_is_told(own: Workspace, address: str) -> None:
    words = typed((*WORDS, "seed=0,1", f"hydra.launcher.address={address}", "hydra.launcher.cores=3"))
    assert "no machine of the Ray cluster has" in own.refuse("flr.train", *words, **given(own))
    words = typed((*WORDS, "seed=0,1", "hydra.launcher.address=127.0.0.1:1"))
    assert "no Ray cluster answers" in own.refuse("flr.train", *words, **given(own))
    assert runs(own) == ([], {})
