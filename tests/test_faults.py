"""What goes wrong in a long training, each fault made for real: what is lost, what is reported, and that the run resumes."""

import importlib
import json
import shutil
import signal
import socket
import sqlite3
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from flr.errors import UserError
from flr.module.checkpoints import RunFolder, load_last
from flr.tracking import queue
from flr.tracking.provenance import process_alive, process_tag
from tests.conftest import PICTURES, SMALL_SET, TINY, Done, Server, Workspace
from tests.test_refusals import Bomb

WORDS = (*TINY, *SMALL_SET, "tracking.register=false")

# A user's own callback. `at` is what a test wants done when an epoch begins. A process of its own gets the signal
# SIGNAL in its second epoch, at the place that FAULT names.
OWN = """
import os, signal
from pathlib import Path
import pytorch_lightning as pl
from mlflow import MlflowClient

at = {}
place = os.environ.get("FAULT")

def strike():
    signal.raise_signal(int(os.environ["SIGNAL"]))

class Fault(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        at.pop(trainer.current_epoch, lambda: None)()

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.current_epoch == 1 and place == "training":
            strike()

    def on_validation_batch_start(self, trainer, module, *_):
        if trainer.current_epoch == 1 and place == "validation":
            strike()

    def on_fit_start(self, trainer, module):
        if place == "checkpoint":
            write = Path.write_bytes
            def write_bytes(path, content):
                if path.suffix == ".ckpt" and trainer.current_epoch == 1:
                    write(path, content[: len(content) // 2])
                    strike()
                return write(path, content)
            Path.write_bytes = write_bytes
        if place == "upload":
            upload = MlflowClient.log_artifact
            def log_artifact(client, run_id, path, *more):
                if path.endswith("best.ckpt"):
                    MlflowClient.log_artifact = upload
                    strike()
                return upload(client, run_id, path, *more)
            MlflowClient.log_artifact = log_artifact
"""
FAULT = "+callbacks.fault._target_=own.Fault"


@pytest.fixture
def own(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The user's module, which lies in the workspace."""
    (workspace.path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(workspace.path)
    sys.modules.pop("own", None)
    yield importlib.import_module("own")
    sys.modules.pop("own", None)


def train(workspace: Workspace, *words: str, code: int = 0, **env: str) -> Done:
    return workspace.run("flr.train", *words, code=code, FLR_TRUST="own", **env)


# -- signals -----------------------------------------------------------------------------------------------------------


def result(workspace: Workspace) -> dict[str, object]:
    """What must be the same whether or not a training was disturbed: metrics, and the error of each epoch."""
    run = workspace.only_run()
    history = workspace.client().get_metric_history(run.info.run_id, "val/nme")
    epochs = {(point.step, point.value) for point in history}  # an epoch may be measured twice
    return {name: run.data.metrics[name] for name in ("train/loss", "val/nme", "test/nme")} | {"epochs": epochs}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[str, object]:
    """The result of the training that no fault befalls."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed"), shared_cache)
    done = workspace.run("flr.train", *WORDS)
    assert "models:/" not in done.stdout  # tracking.register=false
    assert not workspace.client().search_model_versions(f"run_id = '{workspace.only_run().info.run_id}'")
    return result(workspace)


IN_CI = (("checkpoint", signal.SIGKILL),)
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize(
    ("place", "sent"),
    [
        pytest.param(place, sent, marks=[] if (place, sent) in IN_CI else [pytest.mark.long], id=f"{place}-{sent.name}")
        for place in ("training", "validation", "checkpoint", "upload") for sent in SIGNALS
    ],
)  # fmt: skip
def test_a_signal_loses_nothing(
    workspace: Workspace, own: ModuleType, undisturbed: dict[str, object], place: str, sent: signal.Signals
) -> None:
    struck = {"FAULT": place, "SIGNAL": str(int(sent)), "FLR_TRUST": "own", "PYTHONPATH": workspace.python_path}
    process = workspace.start("flr.train", *WORDS, FAULT, **struck)
    _, err = process.communicate(timeout=240)
    assert process.returncode == SIGNALS[sent], err[-2000:]
    assert "Traceback" not in err
    run = workspace.only_run()
    assert run.info.status == ("RUNNING" if sent == signal.SIGKILL else "KILLED")
    folder = workspace.folder(run.info.run_id)
    for path in (folder / "checkpoints").glob("[!.]*.ckpt"):
        torch.load(path, weights_only=True)  # each whole
    train(workspace, f"run={folder}")
    assert workspace.only_run().info.status == "FINISHED" and not list(folder.rglob(".*.ckpt"))
    assert result(workspace) == undisturbed


def test_an_interrupted_run_resumes_from_the_store_alone(
    workspace: Workspace, own: ModuleType, undisturbed: dict[str, object]
) -> None:
    own.at[1] = lambda: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    try:
        train(workspace, *WORDS, FAULT, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    run = workspace.only_run().info
    folder = workspace.folder(run.run_id)
    assert run.status == "KILLED"
    with FileLock(folder / "run.lock"):
        assert "another process is training" in workspace.refuse("flr.train", f"run={folder}", FLR_TRUST="own")
    shutil.move(folder, workspace.path / "elsewhere")
    train(workspace, f"run={run.run_id}")
    assert workspace.only_run().info.status == "FINISHED" and result(workspace) == undisturbed


# -- the tracking store ------------------------------------------------------------------------------------------------


def whole(client: MlflowClient, run_id: str, epochs: int) -> None:
    """All of a finished training is in the store."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in ("val/nme", "train/loss", "lr"):
        assert len(client.get_metric_history(run_id, name)) == epochs, name
    assert {"test/nme", "test/fr8"} <= set(run.data.metrics)
    assert "seed" in run.data.params and "hardware.cpu" in run.data.params and run.inputs.dataset_inputs
    kept = {item.path for folder in (None, "checkpoints") for item in client.list_artifacts(run_id, folder)}
    assert {"config.yaml", "run.json", "errors.csv", "evaluation.json", "ced.png", "worst_faces.png",
            "checkpoints/best.ckpt"} <= kept  # fmt: skip
    assert any(item.path.endswith(".png") for item in client.list_artifacts(run_id, "images"))


@pytest.mark.long
def test_a_server_that_goes_away_and_comes_back_gets_all(
    workspace: Workspace, own: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "RETRY_SECONDS", 0.5)
    waiting = workspace.outputs / "runs"
    seen: list[int] = []

    def look() -> None:
        seen.append(len(list(waiting.glob("*/queue/items*.jsonl"))))

    own.at |= {1: server.kill, 3: look, 4: server.start, 5: look}
    words = (*WORDS, FAULT, "trainer.max_epochs=6", PICTURES, f"tracking.uri={server.uri}")
    done = train(workspace, *words, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "does not take what is sent" in done.stderr and "has taken all that waited" in done.stderr
    (folder,) = waiting.glob("*")
    assert seen == [1, 0] and not (folder / "queue").exists()
    whole(MlflowClient(server.uri), folder.name, 6)


@pytest.mark.long
def test_what_a_server_never_took_the_next_training_delivers(
    workspace: Workspace, own: ModuleType, server: Server
) -> None:
    """Also what a process that was killed has left."""
    own.at |= {1: server.kill}
    words = (*WORDS, PICTURES, "trainer.max_epochs=3", f"tracking.uri={server.uri}", "tracking.register=faces")
    done = train(workspace, *words, FAULT, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    (folder,) = (workspace.outputs / "runs").glob("*")
    assert f"waits in {folder / 'queue'}" in done.stderr and (folder / "evaluation.json").is_file()
    (items,) = (folder / "queue").glob("items*.jsonl")
    with items.open("a") as file:
        file.write('{"kind": "met')  # cut by a kill
    assert "no MLflow server answers" in workspace.refuse("flr.train", *words)
    server.start()
    done = train(workspace, *words, "seed=1", "trainer.max_epochs=1")
    assert f"has taken all that waited for run {folder.name}" in done.stderr and not (folder / "queue").exists()
    client = MlflowClient(server.uri)
    whole(client, folder.name, 3)
    assert {version.run_id for version in client.search_model_versions("name = 'faces'")} >= {folder.name}


@pytest.mark.long
def test_a_sweep_waits_for_a_server_that_is_away(
    workspace: Workspace, own: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes away in the first job, and comes back while the second looks for it."""
    monkeypatch.setattr("flr.sweeps.record.RETRY_WAITS", (0.1, 0.2, 60.0))
    own.at |= {1: server.kill}
    monkeypatch.setattr(
        "flr.sweeps.record.time", SimpleNamespace(sleep=lambda wait: server.start() if wait == 0.2 else None)
    )
    words = (*WORDS, PICTURES, FAULT, f"tracking.uri={server.uri}", "seed=0,1")
    done = train(workspace, "-m", *words, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "asked again in 0.1 s" in done.stderr and "2 of 2 jobs finished" in done.stdout
    client = MlflowClient(server.uri)
    for folder in (workspace.outputs / "runs").glob("*"):
        whole(client, folder.name, 2)


def test_the_next_start_closes_dead_runs_and_passes_over_damaged_queues(workspace: Workspace) -> None:
    workspace.train("trainer.max_epochs=1")
    run, client = workspace.only_run().info, workspace.client()
    tags = {"host": socket.gethostname(), "process": "1@1.0", "folder": str(workspace.folder(run.run_id))}
    dead = client.create_run(run.experiment_id, tags={f"flr.{key}": value for key, value in tags.items()}).info.run_id
    files = {}
    for message, text in {
        "cannot be read": "{nonsense}", "unknown kind": '{"kind": "rm"}',
        "goes without file": json.dumps({"kind": "file", "path": "{folder}/no", "folder": None}),
        "outside the run's folder": json.dumps({"kind": "file", "path": "{folder}/../../own.py", "folder": None}),
    }.items():  # fmt: skip
        folder = workspace.folder(client.create_run(run.experiment_id).info.run_id)
        shutil.copytree(workspace.folder(run.run_id), folder)
        files[message] = folder / "outbox" / "letters.jsonl"  # of flr 0.1
        files[message].parent.mkdir()
        files[message].write_text(text.replace("{folder}", str(folder)) + "\n")
    done = workspace.train("trainer.max_epochs=1", "seed=1")
    assert "Traceback" not in done.stderr
    for message, path in files.items():
        dropped = message.startswith("goes without")
        place = path.parent.parent / "no" if dropped else path
        (line,) = [line for line in done.stderr.splitlines() if str(place) in line]
        assert message in line and path.is_file() is not dropped
    closed = client.get_run(dead)
    assert closed.info.status == "KILLED" and closed.data.tags["flr.end"] == "its process died"
    uploaded = {item.path for item in client.list_artifacts(dead, "checkpoints")}
    assert uploaded == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}


def test_a_locked_database_delays_no_training(
    workspace: Workspace, own: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "RETRY_SECONDS", 0.5)
    held: list[sqlite3.Connection] = []

    def lock() -> None:
        held.append(sqlite3.connect(workspace.outputs / "mlflow.db", isolation_level=None))
        held[0].execute("BEGIN EXCLUSIVE")

    own.at |= {1: lock, 3: lambda: held[0].close()}
    done = train(workspace, *WORDS, PICTURES, FAULT, "trainer.max_epochs=4")
    assert "does not take what is sent" in done.stderr and "has taken all that waited" in done.stderr
    whole(workspace.client(), workspace.only_run().info.run_id, 4)


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_while_a_checkpoint_is_written_keeps_the_last_good_one(
    workspace: Workspace, own: ModuleType, mounted: Callable[[str], Path]
) -> None:
    point = mounted("size=80m")  # the store wants 64 free at the start
    filler = point / "filler"

    def fill() -> None:
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

    own.at |= {2: fill}
    words = (f"paths.output_dir={point}", f"tracking.uri={workspace.uri}", "trainer.max_epochs=4")
    done = train(workspace, *WORDS, FAULT, *words, code=2)
    (folder,) = (point / "runs").iterdir()
    assert "No space left" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert not list(folder.rglob(".*.ckpt")) and workspace.only_run().info.status == "FAILED"
    filler.unlink()
    train(workspace, f"run={folder}")
    assert workspace.only_run().info.status == "FINISHED"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit of a weight."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def hostile(path: Path) -> None:
    """An object that runs a command when it is loaded."""
    torch.save({"flr": Bomb(), "state_dict": {}}, path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    workspace: Workspace, undisturbed: dict[str, object], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(workspace.path)
    workspace.run("flr.train", *WORDS)
    run_id = workspace.only_run().info.run_id
    folder = RunFolder(workspace.folder(run_id))
    shutil.copytree(folder.path / "checkpoints", workspace.path / "whole")
    for spoil in (cut, flipped, hostile):
        shutil.copytree(workspace.path / "whole", folder.path / "checkpoints", dirs_exist_ok=True)
        spoil(folder.last)
        spoil(folder.before)
        with pytest.raises(UserError, match=str(folder.last)):
            load_last(folder)
        shutil.copy(workspace.path / "whole" / folder.before.name, folder.before)
        assert load_last(folder) is not None and "the one before is used" in capsys.readouterr().err
    shutil.copytree(workspace.path / "whole", folder.path / "checkpoints", dirs_exist_ok=True)
    hostile(folder.last)
    workspace.client().set_terminated(run_id, "KILLED")
    done = workspace.run("flr.train", f"run={folder.path}")
    assert "the one before is used" in done.stderr and not (workspace.path / "exploded").exists()
    assert result(workspace) == undisturbed


# -- data, clock, processes --------------------------------------------------------------------------------------------


def test_data_that_have_changed_are_refused_or_accepted(workspace: Workspace, real_data: Path) -> None:
    root = workspace.path / "300w"
    (root / "helen" / "trainset").mkdir(parents=True)
    (root / "helen" / "testset").mkdir()
    for part, count in (("trainset", 40), ("testset", 5)):
        for points in sorted((real_data / "300w" / "helen" / part).glob("*.pts"))[:count]:
            for path in points.parent.glob(f"{points.stem}.*"):
                shutil.copy(path, root / "helen" / part)
    words = ("data=ibug", f"data.root={root}", *TINY, "tracking.register=false")
    workspace.run("flr.train", *words)
    run_id = workspace.only_run().info.run_id
    gone = sorted((root / "helen" / "trainset").glob("*.pts"))[0]
    for path in gone.parent.glob(f"{gone.stem}.*"):
        path.unlink()
    last = workspace.folder(run_id) / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    (best,) = [value for key, value in state["callbacks"].items() if "val/nme" in key]
    zero = torch.zeros(())  # which no epoch to come could beat
    best |= {"best_model_score": zero, "kth_value": zero, "best_k_models": dict.fromkeys(best["best_k_models"], zero)}
    torch.save(state, last)
    again = (f"run={run_id}", "trainer.max_epochs=3")
    assert "accept_data=true" in workspace.refuse("flr.train", *again)
    assert workspace.only_run().info.status == "FINISHED"
    done = workspace.run("flr.train", *again, "accept_data=true")
    assert "the data have changed" in done.stderr
    run = workspace.only_run()
    assert run.info.status == "FINISHED" and " to " in run.data.tags["flr.data_changed"]
    state = torch.load(last, weights_only=True)
    (best,) = [value for key, value in state["callbacks"].items() if "val/nme" in key]
    assert float(best["best_model_score"]) == pytest.approx(run.data.metrics["val/nme"])  # of the new faces alone
    # It counts once.
    gone = sorted((root / "helen" / "trainset").glob("*.pts"))[0]
    for path in gone.parent.glob(f"{gone.stem}.*"):
        path.unlink()
    assert "accept_data=true" in workspace.refuse("flr.train", f"run={run_id}", "trainer.max_epochs=4")


def test_a_clock_that_is_set_back_closes_no_living_run(
    workspace: Workspace, own: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the run itself nor what another process thinks of it."""
    import psutil

    mine, real = process_tag()["process"], time.time

    def back() -> None:
        monkeypatch.setattr(time, "time", lambda: real() - 86400)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)  # as the kernel has it then
        psutil._pslinux.BOOT_TIME = 0.0

    own.at |= {1: back}
    try:
        train(workspace, *WORDS, FAULT, "trainer.max_epochs=3")
        assert process_alive(mine)
    finally:
        psutil._pslinux.BOOT_TIME = None
    assert not process_alive(mine[:-1]) and not process_alive("1@") and not process_alive("")
    run = workspace.only_run()
    assert run.info.status == "FINISHED" and len(workspace.client().get_metric_history(run.info.run_id, "val/nme")) == 3


@pytest.mark.long
def test_a_killed_worker_is_told_and_the_run_goes_on(workspace: Workspace) -> None:
    words = (*WORDS, "augment=albumentations", "data.workers=2", "trainer.max_epochs=400")
    process = workspace.start("flr.train", *words)
    import psutil

    for _ in range(2400):
        assert process.poll() is None, process.communicate()[1][-3000:]
        if list(workspace.outputs.glob("runs/*/checkpoints/last.ckpt")):
            break
        time.sleep(0.02)
    for _ in range(1000):  # one that has just given its last faces is missed by nobody
        if process.poll() is not None:
            break
        for worker in psutil.Process(process.pid).children():
            worker.kill()
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "worker" in err.splitlines()[-1]
    # torch's DataLoader may report the death of a second worker again, as an exception that Python ignores.
    assert "Traceback" not in err.partition("Exception ignored in")[0]
    run = workspace.only_run()
    assert run.info.status == "FAILED"
    folder = workspace.folder(run.info.run_id)
    epochs = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 2
    workspace.run("flr.train", f"run={folder}", f"trainer.max_epochs={epochs}")
    assert workspace.only_run().info.status == "FINISHED"
