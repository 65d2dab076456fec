"""The queue of a run against a real store: what the store can never accept blocks nothing behind it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from flr.sweeps.record import SweepRecord
from flr.tracking.queue import OfflineQueue


@pytest.fixture
def client(tmp_path: Path, empty_database: Path) -> MlflowClient:
    shutil.copy(empty_database, tmp_path)
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def queue(client: MlflowClient, tmp_path: Path) -> OfflineQueue:
    experiment = client.create_experiment("flr", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    return OfflineQueue(client, "", run.info.run_id, tmp_path / "queue")


def test_items_that_can_never_be_sent_are_dropped(
    queue: OfflineQueue, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_image = tmp_path / "cut.png"
    no_image.write_bytes(b"\x89PNG")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "good.png")
    image = {"key": "validation", "step": 0, "time": 0}
    queue.enqueue("file", path=str(tmp_path / "gone.ckpt"), folder=None)
    queue.enqueue("image", path=str(no_image), **image)
    queue.enqueue("metrics", rows=[["val//nme", 1.0, 0, 0], ["val/nme", 2.0, 0, 0], ["val/nme", 1.0, 0, 1]])
    queue.enqueue("params", values={"seed": "1", "a//b": "2"})
    queue.enqueue("tag", key="a//b", value="")
    queue.enqueue("image", path=str(tmp_path / "good.png"), **image)
    run = client.get_run(queue.run_id)
    assert run.data.metrics == {"val/nme": 1.0} and run.data.params == {"seed": "1"}
    assert [item.path for item in client.list_artifacts(queue.run_id)] == ["images"]
    assert not queue.items and not queue.offline and not queue.folder.exists()
    lines = capsys.readouterr().err.splitlines()
    dropped = [line.split("goes without ")[1].split(":")[0] for line in lines if "goes without" in line]
    expected = ["file", "image", "metrics val//nme", "params a//b", "tag a//b"]
    assert [word for word, line in zip(expected, dropped, strict=True) if line.startswith(word)] == expected


def test_items_of_a_deleted_run_wait_for_it(queue: OfflineQueue, client: MlflowClient) -> None:
    client.delete_run(queue.run_id)
    queue.enqueue("metrics", rows=[["val/nme", 2.0, 0, 0]])
    assert queue.offline and queue.items
    client.restore_run(queue.run_id)
    assert queue.flush() and client.get_run(queue.run_id).data.metrics == {"val/nme": 2.0}


def test_a_finished_run_without_a_test_is_no_finished_job(queue: OfflineQueue, client: MlflowClient) -> None:
    client.set_terminated(queue.run_id, "FINISHED")
    job = {"run": queue.run_id, "job": "seed=0", "reused": False}
    record = SimpleNamespace(tracker=SimpleNamespace(client=client))
    row = SweepRecord._row(record, job, "", True)  # type: ignore[arg-type]
    assert (row.exit_code, row.reason) == (1, "no test/nme")
    client.log_metric(queue.run_id, "test/nme", 5.0)
    row = SweepRecord._row(record, job, "", True)  # type: ignore[arg-type]
    assert (row.exit_code, row.reason, row.test) == (0, "", 5.0)
