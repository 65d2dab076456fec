"""`hydra/launcher=ray` on a real Ray of one machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.conftest import Workspace
from tests.test_launchers import OWN, ROOT, hear, listen, none_is_left
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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    said = tmp_path_factory.mktemp("ray") / "said"
    with said.open("w") as file:  # a pipe would be held open by Ray's own processes
        head = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    until = time.monotonic() + 180
    while "Ray runtime started" not in said.read_text():
        assert head.poll() is None and time.monotonic() < until, said.read_text()
        time.sleep(0.1)
    every = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        _, alive = psutil.wait_procs(every, timeout=20)
        for process in alive:
            process.kill()


@pytest.fixture
def own(workspace: Workspace) -> Workspace:
    (workspace.path / "own.py").write_text(OWN)
    return workspace


def given(workspace: Workspace) -> dict[str, str]:
    return {"FLR_TRUST": "own", "PYTHONPATH": f"{ROOT}:{workspace.path}"}


def test_the_table_is_that_of_one_after_another(own: Workspace, address: str) -> None:
    words = ("trainer.max_epochs=1", "model.blocks=1,2", "seed=0,1", WORDS[2])
    alone = Workspace(own.path / "alone", own.cache)
    alone.path.mkdir()
    (alone.path / "own.py").write_text(OWN)
    tables = []
    for space, more in ((own, (WORDS[1], f"hydra.launcher.address={address}")), (alone, ())):
        space.apart("flr.train", *typed(("-m", *more, *words)), **given(space))
        (parent,), _ = runs(space)
        rows = table(space, parent.data.tags["flr.sweep"])
        tables.append({name: (row["status"], row["val"], row["test"]) for name, row in rows.items()})
    assert tables[0] == tables[1] and {row[0] for row in tables[0].values()} == {"FINISHED"} and len(tables[0]) == 4


def test_a_job_has_its_gpu_and_ends_alone_or_with_the_sweep(own: Workspace, address: str) -> None:
    """The first is killed, the second meets the sweep's end, the third is not started."""
    pipe = listen(own)
    words = ("seed=0,1,2", "hydra.launcher.gpus=1", f"hydra.launcher.address={address}", "trainer.max_epochs=400")
    process = own.start("flr.train", *typed((*WORDS, *words)), **given(own))
    (first,) = hear(pipe, process, 1)
    assert first.environ()["CUDA_VISIBLE_DEVICES"] == "0"
    first.kill()
    (second,) = hear(pipe, process, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "was killed by SIGKILL" in err
    none_is_left([first, second])
    (parent,), jobs = runs(own)
    assert {parent.info.status, *(run.info.status for run in jobs.values())} == {"KILLED"}
    assert len(jobs) == 2 and "not started" in out and "0 of 3 jobs finished" in out


def test_what_the_cluster_cannot_is_told(own: Workspace, address: str) -> None:
    words = typed((*WORDS, "seed=0,1", f"hydra.launcher.address={address}", "hydra.launcher.cores=3"))
    assert "no machine of the Ray cluster has" in own.refuse("flr.train", *words, **given(own))
    words = typed((*WORDS, "seed=0,1", "hydra.launcher.address=127.0.0.1:1"))
    assert "no Ray cluster answers" in own.refuse("flr.train", *words, **given(own))
    assert runs(own) == ([], {})
