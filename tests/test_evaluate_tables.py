"""Stress tests and the table of runs by datasets: the corruptions, and both commands on one trained run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flr.config.compose import compose_command
from flr.data.synthetic.renderer import render
from flr.evaluation.comparison_report import further_table
from flr.evaluation.corruptions import BOXES, KINDS, PIXELS, SEVERITIES, corrupt_boxes, corrupt_pixels
from flr.evaluation.results import Group, Section, TestedRun
from flr.evaluation.stored_run import load
from flr.evaluation.stress import StressResult, report_all
from flr.landmarks.geometry import transform
from flr.tracking.connection import StoredRun
from tests.conftest import Workspace
from tests.fakes import table as fake_table

ROWS = np.arange(2)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.stack([render(0, i, size=96, face=0.6).image[..., None] for i in ROWS])


@pytest.mark.parametrize("kind", PIXELS)
def test_a_severer_corruption_changes_more_and_repeats(crops, kind):
    for images in (crops, crops.repeat(3, -1)):
        levels = [corrupt_pixels(images, kind, severity, 0, ROWS) for severity in SEVERITIES]
        assert all(level.shape == images.shape and level.dtype == np.uint8 for level in levels)
        changed = [np.abs(level.astype(float) - images).mean() for level in levels]
        assert changed == sorted(changed) and changed[0] > 0.5
        np.testing.assert_array_equal(levels[2], corrupt_pixels(images, kind, 3, 0, ROWS))
        np.testing.assert_array_equal(levels[2][1:], corrupt_pixels(images[1:], kind, 3, 0, ROWS[1:]))


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_move_further_with_severity_about_the_crops_centre(kind):
    identity = np.broadcast_to(np.eye(3)[:2], (2, 2, 3))
    corners = np.array([[0.0, 0], [95, 0], [95, 95], [0, 95], [47.5, 47.5]])
    moved = [transform(corrupt_boxes(identity, 96, kind, severity, 0, ROWS), corners[None]) for severity in SEVERITIES]
    ways = [np.linalg.norm(points - corners, axis=-1)[:, :4].mean() for points in moved]
    assert ways == sorted(ways) and ways[0] > 2
    centre = np.linalg.norm(moved[-1][:, 4] - 47.5, axis=-1)
    np.testing.assert_allclose(centre, 0.2 * 96 if kind == "box_shift" else 0, atol=1e-9)


def test_each_face_has_draws_of_its_own(crops):
    rows, points = np.arange(40), np.random.default_rng(0).uniform(0, 300, (40, 7, 2))
    to_crop = np.broadcast_to([[0.4, 0.0, -3], [0, 0.4, 5]], (40, 2, 3))
    for kind in BOXES:
        maps = corrupt_boxes(np.broadcast_to(np.eye(3)[:2], (40, 2, 3)), 96, kind, 3, 0, rows)
        found = transform(corrupt_boxes(to_crop, 96, kind, 3, 0, rows), points)
        np.testing.assert_allclose(found, transform(maps, transform(to_crop, points)))  # corrupted in the crop
        assert len(np.unique(maps.round(6), axis=0)) == (40 if kind == "box_shift" else 2)  # either way
    for kind in ("noise", "low_light", "occluder"):
        one, other = corrupt_pixels(crops[:1].repeat(2, 0), kind, 3, 0, rows[:2])
        assert (one != other).any()


def test_the_mean_corruption_error_is_the_mean_ratio_to_the_baseline():
    one = StressResult("a", "p", 9, 2.0, {"blur": [1.0, 3.0], "noise": [4.0, 4.0]})
    other = StressResult("b", "p", 9, 2.0, {"blur": [2.0, 6.0], "noise": [2.0, 2.0]})
    assert one.mean == 3 and one.mean_corruption_error(other) == pytest.approx((50 + 200) / 2)
    assert one.mean_corruption_error(one) == 100


def test_a_stress_test_is_reported_in_files_and_in_the_run(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    shown = workspace.run("flr.evaluate", f"run={run}", "stress=all", f"baseline={run}").stdout
    assert "mean corruption error: 100.0 %" in shown
    folder = Path(shown.splitlines()[-1]).parent
    result = json.loads((folder / "stress.json").read_text())
    logged = workspace.client().get_run(run).data
    assert set(result["nme"]) == set(KINDS) and logged.metrics["stress/mce"] == pytest.approx(100)
    # Each would be a chart of one point above the training's curves on the run's page.
    assert {name for name in logged.metrics if name.startswith("stress/")} == {
        f"stress/{x}" for x in ("clean_nme", "nme", "mce")
    }
    assert result["clean"] == pytest.approx(logged.metrics["test/nme"], rel=1e-6)
    with (folder / "stress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + len(KINDS) * len(SEVERITIES) and (folder / "stress.png").stat().st_size > 10_000
    assert all(0 <= float(row["coverage90"]) <= 100 for row in rows if row["kind"] != "clean")


def test_several_runs_have_one_table_of_their_stress_tests(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    runs = [run, str(workspace.folder(run))]
    words = (f"run=[{','.join(runs)}]", f"baseline={run}", "stress=[blur,jpeg]", "split=val")
    file = Path(workspace.run("flr.evaluate", *words).stdout.splitlines()[-1])
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    blurred = [[float(row["nme"]) for row in rows if row["run"] == one and row["kind"] == "blur"] for one in runs]
    assert len(rows) == 2 * (1 + 2 * len(SEVERITIES)) and blurred[0] == blurred[1]
    lines = [line for line in file.with_name("stress.md").read_text().splitlines() if line.endswith("100.00 |")]
    assert len(lines) == 2 and lines[0].split(" | ")[2] == f"{np.mean(blurred[0]):.2f}"


def test_checkpoints_of_one_name_have_results_and_rows_of_their_own(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    files = [workspace.path / name / "a.ckpt" for name in ("x", "y")]
    for file in files:
        file.parent.mkdir()
        shutil.copy(workspace.folder(run) / "checkpoints" / "best.ckpt", file)
    words = (f"run=[{files[0]},{files[1]},{files[0]}]", "stress=[blur]", "split=val")
    folders = []
    for more in ((), ("tta=true",), (f"baseline={files[1]}",)):
        *_, table = (lines := workspace.run("flr.evaluate", *words, *more).stdout.splitlines())
        pictures = [Path(line) for line in lines if line.endswith("stress.png")]
        assert len(set(pictures)) == 2 and all(picture.is_file() for picture in pictures)
        text = Path(table).with_name("stress.md").read_text()
        assert all(text.count(f"({file}) |") == 1 for file in files)
        folders.append(Path(table).parent)
    assert len(set(folders)) == 3  # none overwrites another
    with (pictures[0].parent / "stress.csv").open(newline="") as opened:
        assert len({row["model"] for row in csv.DictReader(opened)}) == 2


def test_a_baseline_with_another_box_is_refused(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run = trained
    checkpoint = torch.load(workspace.folder(run) / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["flr"]["config"]["data"]["crop"]["policy"]["scale"] = 1.5
    torch.save(checkpoint, tmp_path / "wide.ckpt")
    line = workspace.refuse("flr.evaluate", f"run={run}", f"baseline={tmp_path}/wide.ckpt", "stress=[blur]")
    assert "truth-square-1.5 " in line and "truth-square-1.25 " in line


def test_runs_of_different_protocols_have_tables_of_their_own(tmp_path: Path) -> None:
    results = {f"{i}": StressResult(f"run {i}", f"p{i}", 9, 2.0, {"blur": [1.0] * 4 + [6.0 + 5 * i]}) for i in range(2)}
    report_all(results, None, tmp_path / "stress.csv")
    text = (tmp_path / "stress.md").read_text()
    assert [line for line in text.splitlines() if line.startswith(("## ", "| run"))] == [
        "## p0", "| run 0 | 2.00 | 2.00 | 2.00 |", "## p1", "| run 1 | 2.00 | 3.00 | 3.00 |",
    ]  # fmt: skip


def test_a_run_is_scored_on_the_crops_of_its_training(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    checkpoint = str(workspace.folder(run) / "checkpoints" / "best.ckpt")
    cfg = compose_command("evaluate", [f"paths.output_dir={workspace.outputs}", f"paths.cache_dir={workspace.cache}"])
    assert load(cfg, [], checkpoint).data.store.margin > 0  # without it some pixels are rounded differently


def test_runs_by_datasets(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    small = ("+data.reader.train=48", "+data.reader.val=11", "+data.reader.test=9", "+data.reader.size=64")
    shown = workspace.run("flr.evaluate", f"run=[{run},{workspace.folder(run)}]", "on=[synthetic]", *small).stdout
    with Path(shown.splitlines()[-1]).open(newline="") as file:
        cells = list(csv.DictReader(file))
    logged = workspace.client().get_run(run).data
    assert [cell["run"] for cell in cells] == [run, str(workspace.folder(run))]
    for cell in cells:
        assert float(cell["low"]) < float(cell["nme"]) < float(cell["high"]) and cell["dataset"] == "synthetic"
        assert float(cell["nme"]) == pytest.approx(logged.metrics["test/nme"], rel=1e-4)
    assert logged.metrics["on/synthetic/nme"] == pytest.approx(float(cells[0]["nme"]))
    assert logged.tags["flr.on.synthetic"] == cells[0]["protocol"]


def test_photos_that_are_stored_turned_are_reported_once(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run = trained
    fake_table.write_turned(tmp_path, 6, 6)
    other = ("data=table", f"data.root={tmp_path}", "data.reader.scheme=ibug68", "data.test_fraction=0.5")
    shown = workspace.run("flr.evaluate", f"run=[{run},{workspace.folder(run)}]", *other).stderr
    note = "note: data=table: 6 image(s) are stored turned (EXIF orientation); their labels are read by the width and height"
    assert shown.count("EXIF") == 1 and note in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stress=[blurr]",), "stress=blurr: no such corruption (did you mean 'blur'?)"),
        (("on=[synthetik]",), "on=synthetik: no such choice of data= (did you mean 'synthetic'?)"),
        (("on=[celeba]",), "nothing could be scored"),
        (("on=[synthetic,celeba]", "+data.reader.train=9"), "on=celeba: data.reader.train does not fit it"),
        (("on=[]",), "on=: no such choice of data="),
        (("stress=[]",), "stress=: no such corruption"),
        (("stress=blur", "split=val", "data=celeba"), "celeba"),
        (("baseline=x",), "set stress=all too"),
        (("on=[synthetic]", "stress=all"), "on=, stress= and refine= do not go together"),
    ],
)
def test_bad_input_is_one_line(trained: tuple[Workspace, str], words: tuple[str, ...], said: str) -> None:
    assert said in trained[0].refuse("flr.evaluate", f"run={trained[1]}", *words)


def test_the_comparison_shows_what_was_logged_and_keeps_protocols_apart() -> None:
    def run(name: str, metrics: dict[str, float], **tags: str) -> TestedRun:
        stored = StoredRun(name, name, "FINISHED", tags, {}, metrics, 1.0, "", "0", 0.0)
        return TestedRun(stored, "p", {}, np.array(["a"]), np.array([0.1]), None, None)

    plain = Section("p", [Group("a", [run("1", {})])])
    assert further_table(plain, ["model"]) == []
    first = run("1", {"stress/mce": 90.0, "on/ibug/nme": 4.0}, stress_baseline="base", **{"on.ibug": "p1"})
    second = run("2", {"on/ibug/nme": 5.0}, **{"on.ibug": "p2"})
    (table,) = further_table(Section("p", [Group("a", [first]), Group("b", [second])]), ["model"])
    assert table.head == ["model", "NME on ibug, % (p1)", "NME on ibug, % (p2)", "mean corruption error, % of base"]
    assert table.rows == [["a", "4.00", "-", "90.00"], ["b", "-", "5.00", "-"]]
