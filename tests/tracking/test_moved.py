"""A run in an output folder that was moved or copied."""

import json
import shutil
from pathlib import Path

import pytest

from flr.errors import UserError
from flr.module.checkpoints import RunFolder, find_run
from flr.tracking.connection import connect, get_run
from flr.tracking.queue import OfflineQueue
from tests.conftest import Workspace

pytestmark = pytest.mark.sqlite("the database is in the output folder")


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_the_given_folder_and_store_win(trained: tuple[Workspace, str], tmp_path: Path, moved: bool) -> None:
    workspace, run_id = trained
    first, place = tmp_path / "first", tmp_path / "place"
    shutil.copytree(workspace.outputs, first)
    connect(f"sqlite:///{first}/mlflow.db")
    (shutil.move if moved else shutil.copytree)(first, place)
    folder, uri = RunFolder(place / "runs" / run_id), f"sqlite:///{place}/mlflow.db"
    assert folder.store(f"sqlite:///{tmp_path}/none.db") == folder.store(uri) == uri
    client = connect(uri)
    run = get_run(client, run_id)
    assert run.artifacts == f"{(place / 'artifacts').as_uri()}/flr/{run_id}/artifacts"
    assert run.tags["folder"] == str(folder.path) and find_run(run_id, uri, tmp_path / "other").path == folder.path
    assert client.get_experiment_by_name("flr").artifact_location == (place / "artifacts" / "flr").as_uri()
    assert first.exists() is not moved and not (tmp_path / "none.db").exists()
    if not moved:
        assert get_run(connect(f"sqlite:///{first}/mlflow.db"), run_id).tags["folder"] == str(first / "runs" / run_id)


def test_a_run_that_no_store_knows_is_refused(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run_id = trained
    folder = RunFolder(tmp_path / "runs" / run_id)
    shutil.copytree(workspace.folder(run_id), folder.path)
    note = folder.note() | {"uri": f"sqlite:///{tmp_path}/gone/mlflow.db"}
    (folder.path / "run.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"knows run .*; set tracking.uri"):
        folder.store(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "gone").exists()


def test_queued_files_of_a_moved_run_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "abc"
    (folder / "queue").mkdir(parents=True)
    item = {"kind": "file", "path": "/gone/runs/abc/config.yaml", "folder": None}
    (folder / "queue" / "items-1.jsonl").write_text(json.dumps(item) + "\n")
    queue = OfflineQueue.from_file(None, "", "abc", folder / "queue" / "items-1.jsonl")  # type: ignore[arg-type]
    assert queue.items == [item | {"path": str(folder / "config.yaml")}]
