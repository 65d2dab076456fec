"""A Kaggle submission through the real commands: train on its table, predict its test images, write its file."""

import csv
from pathlib import Path

from tests.conftest import TINY, Workspace
from tests.fakes import muct as fake


def test_a_trained_net_writes_what_kaggle_takes(workspace: Workspace, tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path / "set", train=40)
    words = ["data=muct", f"data.root={tmp_path / 'set'}"]
    workspace.run("flr.train", *TINY, *words, "data.batch_size=8", "trainer.max_epochs=1")
    run = workspace.only_run().info.run_id
    done = workspace.run("flr.evaluate", f"run={run}", f"data.root={tmp_path / 'set'}", "submission=mine.csv")
    assert "mine.csv" in done.stdout
    with (tmp_path / "set/IdLookupTable.csv").open(encoding="utf-8-sig") as file:
        asked = [row["RowId"] for row in csv.DictReader(file)]
    with (workspace.path / "mine.csv").open() as file:
        given = list(csv.DictReader(file))
    assert [row["RowId"] for row in given] == asked and set(given[0]) == {"RowId", "Location"}
    locations = [float(row["Location"]) for row in given]
    assert min(locations) >= 0 and max(locations) <= 96 and len(set(locations)) > len(locations) // 2
