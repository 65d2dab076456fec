"""`python -m flr.prepare`: what a person gets told of a set, and what training does with it."""

import html.parser
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import SMALL_SET, TINY, Workspace
from tests.fakes import ibug as fake


def card_of(workspace: Workspace, name: str) -> tuple[Path, dict]:
    (folder,) = (workspace.outputs / "cards").glob(f"{name}-*")
    return folder, json.loads((folder / "card.json").read_text())


def test_a_set_gets_a_card(workspace: Workspace, tmp_path: Path) -> None:
    fake.write(tmp_path / "set", {"afw": 20, "helen/testset": 6})
    for i in range(12):
        (tmp_path / f"set/afw/extra_{i}.pts").write_text("<b>version: 1</b>")
    done = workspace.run("flr.prepare", "data=ibug", f"data.root={tmp_path / 'set'}", "data.crop.size=48")
    folder, card = card_of(workspace, "ibug")
    assert card["faces"]["test"] == 6 and card["faces"]["train"] + card["faces"]["val"] == 20
    assert len(card["left_out"]) == 12 and card["root"] == str(tmp_path / "set")
    assert "26 faces in" in done.stdout and "a second" in done.stdout and str(folder / "card.html") in done.stdout
    (note,) = (line for line in done.stdout.splitlines() if line.startswith("warning: 12 face(s) skipped: "))
    first = done.stdout.splitlines()[1]
    assert first.startswith("ready to train: 0 errors, ") and first.endswith("test 6 faces; 12 skipped")
    assert note.count("extra_") == 10 and note.endswith("; and 2 more, see card.json")
    page = (folder / "card.html").read_text()
    assert "<b>" not in page and page.count("<li>") == 12  # what comes from the set is escaped
    assert page.count("data:image/") == 2 and "http" not in page  # faces and points outside, self-contained
    html.parser.HTMLParser().feed(page)
    faces = cv2.imread(str(folder / "faces.jpg"))
    assert faces.shape[1] > 1000 and faces.std() > 10


def test_augmented_faces_are_shown_with_their_points(workspace: Workspace) -> None:
    workspace.run("flr.prepare", "augment=standard", *SMALL_SET, "data.crop.size=64")
    folder, card = card_of(workspace, "synthetic")
    sheet = cv2.imread(str(folder / "augmented.jpg"))
    green = (sheet[..., 1] > 180) & (sheet[..., 0] < 120) & (sheet[..., 2] < 120)
    rows = np.array_split(green, 6)
    assert all(row.mean() > 0.004 for row in rows)  # each face has its dots
    columns = np.array_split(sheet[:160].astype(int), 8, axis=1)
    width = min(column.shape[1] for column in columns)
    assert np.abs(columns[0][:, :width] - columns[1][:, :width]).mean() > 5  # and each draw is another
    assert card["findings"] is not None


def test_what_prepare_made_training_uses(workspace: Workspace, tmp_path: Path) -> None:
    fake.write(tmp_path / "set", {"afw": 24, "helen/testset": 6})
    words = ["data=ibug", f"data.root={tmp_path / 'set'}", "data.crop.size=32", f"paths.cache_dir={tmp_path / 'cache'}"]
    workspace.run("flr.prepare", *words, "augment=light")
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/crops").glob("*/images.u8")}
    done = workspace.run("flr.train", *TINY, *words, "trainer.max_epochs=1")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/crops").glob("*/images.u8")} == stores
    run = workspace.only_run()
    artifacts = [item.path for item in workspace.client().list_artifacts(run.info.run_id)]
    assert "card.json" in artifacts
    assert "outside their images" in done.stderr  # the same findings


def test_nonsense_gets_a_card_and_is_refused_everywhere(workspace: Workspace, tmp_path: Path) -> None:
    fake.write(tmp_path / "set", {"afw": 40, "helen/testset": 6})
    for path in (tmp_path / "set").rglob("*.pts"):
        points = np.loadtxt(path, skiprows=3, max_rows=68) - 1
        fake.write_pts(path, points[:, ::-1])  # y, x
    words = ["data=ibug", f"data.root={tmp_path / 'set'}", "data.crop.size=32"]
    assert "mirror image" in workspace.refuse("flr.prepare", *words)
    assert "mirror image" in workspace.run("flr.prepare", *words, code=2).stdout.splitlines()[2], "its first error"
    assert card_of(workspace, "ibug")[1]["symmetry"]["deviation"] > 0.4
    assert "mirror image" in workspace.refuse("flr.train", *TINY, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=ibugg"], "did you mean 'ibug'"),
        (["data=ibug", "data.root=/nowhere"], "there is no such folder"),
        (["export=svg"], "export=svg"),
        (["data.crop.policy.source=truthy"], "data.crop.policy.source"),
        (["data.crop.policy.haar.step=0.9"], "haar.step"),
        (["data.crop.policy.jitter=1"], "jitter"),
        (["download=true"], "no direct address"),
        (["sed=1"], "did you mean 'seed'"),
    ],
)
def test_bad_words(workspace: Workspace, words: list[str], expected: str) -> None:
    assert expected in workspace.refuse("flr.prepare", *words)


def test_a_net_is_scored_with_haar_s_boxes_and_with_jitter(workspace: Workspace, real_data: Path) -> None:
    """Box policies carry into the protocol's name, and a worse box gives a worse error."""
    import shutil

    from flr.data.readers import ibug

    root = workspace.path / "few"
    table = ibug.read(real_data / "300w")
    for part, count in (("afw", 40), ("helen_test", 12)):
        for i in np.flatnonzero(table.subsets[part])[:count]:
            path = real_data / "300w" / str(table.image[i])
            (root / path.relative_to(real_data / "300w")).parent.mkdir(parents=True, exist_ok=True)
            for file in (path, path.with_suffix(".pts")):
                shutil.copy(file, root / file.relative_to(real_data / "300w"))
    words = ["data=ibug", f"data.root={root}"]
    workspace.run("flr.train", *TINY, *words, "trainer.max_epochs=1")
    run = workspace.only_run().info.run_id
    done = workspace.run("flr.evaluate", f"run={run}", *words, "data.crop.policy.jitter=0.1")
    assert "truth-square-1.25-jitter:0.1" in done.stdout
    done = workspace.run("flr.evaluate", f"run={run}", *words, "data.crop.policy.source=haar")
    assert "haar-1.1-5-missed:truth-square-1.25" in done.stdout
