"""Model versions: in the registry of a real store, loaded by MLflow where there is no flr."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path

import mlflow
import numpy as np
import pytest
import sqlalchemy
from mlflow import MlflowClient

from flr.inference.predictor import Predictor
from flr.tracking.connection import connect
from flr.tracking.registry import register, update_best_alias
from tests.conftest import MODEL as NAME
from tests.conftest import SERVER, Workspace

ALONE = """
import json, os, sys
sys.path += json.loads(os.environ["SITE"])
try:
    import flr.config
    sys.exit("flr is here")
except ImportError:
    sys.modules.pop("flr", None)
import mlflow, numpy as np
mlflow.set_tracking_uri(os.environ["URI"])
model = mlflow.pyfunc.load_model(os.environ["MODEL"])
import flr
image = np.load("image.npy")
np.save("given.npy", model.predict(image, params={"boxes": [20, 20, 90, 80, 10, 30, 60, 95]}))
np.save("found.npy", model.predict(image))
print(json.dumps({"flr": flr.__file__, "modules": [name for name in sys.modules if name.startswith("flr.")]}))
"""


def versions(client: MlflowClient, name: str = NAME) -> list:
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))


def test_a_finished_run_becomes_a_version(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    client, run = workspace.client(), workspace.client().get_run(run_id)
    (version,) = versions(client)
    assert version.run_id == run_id and client.get_registered_model(NAME).aliases == {"best": version.version}
    tags = version.tags
    best = min(row.value for row in client.get_metric_history(run_id, "val/nme"))
    assert float(tags["val/nme"]) == pytest.approx(best, rel=1e-4)
    for name in ("test/nme", "test/fr8", "test/auc8"):
        logged = client.get_metric_history(run_id, name)[0].value  # of training; a later test measures the latency anew
        assert float(tags[name]) == pytest.approx(logged, rel=1e-4), name
    for name in ("protocol", "model", "data", "seed", "commit"):
        assert tags[name] == run.data.tags[f"flr.{name}"]
    assert tags["model.widths"] == "[8, 8, 8, 8]"
    # One copy of the weights, and no optimiser's state beside them.
    assert [item.path for item in client.list_artifacts(run_id, "checkpoints") if item.path.endswith(".ckpt")] == [
        "checkpoints/best.ckpt"
    ]


@pytest.mark.long
def test_it_loads_where_there_is_no_flr(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run_id = trained
    connect(workspace.uri)  # MLflow looks models:/ up in the registry that the process named last
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    requirements = (folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in requirements)
    assert str(Path.cwd()) not in (folder / "MLmodel").read_text() + (folder / "python_env.yaml").read_text()
    image = np.random.default_rng(0).integers(0, 255, (110, 100, 3)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    # Neither the checkout nor the editable install is on the path of an isolated interpreter without site.
    site = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        "SITE": json.dumps(site),
        "URI": workspace.uri,
        "MODEL": f"models:/{NAME}@best",
        "PATH": os.environ["PATH"],
    } | {key: value for key, value in workspace.env.items() if key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr
    message = json.loads(done.stdout.splitlines()[-1])
    assert "flr.zip" in message["flr"]
    predictor = Predictor.load(workspace.folder(run_id) / "checkpoints" / "best.ckpt")
    expected = predictor([image] * 2, np.array([[20, 20, 90, 80], [10, 30, 60, 95]]))
    np.testing.assert_allclose(np.load(tmp_path / "given.npy"), expected, atol=1e-3)
    assert np.load(tmp_path / "found.npy").shape == (0, 68, 2)  # no face in noise
    # All that was imported on the way is named, pinned.
    named = {line.partition("==")[0] for line in requirements}
    of = packages_distributions()
    for name in message["modules"]:
        path = Path(__file__).parents[2] / name.replace(".", "/")
        source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        for node in ast.parse(source.read_text()).body:
            words = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            words += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for package in {word.partition(".")[0] for word in words} - set(sys.stdlib_module_names) - {"flr"}:
                assert set(of[package]) & named, f"{name} imports {package}, which requirements.txt lacks"


def test_a_version_is_a_run_to_evaluate(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    for reference in (f"models:/{NAME}@best", f"models:/{NAME}/1", f"models:/{NAME}/latest"):
        done = workspace.run("flr.evaluate", f"run={reference}")
        assert done.stdout.strip().endswith(str(workspace.folder(run_id) / "evaluation.json"))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (f"models:/{NAME}@bst", "has the alias 'bst' (did you mean 'best'?)"),
        ("models:/nobody@best", "nobody"),
        (f"models:/{NAME}", "name a model version"),
    ],
    ids=range(3),  # NAME may differ between workers
)
def test_no_such_version_is_told(trained: tuple[Workspace, str], reference: str, words: str) -> None:
    line = trained[0].refuse("flr.evaluate", f"run={reference}")
    assert words in line and f"run={reference}" in line


def test_a_model_name_that_no_registry_takes_is_refused(workspace: Workspace) -> None:
    assert "letters" in workspace.refuse("flr.train", "tracking.register=a/b")


@pytest.mark.sqlite("a trigger in the database")
def test_a_registry_that_fails_fails_no_run(workspace: Workspace) -> None:
    workspace.copy_database("flr.train")
    with sqlalchemy.create_engine(workspace.uri).begin() as database:
        database.execute(sqlalchemy.text(
            "CREATE TRIGGER full BEFORE INSERT ON model_versions BEGIN SELECT RAISE(ABORT, 'no room'); END"
        ))  # fmt: skip
    done = workspace.train("trainer.max_epochs=1")
    assert workspace.only_run().info.status == "FINISHED"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("flr: ")]
    assert "no model version" in line and "Traceback" not in done.stderr


# -- the alias ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[MlflowClient, str, str]:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder)
    uri = SERVER or f"sqlite:///{folder}/mlflow.db"
    client = connect(uri)
    return client, uri, client.create_experiment("store", None if SERVER else (folder / "artifacts").as_uri())


def add(store: tuple[MlflowClient, str, str], name: str, protocol: str, nme: float | None) -> str:
    client, _, experiment = store
    tags = {"protocol": protocol} | ({} if nme is None else {"val/nme": f"{nme:.5g}"})
    run = client.create_run(experiment).info
    version = client.create_model_version(name, run.artifact_uri, run.run_id, tags=tags).version
    update_best_alias(client, name, protocol)
    return str(version)


def holder(client: MlflowClient, name: str) -> str | None:
    found = client.get_registered_model(name).aliases.get("best")
    return None if found is None else str(found)


def test_best_has_the_lowest_error_of_its_protocol(store: tuple[MlflowClient, str, str]) -> None:
    client, name = store[0], "net"
    client.create_registered_model(name)
    add(store, name, "P", None)
    assert holder(client, name) is None
    first = add(store, name, "P", 5.0)
    assert holder(client, name) == first
    add(store, name, "P", 10.0)
    assert holder(client, name) == first  # by number, not by letters
    other = add(store, name, "Q", 1.0)
    assert holder(client, name) == first  # another protocol's error is no better one
    second = add(store, name, "P", 4.5)
    assert holder(client, name) == second
    client.set_registered_model_alias(name, "best", other)  # a person's choice
    add(store, name, "P", 0.1)
    assert holder(client, name) == other
    third = add(store, name, "Q", 0.9)
    assert holder(client, name) == third
    client.delete_model_version(name, third)
    add(store, name, "Q", 2.0)
    assert holder(client, name) == other


def at_once(uri: str, experiment: str, name: str, errors: Sequence[float], folder: Path) -> None:
    """Finished runs that register at the same moment."""
    (folder / "best.ckpt").write_bytes(b"weights")

    def job(nme: float) -> None:
        client = MlflowClient(uri)
        run_id = client.create_run(experiment).info.run_id
        client.log_artifact(run_id, str(folder / "best.ckpt"), "checkpoints")
        register(client, uri, run_id, name, 68, {"protocol": "P", "val/nme": str(nme)}, ())

    with ThreadPoolExecutor(len(errors)) as pool:
        list(pool.map(job, errors))
    client = MlflowClient(uri)
    found = {str(one.version): float(one.tags["val/nme"]) for one in versions(client, name)}
    assert sorted(found.values()) == sorted(errors)
    assert found[str(holder(client, name))] == min(errors)


def test_jobs_that_end_at_once_all_register(store: tuple[MlflowClient, str, str], tmp_path: Path) -> None:
    at_once(store[1], store[2], "crowd", [5, 3, 4, 6], tmp_path)
