"""The reader of YouTube Faces against its fake, spoiled copies of it, and the real set where FLR_DATA names it."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flr.data.readers import youtube_faces
from flr.data.splits import hold_out
from flr.data.table import FaceTable
from tests.data.support import asymmetry, offset, stop
from tests.fakes import ibug as drawn
from tests.fakes import youtube_faces as fake

TRAIN, TEST = fake.INDEX.values()
TESTED = "Lincoln_Chafee"  # the only one of the fake's people with a hash below the share
COUNT = 4 * len(fake.PEOPLE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that no test changes."""
    root = tmp_path_factory.mktemp("youtube_faces")
    fake.write(root)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A set whose tables may be changed; its images are those of `written`."""
    for name in (TRAIN, TEST):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    for folder in fake.INDEX:
        (tmp_path / folder).mkdir()
        for path in (written / folder).iterdir():
            (tmp_path / folder / path.name).symlink_to(path)
    return tmp_path


def people(table: FaceTable, split: str) -> set[str]:
    return set(table.group[table.split == split].tolist())


# ---------------------------------------------------------------- what is read


def test_columns(written: Path) -> None:
    table = youtube_faces.read(written, strict=True)
    assert len(table) == COUNT and not table.faults and not table.subsets
    assert table.form == f"youtube_faces[training:{3 * COUNT // 4}|test:{COUNT // 4}]"
    assert table.name[:3].tolist() == [f"training/Luis_Fonsi_0{frame}.jpg" for frame in range(3)]
    assert table.name[-7:].tolist() == [f"test/{person}_{k % 6}0.jpg" for k, person in enumerate(fake.PEOPLE)]
    assert table.group[:3].tolist() == ["Luis_Fonsi"] * 3 and people(table, "test") == {TESTED}
    truth = [fake.faces("training", 3 * COUNT // 4), fake.faces("test", 3 * COUNT // 4)[::3]]
    np.testing.assert_array_equal(table.points, np.concatenate(truth).round())
    assert table.points.dtype == np.float32 and np.isnan(table.box).all()
    assert table.labelled.all() and table.visible.all()
    assert (table.points < 0).any()  # a point may lie outside its image
    assert asymmetry(table) < 0.05


def test_points_lie_on_the_pixels(written: Path) -> None:
    """The tables count from 1, in whole pixels; images of one name in the two folders are not mixed up."""
    table = youtube_faces.read(written)
    assert np.abs(offset(table)).max() < 0.15
    assert all(table.load(i).shape == (*drawn.SIZE[::-1], 3) for i in range(len(table)))  # a PNG loses its alpha


def test_published(written: Path) -> None:
    table = youtube_faces.read(written, split="published")
    assert table.form == f"youtube_faces_published[training:{3 * COUNT // 4}|test:{COUNT // 4}]"
    np.testing.assert_array_equal(table.split == "test", np.char.startswith(table.name, "test/"))
    assert people(table, "train") == people(table, "test") == set(fake.PEOPLE)  # the leak
    assert youtube_faces.read(written).fingerprint() != table.fingerprint()


@pytest.mark.parametrize("split", ["identity", "published"])
def test_validation_is_held_out_by_person(written: Path, split: str) -> None:
    table = hold_out(youtube_faces.read(written, split=split), 0.2)
    assert people(table, "val") and not people(table, "val") & people(table, "train")


def test_who_is_tested_depends_on_the_name_alone(root: Path) -> None:
    everybody = youtube_faces.read(root)
    for path in (root / TRAIN, root / TEST):
        head, *rows = path.read_text().splitlines()
        rows = [row for row in rows if "Adam_Sandler" not in row]
        random.Random(0).shuffle(rows)
        path.write_text("\n".join([head, *rows]))
    fewer = youtube_faces.read(root)
    assert people(fewer, "train") == people(everybody, "train") - {"Adam_Sandler"}
    assert people(fewer, "test") == people(everybody, "test")


def test_the_rule_is_part_of_the_protocol(root: Path) -> None:
    """Another salt or share would silently score other people under the same name."""
    real = ["Abdel_Aziz_Al-Hakim", "Lincoln_Chafee", "Luis_Fonsi", "Nicanor_Duarte_Frutos", "Zahir_Shah"]
    assert [name for name in real if youtube_faces._hash(name) < youtube_faces.SHARE] == ["Lincoln_Chafee"]
    tested = [youtube_faces._hash(f"Person_{i}") < 770 / 4232 for i in range(5000)]
    assert np.mean(tested) == pytest.approx(0.18, abs=0.02)


@pytest.mark.parametrize(
    ("file", "who"),
    [
        ("test/Luis_Fonsi_21.jpg", "Luis_Fonsi"),
        ("a/Abdel_Aziz_Al-Hakim_00.JPG", "Abdel_Aziz_Al-Hakim"),
        ("plain.png", "plain"),
        ("x/_1.jpg", "_1"),
    ],
)
def test_person(file: str, who: str) -> None:
    assert youtube_faces.person(file) == who


def test_form_of_the_whole_set(written: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert youtube_faces.TOTAL == {"training": 3462, "test": 770}
    monkeypatch.setattr(youtube_faces, "TOTAL", {"training": 21, "test": 7})
    assert youtube_faces.read(written).form == "youtube_faces"
    assert youtube_faces.read(written, split="published").form == "youtube_faces_published"
    (root / "training/Luis_Fonsi_01.jpg").unlink()
    assert youtube_faces.read(root).form == "youtube_faces[training:20|test:7]"


def _columns(text: str) -> str:
    """The columns in another order."""
    rows = [line.split(",") for line in text.splitlines()]
    order = random.Random(1).sample(range(137), 137)
    return "\n".join(",".join(row[k] for k in order) for row in rows)


VARIANTS: dict[str, Callable[[str], str]] = {
    "columns_swapped": _columns,
    "more_columns": lambda text: text.replace("\n", ",0\n").replace("135,0\n", "135,note\n"),
    "whole_numbers": lambda text: text.replace(".0,", ","),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_variants(root: Path, change: Callable[[str], str]) -> None:
    whole = youtube_faces.read(root)
    path = root / TRAIN
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_bytes(changed.encode())
    assert youtube_faces.read(root, strict=True).fingerprint() == whole.fingerprint()


def test_names(root: Path) -> None:
    path = root / TRAIN
    for i, name in enumerate(["two  blanks_00.JPG", "Zoë_Ball_顔_12.Jpeg", "a,b_01.jpg"]):
        old = f"Luis_Fonsi_0{i}.jpg"
        (root / "training" / old).rename(root / "training" / name)
        path.write_text(path.read_text().replace(old, f'"{name}"'))
    table = youtube_faces.read(root, strict=True)
    assert table.group[:3].tolist() == ["two  blanks", "Zoë_Ball_顔", "a,b"] and table.load(1).size
    assert table.fingerprint()


# ---------------------------------------------------------------- what is wrong


def edit(old: str, new: str, name: str = TRAIN) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text, old
        (root / name).write_text(text.replace(old, new, 1))

    return spoil


STOPS = {
    "no_name_column": (edit(",0,1,2", "name,0,1,2"), "no column ''"),
    "no_test_table": (lambda root: (root / TEST).unlink(), f"none of {TEST} is in it; get the frames"),
    "faulty_test_face": (edit(f"{TESTED}_51.jpg,", f"{TESTED}_51.jpg,x"), "line 18: 'x"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), STOPS.values(), ids=STOPS)
def test_stops(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(root)
    stop(lambda: youtube_faces.read(root), str(root), reason)


def cell(value: str) -> Callable[[Path], object]:
    """Another first coordinate for the second face."""

    def spoil(root: Path) -> None:
        lines = (root / TRAIN).read_text().split("\n")
        name, _, rest = lines[2].split(",", 2)
        lines[2] = ",".join([name, value, rest])
        (root / TRAIN).write_text("\n".join(lines))

    return spoil


FAULTS = {
    "word": (cell("nose"), f"{TRAIN} line 3: 'nose' is not a number"),
    "empty_cell": (cell(""), f"{TRAIN} line 3: a cell is empty"),
    "twice": (edit("Luis_Fonsi_01.jpg", "Luis_Fonsi_00.jpg"), "it is listed twice"),
    "no_name": (edit("Luis_Fonsi_01.jpg", ""), "its image is not a file"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    """One face is named, counted and skipped; it stops a strict reading."""
    spoil(root)
    table = youtube_faces.read(root)
    assert len(table.faults) == 1 and reason in table.faults[0].reason
    assert np.isfinite(table.points).all() and len(set(table.name)) == len(table) <= COUNT - 1
    stop(lambda: youtube_faces.read(root, strict=True), str(root), reason, "data.strict=false")


# ---------------------------------------------------------------- the real set


def test_real(real_data: Path) -> None:
    root = real_data / "youtube_faces"
    if not root.is_dir():
        pytest.skip("FLR_DATA has no youtube_faces")
    table, published = (youtube_faces.read(root, strict=True, split=split) for split in ("identity", "published"))
    assert (table.form, published.form) == ("youtube_faces", "youtube_faces_published")
    assert [int((table.split == part).sum()) for part in ("train", "test")] == [3444, 788]
    assert [int((published.split == part).sum()) for part in ("train", "test")] == [3462, 770]
    assert [len(people(table, part)) for part in ("train", "test")] == [282, 65]
    assert not people(table, "train") & people(table, "test")
    assert people(published, "train") >= people(published, "test") and len(people(published, "test")) == 347
    assert asymmetry(table) < 0.06
    assert {table.load(i).ndim for i in range(0, len(table), 60)} == {3}


def test_real_points_count_from_1(real_data: Path) -> None:
    """Round a point of the midline an image is its own mirror image, if anywhere; read as 0-based it is 1.2 px off."""
    root = real_data / "youtube_faces"
    if not root.is_dir():
        pytest.skip("FLR_DATA has no youtube_faces")
    table = youtube_faces.read(root)
    eyes = table.points[:, 45] - table.points[:, 36]
    middle = (table.points[:, 45] + table.points[:, 36]) / 2
    frontal = (np.abs(eyes[:, 1]) < 0.1 * eyes[:, 0]) & (np.abs(table.points[:, 30] - middle)[:, 0] < 0.06 * eyes[:, 0])
    shifts = np.arange(-2, 3)
    apart = np.zeros(len(shifts))
    for i in np.flatnonzero(frontal)[:300]:
        image = table.load(i).mean(2)
        for x, y in table.points[i, [30, 33, 51, 57]].round().astype(int):
            for k, shift in enumerate(shifts):
                window = image[y - 4 : y + 5, x + shift - 12 : x + shift + 13]
                if window.shape == (9, 25):
                    apart[k] += np.abs(window - window[:, ::-1]).mean()
    assert shifts[apart.argmin()] == 0, apart
