"""What only a server with accounts shows: who is refused, what is kept of a password, many runs at once."""

import csv
import json
import os
import signal
import subprocess
from collections import defaultdict
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.server import get_app_client

from tests import team
from tests.conftest import SERVER, SMALL_SET, TINY, Workspace
from tests.test_train import artifacts

pytestmark = pytest.mark.skipif(not SERVER, reason="needs a team's server: make test-team")

AT_ONCE = 20


@pytest.fixture
def member() -> dict[str, str]:
    """The environment of a new user without rights of its own."""
    name, password = f"user-{uuid4().hex[:8]}", f"secret-{uuid4().hex}"
    get_app_client("basic-auth", tracking_uri=SERVER).create_user(name, password)
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def limit(member: dict[str, str], experiment_id: str, permission: str) -> None:
    auth = get_app_client("basic-auth", tracking_uri=SERVER)
    auth.grant_user_permission(member["MLFLOW_TRACKING_USERNAME"], "experiment", experiment_id, permission)


def test_who_is_not_known_is_refused_before_any_work(workspace: Workspace) -> None:
    words = [*TINY, *SMALL_SET]
    for module in ("flr.train", "flr.compare"):
        line = workspace.refuse(module, *(words if module == "flr.train" else []), MLFLOW_TRACKING_PASSWORD="not-mine-at-all")
        assert "does not know admin" in line and SERVER in line and "MLFLOW_TRACKING_PASSWORD" in line
        assert "not-mine-at-all" not in line
    nobody = dict.fromkeys(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), "")
    assert "wants to know who you are" in workspace.refuse("flr.train", *words, **nobody)
    assert "wants to know who you are" in workspace.refuse("flr.evaluate", "run=0123456789abcdef", **nobody)
    assert not (workspace.outputs / "runs").exists()


@pytest.mark.parametrize("permission", ["READ", "NO_PERMISSIONS"])
def test_who_may_not_write_is_refused_before_any_work(
    workspace: Workspace, member: dict[str, str], permission: str
) -> None:
    client = workspace.client()
    experiment_id = client.create_experiment(workspace.experiment)
    limit(member, experiment_id, permission)
    for words in ([], ["-m", "seed=0,1"]):
        line = workspace.refuse("flr.train", *words, *TINY, *SMALL_SET, **member)
        assert f"lacks the permission for tracking.experiment={workspace.experiment}" in line and "ask an admin" in line
    assert client.search_runs([experiment_id]) == [] and not (workspace.outputs / "runs").exists()


def test_a_result_that_may_not_be_written_is_told(workspace: Workspace, member: dict[str, str]) -> None:
    workspace.train("trainer.max_epochs=1")
    run = workspace.only_run()
    for permission, said in (("READ", "the permission for writing to run"), ("NO_PERMISSIONS", "the permission for run=")):
        limit(member, run.info.experiment_id, permission)
        assert said in workspace.refuse("flr.evaluate", f"run={run.info.run_id}", **member)


def test_a_member_trains_in_the_experiment_of_another(workspace: Workspace, member: dict[str, str]) -> None:
    workspace.train("trainer.max_epochs=1")
    done = workspace.train("trainer.max_epochs=1", "seed=1", **member)
    assert "model models:/synthetic-heatmapfpn/" in done.stdout and "flr: " not in done.stderr
    assert [run.info.status for run in workspace.stored()] == ["FINISHED"] * 2
    # A sweep that comes to nothing deletes its run, or leaves it where only its experiment's owner may delete.
    assert "does not fit" in workspace.refuse("flr.train", "-m", *TINY, "seed=0,1", "model.widths=3", **member)


def test_a_password_is_kept_nowhere(workspace: Workspace, member: dict[str, str], tmp_path: Path) -> None:
    """Neither from the environment, by which a run also goes on, nor from an address, which is refused."""
    secret = member["MLFLOW_TRACKING_PASSWORD"]
    told = [*workspace.train("trainer.max_epochs=1", **member)]
    run_id = workspace.only_run().info.run_id
    told += workspace.run("flr.train", f"run={run_id}", "trainer.max_epochs=2", "callbacks.progress=null", **member)
    with_password = SERVER.replace("://", f"://{member['MLFLOW_TRACKING_USERNAME']}:{secret}@")
    words = [*TINY, *SMALL_SET]
    told.append(workspace.refuse("flr.train", *words, f"tracking.uri={with_password}"))
    told.append(workspace.refuse("flr.train", "-m", *words, "seed=0,1", f"tracking.uri='{with_password}'"))
    told.append(workspace.refuse("flr.train", *words, MLFLOW_TRACKING_URI=with_password))
    run = workspace.client().get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["tracking.uri"] == SERVER
    client = MlflowClient(SERVER)
    for name in artifacts(client, run_id):
        client.download_artifacts(run_id, name, str(tmp_path))
    folders = [path for folder in (tmp_path, workspace.outputs) for path in folder.rglob("*") if path.is_file()]
    assert len(folders) > 30
    for path in folders:
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in "".join(told) + json.dumps(run.to_dictionary())


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
        steps = {name: [row.step for row in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
        pictures = {name for name in artifacts(client, run.info.run_id) if not name.startswith("images/")}
        return {"steps": steps, "params": set(run.data.params), "files": pictures, "inputs": len(run.inputs.dataset_inputs)}

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
    versions = defaultdict(int)
    for version in client.search_model_versions("name = 'synthetic-heatmapfpn'"):
        versions[version.run_id] += 1
    assert all(versions[run.info.run_id] == 1 for run in found)


def test_the_script_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    for folder in [tmp_path, *tmp_path.parents[:2]]:
        folder.chmod(0o711)  # where root runs the tests, PostgreSQL's own user must pass
    account = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "of-this-test-alone"}
    for starts in range(2):
        first = {"MLFLOW_AUTH_ADMIN_PASSWORD": account["MLFLOW_TRACKING_PASSWORD"] if starts == 0 else ""}
        process, uri = team.start(tmp_path, **first)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for key, value in account.items():
                    patch.setenv(key, value)
                client = MlflowClient(uri)
                names = [found.name for found in client.search_experiments()]
                assert names == ["Default"] * (1 - starts) or names == ["kept", "Default"]
                if starts == 0:
                    client.create_experiment("kept")
            about = subprocess.run(["ps", "-Ao", "pid,args"], capture_output=True, text=True).stdout
            assert account["MLFLOW_TRACKING_PASSWORD"] not in about
            mine = [line for line in about.splitlines() if str(tmp_path) in line]
            assert any("postgres" in line for line in mine) and any("mlflow" in line for line in mine)
        finally:
            code = team.stop(process)
        assert code == 130
        about = subprocess.run(["ps", "-Ao", "pid,args"], capture_output=True, text=True).stdout
        assert not [line for line in about.splitlines() if str(tmp_path) in line or uri.rpartition(":")[2] in line]
    secrets = [path for path in (tmp_path / "team").iterdir() if path.is_file()]
    assert {path.name for path in secrets} == {"auth.ini", "flask.key", "pgpass"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets)
    assert account["MLFLOW_TRACKING_PASSWORD"] not in (tmp_path / "server.log").read_text()
    # PostgreSQL itself wants its password.
    refused = subprocess.run([str(team.SCRIPT)], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("team_tracking: no folder")


@pytest.mark.parametrize("password", ["", "short"])
def test_the_script_wants_a_password_of_the_admin(tmp_path: Path, password: str) -> None:
    env = {**os.environ, "MLFLOW_AUTH_ADMIN_PASSWORD": password, "BIN": str(Path(os.sys.executable).parent)}
    done = subprocess.run([str(team.SCRIPT), str(tmp_path / "new")], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "set MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr
    assert not (tmp_path / "new").exists()
