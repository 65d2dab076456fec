"""WFLW's reader against its fake and spoiled copies of it."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flr.data.readers import wflw
from flr.data.splits import hold_out
from flr.data.table import FaceTable
from flr.landmarks.scheme import IBUG68, WFLW98
from tests.data.support import asymmetry, offset, stop
from tests.fakes import wflw as fake

TRAIN, TEST = wflw.INDEX["train"], wflw.INDEX["test"]
FIRST = f"{fake.FOLDERS['train']}_1.jpg"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that no test changes."""
    root = tmp_path_factory.mktemp("wflw")
    fake.write(root)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A set that may be changed; its images are those of `written`."""
    for name in (TRAIN, TEST):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((written / name).read_bytes())
    for path in (written / wflw.IMAGE_FOLDER).rglob("*.jpg"):
        link = tmp_path / path.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return tmp_path


def of(table: FaceTable, split: str) -> FaceTable:
    return table.take(table.split == split)


# ---------------------------------------------------------------- what is read


def test_columns(written: Path) -> None:
    table = wflw.read(written, strict=True)
    assert table.form == "wflw[train:8|test:6]" and table.scheme is WFLW98 and not table.faults
    train, test = of(table, "train"), of(table, "test")
    assert (len(train), len(test)) == (8, 6)
    assert train.name[:3].tolist() == [f"{FIRST}#1", f"{FIRST}#2", f"{fake.FOLDERS['train']}_2.jpg#1"]
    assert train.group[:3].tolist() == [FIRST, FIRST, f"{fake.FOLDERS['train']}_2.jpg"]
    assert train.image[0] == train.image[1] == f"WFLW_images/{FIRST}"
    truth = fake.faces("train", 8)
    truth[1, :, 0] += fake.ibug.SIZE[0]
    np.testing.assert_allclose(train.points, truth, atol=1e-5)
    assert table.points.dtype == table.box.dtype == np.float32 and table.labelled.all() and table.visible.all()
    edges = np.concatenate([truth.min(1) + 2, truth.max(1) - 2], 1).round() + [-0.5, -0.5, 0.5, 0.5]
    np.testing.assert_array_equal(train.box, edges)  # both corners' pixels are in it
    assert asymmetry(table) < 0.06


def test_attributes_are_subsets_that_overlap(written: Path) -> None:
    table = wflw.read(written)
    assert list(table.subsets) == ["pose", "expression", "illumination", "make_up", "occlusion", "blur"]
    assert [int(mask.sum()) for mask in of(table, "test").subsets.values()] == [5, 4, 3, 2, 1, 0]
    assert [int(mask.sum()) for mask in of(table, "train").subsets.values()] == [7, 6, 5, 4, 3, 2]
    assert of(table, "test").subsets["make_up"].tolist() == [False] * 4 + [True] * 2


def test_points_lie_on_the_pixels(tmp_path: Path) -> None:
    """Points count from 0, and two faces of one image are not mistaken for each other."""
    fake.write(tmp_path, {"train": 4, "test": 2}, size=(320, 288))
    table = wflw.read(tmp_path)
    assert np.abs(offset(table)).max() < 0.1
    assert table.load(0).shape == (288, 640, 3)


def test_reduced_to_68(written: Path) -> None:
    table = wflw.read(written).reduce("ibug68", IBUG68)
    assert table.points.shape == (14, 68, 2) and asymmetry(table) < 0.06
    interocular = table.scheme.distance(table.points, table.labelled)
    np.testing.assert_allclose(interocular, WFLW98.distance(wflw.read(written).points, np.ones((14, 98), bool)))


def test_a_picture_does_not_cross_into_validation(written: Path) -> None:
    table = hold_out(wflw.read(written), 0.3)
    sides = [set(of(table, split).image.tolist()) for split in ("train", "val")]
    assert all(sides) and not sides[0] & sides[1]


def test_form_of_the_whole_set(written: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wflw.TOTAL == {"train": 7500, "test": 2500}
    monkeypatch.setattr(wflw, "TOTAL", {"train": 8, "test": 6})
    assert wflw.read(written).form == "wflw"
    (root / wflw.IMAGE_FOLDER / f"{fake.FOLDERS['train']}_2.jpg").unlink()
    assert wflw.read(root).form == "wflw[train:7|test:6]"


def test_a_test_face_keeps_its_name_whatever_there_is_to_train_on(root: Path) -> None:
    """Also where an image has faces in both lists."""
    alone = of(wflw.read(root), "test").name.tolist()
    path = root / TRAIN
    path.write_text(path.read_text().replace(FIRST, f"{fake.FOLDERS['test']}_1.jpg"))
    table = wflw.read(root, strict=True)
    assert of(table, "test").name.tolist() == alone
    assert of(table, "train").name[:2].tolist() == [f"{fake.FOLDERS['test']}_1.jpg#{n}" for n in (3, 4)]


VARIANTS: dict[str, Callable[[str], str]] = {
    "wide_blanks": lambda text: text.replace(" ", "  ").replace("\n", " \n"),
    "attributes_as_floats": lambda text: text.replace(" 0 ", " 0.0 "),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_variants(root: Path, change: Callable[[str], str]) -> None:
    whole = wflw.read(root)
    path = root / TRAIN
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_bytes(changed.encode())
    assert wflw.read(root, strict=True).fingerprint() == whole.fingerprint()


def test_names(root: Path) -> None:
    name = "61--Straße/61_顔.JPG"
    (root / wflw.IMAGE_FOLDER / name).parent.mkdir()
    (root / wflw.IMAGE_FOLDER / FIRST).rename(root / wflw.IMAGE_FOLDER / name)
    path = root / TRAIN
    path.write_text(path.read_text().replace(FIRST, name), encoding="utf-8")
    table = of(wflw.read(root, strict=True), "train")
    assert table.name[:2].tolist() == [f"{name}#1", f"{name}#2"] and table.load(0).size


# ---------------------------------------------------------------- what is wrong


def words(change: Callable[[list[str]], list[str]], number: int = 3, name: str = TRAIN) -> Callable[[Path], object]:
    """Other words in a list's line, counted from 1."""

    def spoil(root: Path) -> None:
        lines = (root / name).read_text().split("\n")
        lines[number - 1] = " ".join(change(lines[number - 1].split()))
        (root / name).write_text("\n".join(lines))

    return spoil


def word(place: int, value: str, number: int = 3, name: str = TRAIN) -> Callable[[Path], object]:
    return words(lambda line: [*line[:place], value, *line[place + 1 :]], number, name)


def folder(root: Path) -> None:
    (root / TRAIN).unlink()
    (root / TRAIN).mkdir()


LIST = "list_98pt_rect_attr_train.txt"
STOPS = {
    "folder": (folder, "cannot be read (Is a directory"),
    "97_points": (words(lambda line: line[2:]), f"{LIST} line 3: 205 cells, not 207"),
    "without_attributes": (
        lambda root: [words(lambda line: line[:200] + line[-1:], n)(root) for n in range(1, 9)],
        f"{LIST} line 1: 201 cells, not 207",
    ),
    "name_first": (
        lambda root: [words(lambda line: line[-1:] + line[:-1], n, TEST)(root) for n in (1, 2)],
        "list_98pt_rect_attr_test.txt line 1: '37--Soccer",
    ),
    "no_test_list": (lambda root: (root / TEST).unlink(), "list_98pt_rect_attr_test.txt is in it; get WFLW"),
    "faulty_test_face": (word(7, "x", 2, TEST), "attr_test.txt line 2: 'x' is not a number; it is a test"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), STOPS.values(), ids=STOPS)
def test_stops(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(root)
    stop(lambda: wflw.read(root), str(root), reason)


FAULTS = {
    "word": (word(5, "nose"), f"{LIST} line 3: 'nose' is not a number"),
    "flag": (word(201, "2"), f"{LIST} line 3: its expression is 2, not 0 or 1"),
    "corners_swapped": (
        words(lambda line: line[:196] + line[198:200] + line[196:198] + line[200:]),
        f"{LIST} line 3: its box has no size",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    """One face is named, counted and skipped; it stops a strict reading."""
    spoil(root)
    table = wflw.read(root)
    assert len(table.faults) == 1 and reason in table.faults[0].reason
    assert len(table) == 13 and table.form == "wflw[train:7|test:6]"
    assert np.isfinite(table.points).all() and np.isfinite(table.box).all()
    stop(lambda: wflw.read(root, strict=True), str(root), reason, "data.strict=false")


def test_a_face_listed_twice_shows_in_the_form(root: Path) -> None:
    path = root / TRAIN
    path.write_text(path.read_text() + path.read_text().split("\n")[2])
    assert wflw.read(root).form == "wflw[train:9|test:6]"


@pytest.mark.long
def test_the_whole_set_reads_fast(tmp_path: Path) -> None:
    """10000 faces of six images: seconds, not minutes."""
    fake.write(tmp_path)
    for name, times in ((TRAIN, 940), (TEST, 415)):
        path = tmp_path / name
        path.write_text(path.read_text() * times)
    start = time.process_time()
    assert len(wflw.read(tmp_path)) == 8 * 940 + 6 * 415
    assert time.process_time() - start < 20
