"""The benchmarks run, on a little of everything, and leave their record."""

import ast
import importlib
import importlib.util
import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import SMALL_SET, TINY, Workspace
from tests.fakes import celeba as fake_celeba
from tests.fakes import ibug as fake_ibug

sys.path.insert(0, str(Path(__file__).parent.parent))  # they are no part of the package

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("benchmarks/*.py")) + sorted(ROOT.glob("scripts/*.py")), ids=lambda path: path.stem
)
def test_a_script_finds_what_it_imports_of_flr(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flr"):
            module = importlib.import_module(str(node.module))
            missing = [
                name.name
                for name in node.names
                if not hasattr(module, name.name) and not importlib.util.find_spec(f"{node.module}.{name.name}")
            ]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize(
    ("name", "changes", "words", "record"),
    [
        ("metrics", {"FACES": 300, "ROUNDS": 1}, [], "metrics"),
        ("input_path", {"ROUNDS": 1, "SECONDS": 0.1, "BATCH": 8, "SIZE": 48}, [], "input_path"),
        pytest.param(
            "training", {"ROUNDS": 1, "EPOCHS": 1},
            ["data.reader.train=16", "data.reader.val=4", "data.batch_size=8", "data.crop.size=32",
             "model.widths=[8,8]", "model.path=8", "model.blocks=1"], "training_heatmapfpn",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "switches", {"ROUNDS": 1, "STEPS": 1, "MODES": ()},
            ["data.reader.train=8", "data.batch_size=4", "data.crop.size=32", "model.widths=[8,8]", "model.path=8",
             "model.blocks=1"], "switches_heatmapfpn",
            marks=pytest.mark.long,
        ),
        pytest.param("start", {"ROUNDS": 1}, [*TINY, *SMALL_SET], "start", marks=pytest.mark.long),
        pytest.param("tracking", {"ROUNDS": 1, "RUNS": 4, "NETS": 2, "EPOCHS": 2, "FACES": 9}, [], "tracking_sqlite", marks=pytest.mark.long),
        pytest.param("sweep", {"JOBS": 1, "ALONE": 0, "WAYS": {"joblib": (("hydra/launcher=joblib",), 1)}}, [], "sweep", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_benchmark_runs(
    name: str, changes: dict[str, float], words: list[str], record: str,
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    module = importlib.import_module(f"benchmarks.{name}")
    for key, value in changes.items():
        monkeypatch.setattr(module, key, value)
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow sets to the last one used
    if name == "input_path":
        fake_ibug.write(tmp_path / "300w", parts={"afw": 30, "helen/testset": 2})
        words = [f"data.root={tmp_path / '300w'}"]
    if name in ("input_path", "training", "switches"):
        monkeypatch.setattr(module, "keep_memory", lambda: None)  # it would hold for the tests after this one
    if name != "metrics":
        words = [*words, f"paths.cache_dir={shared_cache}"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    written = json.loads((tmp_path / f"{record}.json").read_text())
    assert len(written["contenders"]) >= (2 if name != "sweep" else 1)
    assert written["hardware"]["cpu"] and written["code"]["commit"]
    for figures in written["contenders"].values():
        assert min(figures["rounds"]) > 0


@pytest.mark.long
def test_the_scale_is_of_a_set_with_as_many_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.scale")
    fake_celeba.write(tmp_path / "celeba")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path / "results")
    monkeypatch.setenv("SIZES", "200")  # two batches
    monkeypatch.setattr(sys, "argv", ["benchmark", f"data.root={tmp_path / 'celeba'}"])
    module.main()
    written = json.loads((tmp_path / "results" / "scale.json").read_text())
    assert written["command"] == "python -m benchmarks.scale data.root=DIR"
    (row,) = written["sizes"]
    assert row["faces"] == 200 and row["second"]["prepare s"] < row["first"]["prepare s"]
    assert row["second"]["batch us"] > 0
    assert sorted(path for path in tmp_path.rglob("*") if "results" not in path.parts) == before


@pytest.mark.long
def test_the_speedrun_tells_when_each_goal_was_met(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("benchmarks.speedrun")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(module, "GOALS", (1000.0, 0.001))
    monkeypatch.setattr(sys, "argv", ["benchmark", *TINY, *SMALL_SET, f"paths.cache_dir={workspace.cache}"])
    module.main()
    (row,) = json.loads((tmp_path / "speedrun.json").read_text())["rounds"]
    assert 1 < row["seconds to"]["1000.0 %"] < 200 and row["seconds to"]["0.001 %"] is None
    assert row["val/nme"] > 0 and row["test/nme"] > 0


def test_jitter_is_measured_of_a_given_net(
    trained: tuple[Workspace, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run = trained
    module = importlib.import_module("benchmarks.jitter")
    few = {"FACES": 2, "SECONDS": 0.6, "SIDE": 96, "CUTOFFS": (1.0,), "BETAS": (10.0,), "SPEEDS": (1.0,)}
    for key, value in few.items():
        monkeypatch.setattr(module, key, value)
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", str(workspace.folder(run) / "checkpoints" / "best.ckpt")])
    module.main()
    written = json.loads((tmp_path / "jitter.json").read_text())
    assert written["contenders"]["smoothed"]["jitter"] < 0.5 * written["contenders"]["as found"]["jitter"]
    assert set(written["choice"]) == {"as found", "1, 10, 1"}


def test_what_debias_is_worth_is_measured_of_a_run_without_it(
    trained: tuple[Workspace, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run = trained
    module = importlib.import_module("benchmarks.debias")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", str(workspace.folder(run))])
    monkeypatch.setenv("FLR_CACHE", str(workspace.cache))
    module.main()
    (errors,) = json.loads((tmp_path / "debias.json").read_text())["nme_percent"].values()
    metrics = workspace.client().get_run(run).data.metrics
    assert errors["test"] == pytest.approx(metrics["test/nme"], rel=1e-4)
    assert errors["val"] == pytest.approx(metrics["val/nme"], rel=1e-4)
    for split in ("val", "test"):  # after an epoch, most of the error is the same on all faces
        assert errors[f"{split} moved"] < 0.9 * errors[split]


def test_looks_are_compared_on_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.fairness")
    monkeypatch.setattr(module, "FACES", 24)
    monkeypatch.setattr(module, "YAWS", (0, 90))
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    module.main()
    rows = json.loads((tmp_path / "fairness.json").read_text())["groups"]
    assert rows["adults"]["faces"] + rows["children"]["faces"] == rows["yaw 0 to 90"]["faces"] == 24
    assert rows["skin 1 of 5"]["faces"] == 24 and 0 < rows["no glasses"]["faces"] < 12
    assert 0.5 < rows["all"]["low"] < rows["all"]["mean"] < rows["all"]["high"] < 4
    for form in module.FORMS[1:]:
        pairs = [
            (module.photo(module.FIRST + i, "as drawn")[1], module.photo(module.FIRST + i, form)[1]) for i in range(24)
        ]
        assert all(np.array_equal(drawn.points, other.points) for drawn, other in pairs)
        changed = sum(not np.array_equal(drawn.image, other.image) for drawn, other in pairs)
        assert changed == (rows[form]["faces"] if form.startswith("no ") else 24)


@pytest.mark.long
def test_nets_are_timed_as_files_and_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.inference")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setattr(sys, "argv", ["benchmark", "muct_cnn"])
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
        logging.disable(logging.NOTSET)
    written = json.loads((tmp_path / "inference.json").read_text())
    row = written["nets"]["muct_cnn"]
    assert set(row["ms"]) == {"torch", "fp32", "int8"} and min(row["ms"].values()) > 0
    assert row["bytes"]["int8"] < 0.3 * row["bytes"]["fp32"] and min(written["haar ms a 640x480 picture"]) > 0
