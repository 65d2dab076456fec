"""What only a server with accounts shows: who is refused, what is kept of a password, many runs at once."""

import csv
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from tests import team
from tests.conftest import SERVER, SMALL_SET, TINY, Workspace
from tests.test_train import artifacts

pytestmark = pytest.mark.skipif(not SERVER, reason="needs a team's server: make test-team")

AT_ONCE = 20


def accounts(uri: str | None = SERVER) -> Any:
    """The admin's hand on them."""
    from mlflow.server import get_app_client  # seconds, for a test that is mostly skipped

    return get_app_client("basic-auth", tracking_uri=uri)


@pytest.fixture
def member() -> dict[str, str]:
    """The environment of a new user without rights of its own."""
    name, password = f"user-{uuid4().hex[:8]}", f"secret-{uuid4().hex}"
    accounts().create_user(name, password)
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def allow(member: dict[str, str], experiment_id: str, permission: str) -> None:
    accounts().grant_user_permission(member["MLFLOW_TRACKING_USERNAME"], "experiment", experiment_id, permission)


def test_who_is_not_known_is_refused_before_any_work(workspace: Workspace) -> None:
    words = [*TINY, *SMALL_SET]
    for module in ("flr.train", "flr.compare"):
        line = workspace.refuse(
            module, *(words if module == "flr.train" else []), MLFLOW_TRACKING_PASSWORD="not-mine-at-all"
        )
        assert "does not know admin" in line and SERVER in line and "MLFLOW_TRACKING_PASSWORD" in line
        assert "not-mine-at-all" not in line
    nobody = dict.fromkeys(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), "")
    assert "wants to know who you are" in workspace.refuse("flr.train", *words, **nobody)
    assert "wants to know who you are" in workspace.refuse("flr.evaluate", "run=0123456789abcdef", **nobody)
    assert not (workspace.outputs / "runs").exists()


@pytest.mark.parametrize("permission", ["READ", "DENY"])
def test_who_may_not_write_is_refused_before_any_work(
    workspace: Workspace, member: dict[str, str], permission: str
) -> None:
    client = workspace.client()
    experiment_id = client.create_experiment(workspace.experiment)
    if permission == "DENY":  # READ is what an account has by itself on this server
        allow(member, experiment_id, permission)
    for words in ([], ["-m", "seed=0,1"]):
        line = workspace.refuse("flr.train", *words, *TINY, *SMALL_SET, **member)
        assert f"lacks the permission for tracking.experiment={workspace.experiment}" in line and "ask an admin" in line
    assert client.search_runs([experiment_id]) == [] and not (workspace.outputs / "runs").exists()


def test_a_result_that_may_not_be_written_is_told(workspace: Workspace, member: dict[str, str]) -> None:
    workspace.train("trainer.max_epochs=1")
    run = workspace.only_run()
    words = ["flr.evaluate", f"run={run.info.run_id}"]
    assert "the permission for writing to run" in workspace.refuse(*words, **member)
    allow(member, run.info.experiment_id, "DENY")
    assert "the permission for run=" in workspace.refuse(*words, **member)


def test_a_member_trains_in_the_experiment_of_another(workspace: Workspace, member: dict[str, str]) -> None:
    workspace.train("trainer.max_epochs=1")
    allow(member, workspace.only_run().info.experiment_id, "EDIT")
    name = member["MLFLOW_TRACKING_USERNAME"]
    done = workspace.train("trainer.max_epochs=1", "seed=1", f"tracking.register={name}", **member)
    assert f"model models:/{name}/1" in done.stdout and "flr: " not in done.stderr
    assert [run.info.status for run in workspace.stored()] == ["FINISHED"] * 2
    # A sweep that comes to nothing deletes its run, or leaves it where only its experiment's owner may delete.
    assert "no config" in workspace.refuse("flr.train", "-m", *TINY, "model=nosuch,sepconv", **member)


def test_a_password_is_kept_nowhere(workspace: Workspace, member: dict[str, str], tmp_path: Path) -> None:
    """Neither from the environment, by which a run also goes on, nor from an address, which is refused."""
    secret = member["MLFLOW_TRACKING_PASSWORD"]
    printed = [*workspace.train("trainer.max_epochs=1", **member)]
    run_id = workspace.only_run().info.run_id
    printed += workspace.run("flr.train", f"run={run_id}", "trainer.max_epochs=2", "callbacks.progress=null", **member)
    with_password = SERVER.replace("://", f"://{member['MLFLOW_TRACKING_USERNAME']}:{secret}@")
    words = [*TINY, *SMALL_SET]
    printed.append(workspace.refuse("flr.train", *words, f"tracking.uri={with_password}"))
    printed.append(workspace.refuse("flr.train", "-m", *words, "seed=0,1", f"tracking.uri='{with_password}'"))
    printed.append(workspace.refuse("flr.train", *words, MLFLOW_TRACKING_URI=with_password))
    run = workspace.client().get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["tracking.uri"] == SERVER
    client = MlflowClient(SERVER)
    for name in artifacts(client, run_id):
        client.download_artifacts(run_id, name, str(tmp_path))
    folders = [path for folder in (tmp_path, workspace.outputs) for path in folder.rglob("*") if path.is_file()]
    assert len(folders) > 30
    for path in folders:
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in "".join(printed) + json.dumps(run.to_dictionary())


@pytest.mark.timeout(1200)
def test_twenty_runs_at_once_lose_nothing(workspace: Workspace) -> None:
    """Whole trainings in processes of their own: every point, parameter and file of each is there, and its own."""
    words = [*TINY, *SMALL_SET, "trainer.max_epochs=5", "trainer.log_every_n_steps=1"]
    workspace.run("flr.train", *words, "seed=99")  # makes the caches; what one run alone leaves
    alone = workspace.only_run()
    started = [workspace.start("flr.train", *words, f"seed={seed}") for seed in range(AT_ONCE)]
    try:
        for process in started:
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0 and "metrics wait" not in err, err[-3000:]
    finally:
        for process in started:
            process.kill()
    client = workspace.client()

    def left(run) -> dict:
        """Everything of a run but its values."""
        steps = {
            name: [row.step for row in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        pictures = {name for name in artifacts(client, run.info.run_id) if not name.startswith("images/")}
        return {"steps": steps, "params": set(run.data.params), "files": pictures}

    expected, found = left(alone), workspace.stored()[1:]
    assert len(expected["steps"]["train/loss"]) >= 5 and len(expected["steps"]["val/nme"]) == 5
    assert {run.data.tags["flr.seed"] for run in found} == {str(seed) for seed in range(AT_ONCE)}
    for run in found:
        assert run.info.status == "FINISHED" and left(run) == expected
        folder = workspace.folder(run.info.run_id)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert run.data.metrics["test/nme"] == evaluation["metrics"]["nme"]
        with (folder / "errors.csv").open() as file:
            own = {row["face"]: row["nme"] for row in csv.DictReader(file)}
        kept = Path(client.download_artifacts(run.info.run_id, "errors.csv", str(workspace.path / "kept")))
        with kept.open() as file:
            assert {row["face"]: row["nme"] for row in csv.DictReader(file)} == own
        kept.unlink()
    assert len({run.data.metrics["test/nme"] for run in found}) == AT_ONCE
    versions = Counter(version.run_id for version in client.search_model_versions("name = 'synthetic-heatmap_fpn'"))
    assert all(versions[run.info.run_id] == 1 for run in found)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may pass, as it must where root runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="flr-team-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def processes(*words: str) -> list[str]:
    """The command lines that have one of some words."""
    listed = subprocess.run(["ps", "-Ao", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if any(word in line for word in words)]


def test_the_script_stops_cleanly_and_goes_on(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = "of-this-test-alone"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    for given, before in ((password, {"Default"}), ("", {"Default", "kept"})):
        process, uri = team.start(open_folder, MLFLOW_AUTH_ADMIN_PASSWORD=given)
        try:
            client = MlflowClient(uri)
            assert {found.name for found in client.search_experiments()} == before
            if given:
                client.create_experiment("kept")
                accounts(uri).create_user("member", password[::-1])
            with pytest.MonkeyPatch.context() as another:  # writes where it is told nothing else
                another.setenv("MLFLOW_TRACKING_USERNAME", "member")
                another.setenv("MLFLOW_TRACKING_PASSWORD", password[::-1])
                client.create_run(client.get_experiment_by_name("kept").experiment_id)
            assert len(processes(str(open_folder))) >= 3 and not processes(password)
            database = re.findall(r"postgresql\+psycopg2:\S+", " ".join(processes(str(open_folder))))[0]
            without = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
            line = subprocess.run(
                ["psql", database.replace("+psycopg2", ""), "-w", "-c", ""], env=without, capture_output=True
            )
            assert b"no password supplied" in line.stderr
        finally:
            code = team.stop(process)
        assert code == 130 and not processes(str(open_folder), uri.rpartition(":")[2])
    kept = [path for path in (open_folder / "team").iterdir() if path.is_file()]
    assert {path.name for path in kept} == {"auth.ini", "flask.key", "pgpass"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    assert password not in (open_folder / "server.log").read_text()
