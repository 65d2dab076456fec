"""Files and folders appear whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from flr.errors import UserError
from flr.files import write_json, writing, writing_folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "down" / "net.ckpt"
    with writing(path) as aside:
        assert aside.suffix == ".ckpt"
        aside.write_text("half")
        assert not path.exists()
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["net.ckpt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with writing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        reader = path.open()
    with reader:
        assert reader.read() == "old"  # one who reads meanwhile never sees a mixture
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), writing(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "deep" / "store"
    with writing_folder(path) as aside:
        (aside / "one").write_text("1")
        (aside / "two").mkdir()
        assert not path.exists()
    assert names(path) == ["one", "two"]
    assert names(path.parent) == ["store"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), writing_folder(tmp_path / "store") as aside:
        (aside / "one").write_text("1")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("open_", [writing, writing_folder])
@pytest.mark.parametrize("where", ["/proc/no/such", "a file"])
def test_a_place_that_cannot_be_written_is_told(tmp_path, open_, where):
    if where == "a file":
        (tmp_path / "file").write_text("")
        where = str(tmp_path / "file" / "sub")
    elif not os.path.isdir("/proc"):
        pytest.skip("this system has no /proc")
    with pytest.raises(UserError, match="cannot be written") as caught, open_(Path(where) / "x.txt"):
        pytest.fail("the body must not run")
    assert where in str(caught.value)
    assert "out=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match="No space left"), writing(path) as aside:
        aside.write_text("half")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_folder_that_is_there_already_is_kept(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("")
    with pytest.raises(UserError), writing_folder(tmp_path / "store") as aside:
        (aside / "new").write_text("")
    assert names(tmp_path / "store") == ["old"]
    assert names(tmp_path) == ["store"]


def test_json_is_whole_or_untouched(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2], "a": Path("x")})
    assert json.loads(path.read_text()) == {"b": [1, 2], "a": "x"}
    circle: dict = {}
    circle["self"] = circle
    with pytest.raises(ValueError):
        write_json(path, circle)
    assert json.loads(path.read_text())["b"] == [1, 2]
    assert names(tmp_path) == ["a.json"]
