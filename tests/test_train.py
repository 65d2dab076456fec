"""The main job through its real commands: train, track, evaluate."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import mlflow
import numpy as np
import pytest
import torch

from flr.data.boxes import BoxPolicy
from flr.data.crops import CropSettings
from flr.evaluation.report import show_next
from flr.landmarks.definition import parse_scheme
from flr.landmarks.scheme import IBUG68, Scheme, get_scheme
from flr.module import landmark_module
from tests.conftest import SMALL_SET, TINY, Server, Workspace
from tests.fakes import ibug as fake_ibug
from tests.tracking.test_registry import at_once

ROOT = Path(__file__).parent.parent


def artifacts(client, run_id: str) -> set[str]:
    found, folders = set(), [None]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            folders.append(item.path) if item.is_dir else found.add(item.path)
    return found


def test_a_run_leaves_everything(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    client, run = workspace.client(), workspace.client().get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in (
        "train/loss", "train/images_per_second", "lr", "val/nme", "val/mse", "val/mae", "val/loss", "val/baseline_nme",
        "test/nme", "test/nme_interocular", "test/nme_interpupil", "test/nme_box", "test/fr8", "test/auc8", "test/fr10",
        "test/auc10", "test/mse", "test/mae", "test/baseline_nme",
    ):  # fmt: skip
        assert name in run.data.metrics, name
    assert [m.step for m in client.get_metric_history(run_id, "val/nme")] == [2, 5]
    params = run.data.params
    assert params["model.widths"] == "[8, 8, 8, 8]" and params["seed"] == "0"
    assert "trainer.max_epochs=2" in params["overrides"] and len(params["overrides"]) > 250
    assert params["version.torch"] == torch.__version__ and params["hardware.cores"]
    tags = run.data.tags
    assert {"flr.commit", "flr.dirty", "flr.lock", "flr.protocol", "flr.seed", "flr.model"} <= set(tags)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest in tags["flr.protocol"]
    names = artifacts(client, run_id)
    assert {
        "config.yaml", "run.json", "ced.png", "worst_faces.png", "evaluation.json", "errors.csv",
        "checkpoints/best.ckpt",
    } <= names  # fmt: skip
    assert {"faces.png", "curves.png"} <= names
    assert sorted(name for name in names if name.startswith("validation/")) == [
        "validation/epoch_001.png",
        "validation/epoch_002.png",
    ]
    assert tags["mlflow.source.name"] and tags["mlflow.user"] and tags["flr.model"] == "heatmap_fpn"
    assert tags["flr.objective"] == "softargmax"
    assert run.info.run_name.startswith("heatmap_fpn synthetic") and run.info.run_name.endswith("seed 0")
    assert "path=faces.png" in tags["mlflow.note.content"] and "NME of the mean face" in tags["mlflow.note.content"]
    assert float(params["cost.parameters"]) > 0
    assert sum(name.startswith("images/validation") and name.endswith(".png") for name in names) == 2


def test_the_files_agree_with_the_metrics(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    folder, metrics = workspace.folder(run_id), workspace.client().get_run(run_id).data.metrics
    with (folder / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and len(rows[0]) == 6 + 68
    errors = [[float(v) for k, v in row.items() if k.startswith("error_")] for row in rows]
    nmes = [100 * sum(e) / len(e) / float(row["normaliser"]) for e, row in zip(errors, rows, strict=True)]
    assert math.isclose(sum(nmes) / 9, metrics["test/nme"], rel_tol=1e-4)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert math.isclose(evaluation["metrics"]["nme"], metrics["test/nme"], rel_tol=1e-9)
    assert evaluation["counts"] == {"train": 48, "val": 11, "test": 9}
    # Along and across a line are two sides of a triangle whose third is the error; as metrics they would bury the rest.
    told = evaluation["metrics"]
    along, across = told["line/inner_lip/along"], told["line/inner_lip/across"]
    assert max(along, across) > 0 and along + across > 0.5 * told["region/inner_lip/nme"]  # which has the corners too
    assert not any(name.startswith(("test/line/", "test/point/")) for name in metrics)


def test_a_checkpoint_is_plain_and_whole(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    best = torch.load(workspace.folder(run_id) / "checkpoints" / "best.ckpt", weights_only=True)
    assert parse_scheme(best["flr"]["scheme"]).plain() == IBUG68.plain() and best["flr"]["config"]["model"]["path"] == 8
    assert {key.split(".")[0] for key in best["state_dict"]} == {"net", "ema_net", "mean_face"}


@pytest.mark.parametrize("form", ["id", "folder", "checkpoint"])
def test_evaluate_needs_no_other_word(trained: tuple[Workspace, str], form: str) -> None:
    workspace, run_id = trained
    folder = workspace.folder(run_id)
    run = {"id": run_id, "folder": folder, "checkpoint": folder / "checkpoints" / "best.ckpt"}[form]
    before = json.loads((folder / "evaluation.json").read_text())["metrics"]
    (folder / "evaluation.json").unlink()
    workspace.run("flr.evaluate", f"run={run}")
    after = json.loads((folder / "evaluation.json").read_text())["metrics"]
    # Ranks are no smooth function of the points: two errors that are almost the same may change places.
    assert after.pop("spearman") == pytest.approx(before.pop("spearman"), rel=1e-3)
    assert after == pytest.approx(before, rel=1e-5)


def test_evaluate_on_another_set_and_with_its_mirror(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run_id = trained
    fake_ibug.write(tmp_path / "300w", parts={"afw": 12, "helen/testset": 7}, seed=1)
    done = workspace.run("flr.evaluate", f"run={run_id}", "data=ibug", f"data.root={tmp_path / '300w'}", "tta=true")
    written = Path(done.stdout.strip().splitlines()[-1])
    result = json.loads(written.read_text())
    assert result["faces"] == 7 and result["form"].startswith("ibug[") and "helen_test/nme" in result["metrics"]
    with (written.parent / "errors.csv").open() as file:
        assert {row["face"].split("/")[0] for row in csv.DictReader(file)} == {"helen"}
    logged = workspace.client().get_run(run_id).data.metrics
    assert any(key.endswith("test/nme") and key != "test/nme" for key in logged)


def test_refinement_is_a_second_pass_of_an_evaluation(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    words, found = ["data=synthetic", "data.crop.policy.jitter=0.25", *SMALL_SET], {}
    for refine in (0, 1):
        done = workspace.run("flr.evaluate", f"run={run_id}", *words, f"refine={refine}")
        written = Path(done.stdout.strip().splitlines()[-1])
        result = json.loads(written.read_text())
        assert result["refine"] == refine and ("refine1" in written.parent.name) == (refine == 1)
        assert -1 <= result["metrics"]["spearman"] <= 1
        with (written.parent / "errors.csv").open() as file:
            assert all(float(row["spread"]) > 0 for row in csv.DictReader(file))
        found[refine] = result["metrics"]["nme"]
    assert found[1] != found[0]  # better with a trained model: tests/inference/test_onnx.py


def test_evaluate_another_part(trained: tuple[Workspace, str]) -> None:
    workspace, run_id = trained
    done = workspace.run("flr.evaluate", f"run={run_id}", "split=val")
    result = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
    best = min(m.value for m in workspace.client().get_metric_history(run_id, "val/nme"))
    assert result["faces"] == 11 and result["metrics"]["nme"] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("other", ["last.ckpt", "policy"])
def test_another_protocol_or_checkpoint_never_replaces_a_result(trained: tuple[Workspace, str], other: str) -> None:
    workspace, run_id = trained
    folder = workspace.folder(run_id)
    before = (folder / "evaluation.json").read_text()
    metrics = workspace.client().get_run(run_id).data.metrics["test/nme"]
    if other == "policy":
        words = ["data=synthetic", "data.crop.policy.scale=2", *SMALL_SET]
        done = workspace.run("flr.evaluate", f"run={run_id}", *words)
    else:
        done = workspace.run("flr.evaluate", f"run={folder / 'checkpoints' / 'last.ckpt'}")
    assert Path(done.stdout.strip().splitlines()[-1]).parent != folder
    assert (folder / "evaluation.json").read_text() == before
    assert workspace.client().get_run(run_id).data.metrics["test/nme"] == metrics


def test_real_photos(workspace: Workspace, real_data: Path) -> None:
    workspace.run(
        "flr.train", *TINY, "data=ibug", f"data.root={real_data / '300w'}", "trainer=bf16", "data.batch_size=64",
        "trainer.max_epochs=1", "+trainer.limit_train_batches=4",
    )  # fmt: skip
    run = workspace.only_run()
    assert run.data.metrics["test/baseline_nme"] == pytest.approx(17.7, abs=0.3)  # the mean face, known of this set
    assert run.data.metrics["test/helen_test/nme"] == run.data.metrics["test/nme"]
    assert "helen_train:872" in run.data.tags["flr.protocol"]


@pytest.mark.parametrize(
    ("objective", "optimiser", "schedule"),
    [("mse", "sgd", "step"), pytest.param("wing", "adam", "cosine", marks=pytest.mark.long)],
)
def test_every_optimiser_and_schedule_trains(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, objective: str, optimiser: str, schedule: str
) -> None:
    # The losses of the last step are checked with it, so that none are left at the end of the epoch.
    monkeypatch.setattr(landmark_module, "CHECK_EVERY_N_STEPS", 1)
    words = [word for word in TINY if not word.startswith("model.")]
    workspace.run(
        "flr.train", *words, *SMALL_SET, "model=sepconv_light", f"objective={objective}", f"optim={optimiser}",
        f"schedule={schedule}", "trainer.gradient_clip_val=1", "ema=0", "data.crop.channels=3", "data.scheme=kaggle15",
        "optim.lr=0.001", "trainer.max_epochs=1",
    )  # fmt: skip
    assert "test/nme_interpupil" in workspace.only_run().data.metrics


def test_a_value_that_the_optimizer_refuses_starts_no_run(workspace: Workspace) -> None:
    assert "optim: Invalid learning rate: -1" in workspace.refuse("flr.train", *TINY, *SMALL_SET, "optim.lr=-1")
    assert not (workspace.outputs / "runs").exists()


@pytest.mark.long
def test_two_first_commands_at_once_share_a_new_database(tmp_path: Path, shared_cache: Path) -> None:
    workspace = Workspace(tmp_path, shared_cache, new_database=True)
    code = f"from flr.tracking.connection import connect; connect({workspace.uri!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=workspace.env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
    workspace.train("trainer.max_epochs=1")
    assert workspace.only_run().info.status == "FINISHED"


@pytest.mark.long
def test_a_real_server_keeps_the_run(tmp_path: Path, shared_cache: Path, server: Server) -> None:
    workspace, uri = Workspace(tmp_path, shared_cache, new_database=True), server.uri
    workspace.train("trainer.max_epochs=1", MLFLOW_TRACKING_URI=uri)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(workspace.experiment).experiment_id])
    assert run.info.status == "FINISHED" and "test/nme" in run.data.metrics
    assert "checkpoints/best.ckpt" in artifacts(client, run.info.run_id)
    # A sweep takes that run for one of its jobs and trains the other.
    words = [*TINY, *SMALL_SET, "trainer.max_epochs=1", "seed=0,1"]
    assert run.info.run_id in workspace.run("flr.train", "-m", *words, MLFLOW_TRACKING_URI=uri).stdout
    statuses = {r.info.run_name: r.info.status for r in client.search_runs([run.info.experiment_id])}
    other = run.info.run_name.replace("seed 0", "seed 1")
    assert statuses == dict.fromkeys([run.info.run_name, "sweep seed", other], "FINISHED")
    assert not (workspace.outputs / "mlflow.db").exists()
    # The folder is gone, as on another machine: evaluation works from what the server holds.
    workspace.folder(run.info.run_id).rename(tmp_path / "elsewhere")
    workspace.run("flr.evaluate", f"run={run.info.run_id}", MLFLOW_TRACKING_URI=uri)
    workspace.run("flr.evaluate", "run=models:/synthetic-heatmap_fpn@best", MLFLOW_TRACKING_URI=uri)
    # The registry of a server, from which MLflow loads the net, and to which jobs that end at once all write.
    with patch.object(mlflow.tracking._tracking_service.utils, "_tracking_uri", uri):
        model = mlflow.pyfunc.load_model("models:/synthetic-heatmap_fpn@best")
    image = np.zeros((60, 80, 3), np.uint8)
    assert model.predict(image, params={"boxes": [10, 10, 50, 50]}).shape == (1, 68, 2)
    at_once(uri, run.info.experiment_id, "crowd", [5, 3, 4, 6], tmp_path)


@pytest.mark.long
def test_a_wheel_works_from_another_folder(workspace: Workspace, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("flr-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    where = workspace.run_code(
        "import flr.config.compose; print(flr.config.compose.CONF)", PYTHONPATH=str(tmp_path / "site")
    )
    assert where.strip() == str(tmp_path / "site" / "flr" / "conf")
    workspace.apart("flr.train", *TINY, *SMALL_SET, "trainer.max_epochs=1", PYTHONPATH=str(tmp_path / "site"))
    assert workspace.only_run().data.tags["flr.dirty"] == "unknown"


@pytest.mark.parametrize(
    ("scheme", "source", "ends"),
    [
        ("ibug68", "truth", ""),
        ("wflw98", "truth", ""),
        ("one", "truth", " detector=whole"),
        ("ibug68", "file", " detector=whole"),
    ],
)
def test_the_next_command_names_a_detector_that_works(
    scheme: str, source: str, ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    points = Scheme("one", ("tip",), (), {}, {}, "box") if scheme == "one" else get_scheme(scheme)
    data = SimpleNamespace(scheme=points, crop=CropSettings(64, 1, BoxPolicy(source=source)))
    show_next("0a", "", data)
    assert f"  python -m flr.predict run=0a source=photo.jpg{ends}\n" in capsys.readouterr().out
