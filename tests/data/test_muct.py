"""data=muct: Kaggle's tables and MUCT's own form, spoiled ones, and the real labels."""

import csv
import dataclasses
import os
import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from flr.data.boxes import BoxPolicy
from flr.data.crops import CropSettings, crop, open_store
from flr.data.readers import ibug, kaggle, muct
from flr.data.table import FaceTable
from flr.landmarks.geometry import fit_similarity, transform
from flr.landmarks.scheme import IBUG68, KAGGLE15, MUCT76
from flr.system import parallel_map
from tests.data import support
from tests.data.support import asymmetry
from tests.fakes import ibug as ibug_fake
from tests.fakes import muct as fake

stop = partial(support.stop, longest=2000)
WHOLE = BoxPolicy(source="file", scale=1.0)
LABELS = "muct-landmarks/muct76-opencv.csv"


def offset(table: FaceTable, points: np.ndarray) -> np.ndarray:
    """(2,) how far, on the mean, the dots of a fake's images lie from `points` (N, K, 2), in pixels."""
    found = []
    for i, face in enumerate(points):
        image = table.load(i).astype(float)
        grey = image if image.ndim == 2 else image.mean(2)
        apart = np.linalg.norm(face[:, None] - face[None], axis=-1) + 99 * np.eye(len(face))
        for x, y in face[apart.min(1) > 9]:  # a dot's window holds no other dot
            left, top = round(float(x)) - 4, round(float(y)) - 4
            window = grey[max(top, 0) : top + 9, max(left, 0) : left + 9]
            if window.shape == (9, 9):
                weight = np.clip(window - np.percentile(window, 60), 0, None)
                ys, xs = np.mgrid[top : top + 9, left : left + 9]
                found.append(((weight * xs).sum() / weight.sum() - x, (weight * ys).sum() / weight.sum() - y))
    return np.mean(found, 0)


# ---------------------------------------------------------------- Kaggle's form


def test_kaggle(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path, train=12, test=6)
    table = muct.read(tmp_path, strict=True)
    points, pictures = fake.kaggle_faces(12)
    assert (table.form, table.scheme) == ("muct_csv", KAGGLE15)
    assert table.name.tolist() == [
        *(f"training.csv#{i}" for i in range(1, 13)),
        *(f"test.csv#{i}" for i in range(1, 7)),
    ]
    assert table.split.tolist() == ["train"] * 12 + ["unlabelled"] * 6
    assert len(set(table.group)) == 18 and not table.faults
    known = fake.present(12)
    np.testing.assert_array_equal(table.labelled[:12], known)
    np.testing.assert_array_equal(table.visible, table.labelled)
    assert not table.labelled[12:].any()
    np.testing.assert_array_equal(table.subsets["complete"][:12], known.all(1))
    assert known.all(1).sum() == 4 and not table.subsets["complete"][12:].any()
    np.testing.assert_allclose(table.points[:12][known], points[known], atol=1e-4)
    for i, image in enumerate([*pictures, *fake.kaggle_faces(6, seed=1)[1]]):
        np.testing.assert_array_equal(table.load(i), image)
        assert table.load(i).dtype == np.uint8


def test_kaggle_coordinates_are_pixel_centres(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path, train=60)
    table = muct.read(tmp_path)
    np.testing.assert_allclose(offset(table, table.points[:20]), 0, atol=0.1)  # a slip would be .5 or 1


def test_kaggle_crop_is_the_picture(tmp_path: Path) -> None:
    """The crop of conf/data/muct.yaml changes no pixel, and workers that share the file read what one alone does."""
    fake.write_kaggle(tmp_path / "set", train=70, test=3)
    table = muct.read(tmp_path / "set")
    np.testing.assert_allclose(WHOLE.crop(table.box.astype(float), 96), np.tile(np.eye(2, 3), (73, 1, 1)), atol=1e-12)
    pictures = [table.load(i) for i in range(73)]
    np.testing.assert_array_equal(
        crop(pictures[0], WHOLE.crop(table.box[0].astype(float), 96), 96, 1)[..., 0], pictures[0]
    )
    kept, store = open_store(table, CropSettings(96, 1, WHOLE), 1.0, tmp_path / "cache", 2, strict=True)
    assert len(kept) == 73
    np.testing.assert_array_equal(store.images[..., 0], pictures)
    apart = list(parallel_map(table.load, 73, 3))
    np.testing.assert_array_equal(apart, pictures)


def test_kaggle_keeps_no_pixel_in_memory(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path, train=250, test=1)
    size = (tmp_path / "training.csv").stat().st_size
    tracemalloc.start()
    table = muct.read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 251 and size > 6e6 and peak < 0.45 * size  # of which 1 MB is the read buffer


def reordered(text: str) -> bytes:
    rows = [line.split(",") for line in text.splitlines()]
    return "\n".join(",".join([row[-1], *row[:-1], "9" if i else "more"]) for i, row in enumerate(rows)).encode()


def quoted(text: str) -> bytes:
    return "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()).encode()


KAGGLE_VARIANTS: dict[str, Callable[[str], bytes]] = {
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "quoted": quoted,
    "quoted_pixels": lambda text: "\n".join(
        ",".join([*line.split(",")[:-1], f'" {line.split(",")[-1]} "']) for line in text.splitlines()
    ).encode(),
    "image_first": reordered,
    "columns_reversed": lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.splitlines()).encode(),
    "semicolons": lambda text: text.replace(",", ";").encode(),
}


@pytest.mark.parametrize("change", KAGGLE_VARIANTS.values(), ids=KAGGLE_VARIANTS)
def test_kaggle_variants(tmp_path: Path, change: Callable[[str], bytes]) -> None:
    """Re-saved copies are the same set, to the fingerprint."""
    fake.write_kaggle(tmp_path)
    plain = muct.read(tmp_path, strict=True)
    pictures = [plain.load(i) for i in range(len(plain))]
    for name in ("training.csv", "test.csv"):
        text = (tmp_path / name).read_text()
        assert change(text) != text.encode()
        (tmp_path / name).write_bytes(change(text))
    table = muct.read(tmp_path, strict=True)
    assert table.fingerprint() == plain.fingerprint()
    for i, image in enumerate(pictures):
        np.testing.assert_array_equal(table.load(i), image)


def test_kaggle_needs_both_coordinates_and_no_test_file(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path)
    for name in ("test.csv", "IdLookupTable.csv"):
        (tmp_path / name).unlink()
    edit(tmp_path / "training.csv", 1, 2, "")
    table = muct.read(tmp_path, strict=True)
    assert len(table) == 12 and table.labelled[0].sum() == 14 and not table.labelled[0, 1]


def test_kaggle_fingerprint_and_version(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b/test.csv", ns=(5, 5))
    a, b = muct.read(tmp_path / "a"), muct.read(tmp_path / "b")
    assert a.fingerprint() == b.fingerprint()
    assert set(b.version[12:]) == {5} and 5 not in b.version[:12]
    edit(tmp_path / "b/training.csv", 2, 0, "40.5")
    assert muct.read(tmp_path / "b").fingerprint() != a.fingerprint()


def test_kaggle_answers(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path, answers=True)
    table = muct.read(tmp_path, strict=True)
    assert table.form == "muct_csv+answers" and table.split.tolist()[12:] == ["test"] * 6
    points, _ = fake.kaggle_faces(6, seed=1)
    asked = np.ones((6, 15), bool)
    asked[::3] = np.isin(np.arange(15), fake.FOUR)
    np.testing.assert_array_equal(table.labelled[12:], asked)
    np.testing.assert_allclose(table.points[12:][asked], points[asked], atol=1e-5)
    assert muct.read(tmp_path, answers=True).fingerprint() == table.fingerprint()
    without = muct.read(tmp_path, answers=False)
    assert without.form == "muct_csv" and set(without.split) == {"train", "unlabelled"}


def edit(path: Path, line: int, cell: int, text: str) -> None:
    """Put `text` into a cell; both are counted from 0."""
    lines = path.read_text().split("\n")
    cells = lines[line].split(",")
    cells[cell] = text
    lines[line] = ",".join(cells)
    path.write_text("\n".join(lines))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


HTML = "<!DOCTYPE html><html><body>Sign in</body></html>"
KAGGLE_STOPS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (lambda r: (r / "training.csv").write_text(""), ("training.csv", "no column", "'left_eye_center_x'")),
    "header_alone": (lambda r: cut(r / "training.csv", (r / "training.csv").read_text().index("\n") + 1), ("no row",)),
    "html": (lambda r: (r / "training.csv").write_text(HTML), ("training.csv", "web page")),
    "no_image_column": (lambda r: replace(r / "training.csv", ",Image", ",image"), ("no column", "'Image'",)),
    "cut_in_the_labels": (
        lambda r: cut(r / "training.csv", (r / "training.csv").read_text().rindex("\n", 0, -1) + 9),
        ("training.csv line 13: 1 cells, not 31",),
    ),
    "too_many_cells": (lambda r: edit(r / "training.csv", 3, 4, "1,2"), ("line 4: 32 cells, not 31",)),
    "endless_row": (lambda r: edit(r / "training.csv", 2, 30, "1 " * 600_000), ("line 3: over 1,000,000 bytes",)),
    "both_forms": (lambda r: fake.write_muct(r, 1), ("holds both training.csv", "muct76-opencv.csv", "data.root=")),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), KAGGLE_STOPS.values(), ids=KAGGLE_STOPS)
def test_kaggle_that_stops(tmp_path: Path, spoil: Callable[[Path], object], words: tuple[str, ...]) -> None:
    fake.write_kaggle(tmp_path)
    spoil(tmp_path)
    stop(lambda: muct.read(tmp_path), str(tmp_path), *words)


KAGGLE_FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "word": (lambda r: edit(r / "training.csv", 2, 0, "left"), "training.csv#2", "training.csv line 3: 'left'"),
    "id": (lambda r: edit(r / "test.csv", 2, 0, "two"), "test.csv line 3", "'two' is not a whole number"),
    "same_id": (lambda r: edit(r / "test.csv", 2, 0, "1"), "test.csv#1", "listed twice"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "face", "reason"), KAGGLE_FAULTS.values(), ids=KAGGLE_FAULTS)
def test_kaggle_faults_of_one_face(tmp_path: Path, spoil: Callable[[Path], object], face: str, reason: str) -> None:
    fake.write_kaggle(tmp_path)
    spoil(tmp_path)
    table = muct.read(tmp_path)
    assert len(table) == 17 and [fault.face for fault in table.faults] == [face]
    assert reason in table.faults[0].reason
    stop(lambda: muct.read(tmp_path, strict=True), face, reason)
    pictures = [*fake.kaggle_faces(12)[1], *fake.kaggle_faces(6, seed=1)[1]]
    for i, name in enumerate(table.name.tolist()):  # whatever is left out, each face keeps its own picture
        number = int(name.partition("#")[2]) - 1
        np.testing.assert_array_equal(table.load(i), pictures[number + 12 * name.startswith("test")])


PIXELS: dict[str, tuple[Callable[[str], str], str]] = {
    "short": (lambda cell: cell.rpartition(" ")[0], "9215 pixels, not 96 x 96"),
    "long": (lambda cell: cell + " 1", "9217 pixels, not 96 x 96"),
    "none": (lambda _: "", "0 pixels"),
    "over_255": (lambda cell: cell.replace(" ", " 256 ", 1).rpartition(" ")[0], "pixel of 256, over 255"),
    "huge": (lambda cell: "9" * 40 + cell[cell.index(" ") :], "over 255"),
    "fraction": (lambda cell: cell.replace(" ", ".0 ", 1), "more than whole numbers"),
}


@pytest.mark.parametrize(("change", "reason"), PIXELS.values(), ids=PIXELS)
def test_kaggle_pixels_at_fault(tmp_path: Path, change: Callable[[str], str], reason: str) -> None:
    """Seen when they are loaded: the crop store leaves that face out, and all others stay."""
    fake.write_kaggle(tmp_path / "set")
    path = tmp_path / "set/training.csv"
    edit(path, 4, 30, change(path.read_text().split("\n")[4].split(",")[30]))
    table = muct.read(tmp_path / "set", strict=True)
    stop(lambda: table.load(3), "training.csv#4: its Image", reason, str(path))
    kept, store = open_store(table, CropSettings(96, 1, WHOLE), 1.0, tmp_path / "cache", 0, strict=False)
    assert len(kept) == len(store.images) == 17 and reason in kept.faults[0].reason
    np.testing.assert_array_equal(store.images[3, ..., 0], table.load(4))


def test_kaggle_cut_or_gone_after_it_was_read(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path)
    table = muct.read(tmp_path)
    cut(tmp_path / "training.csv", 50_000)
    stop(lambda: table.load(5), "training.csv#6", "0 pixels")
    (tmp_path / "training.csv").unlink()
    stop(lambda: table.load(5), str(tmp_path / "training.csv"), "cannot be read")


ANSWER_STOPS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no_row": (lambda r: replace(r / "answers.csv", "\n7,", "\n907,"), ("RowId 7 ", "no Location")),
    "empty": (lambda r: edit(r / "answers.csv", 7, 1, ""), ("RowId 7 ", "no Location")),
    "word": (lambda r: edit(r / "answers.csv", 7, 1, "x"), ("answers.csv line 8", "'x' is not a number")),
    "no_lookup": (lambda r: (r / "IdLookupTable.csv").unlink(), ("IdLookupTable.csv", "cannot be read")),
    "no_picture": (lambda r: edit(r / "IdLookupTable.csv", 8, 1, "77"), ("RowId 8 ", "no image in test.csv")),
    "no_test": (lambda r: (r / "test.csv").unlink(), ("test.csv", "not a regular file")),
    "test_face_at_fault": (
        lambda r: (edit(r / "test.csv", 2, 0, "1"), replace(r / "IdLookupTable.csv", ",2,", ",1,")),
        ("test.csv#1: it is listed twice", "never scored in part"),
    ),
}


@pytest.mark.parametrize(("spoil", "words"), ANSWER_STOPS.values(), ids=ANSWER_STOPS)
def test_kaggle_answers_that_stop(tmp_path: Path, spoil: Callable[[Path], object], words: tuple[str, ...]) -> None:
    fake.write_kaggle(tmp_path, answers=True)
    spoil(tmp_path)
    stop(lambda: muct.read(tmp_path), str(tmp_path), *words)


def test_the_root(tmp_path: Path) -> None:
    where = ("training.csv", "kaggle.com", "login", "github.com/StephenMilborrow/muct", "data.root=DIR", "FLR_DATA")
    stop(lambda: muct.read(tmp_path / "none"), "no such folder", *where)
    stop(lambda: muct.read(tmp_path), "neither training.csv nor muct76-opencv.csv", *where)
    fake.write_kaggle(tmp_path / "inner")
    stop(lambda: muct.read(tmp_path), "one folder deeper", f"data.root={tmp_path / 'inner'}")
    fake.write_muct(tmp_path / "b" / "Zoë & a blank", 1)
    stop(lambda: muct.read(tmp_path / "b"), "one folder deeper", f"data.root={tmp_path / 'b' / 'Zoë & a blank'}")
    assert len(muct.read(tmp_path / "b" / "Zoë & a blank")) == 5
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/training.csv").symlink_to(tmp_path / "inner/training.csv")
    assert muct.read(tmp_path / "linked").load(0).shape == (96, 96)
    stop(lambda: muct.read(tmp_path / "inner/training.csv"), "no such folder")


def test_options_of_the_other_form(tmp_path: Path) -> None:
    fake.write_kaggle(tmp_path / "a")
    stop(lambda: muct.read(tmp_path / "a", points=76), "data.reader.points=15")
    stop(lambda: muct.read(tmp_path / "a", answers=True), "answers.csv", "cannot be read")
    fake.write_muct(tmp_path / "b", 1)
    stop(lambda: muct.read(tmp_path / "b", answers=True), "data.reader.answers=null")


# ---------------------------------------------------------------- MUCT's own form


def muct_truth(subjects: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 76, 2) points of a fake and (N, 76) whether each has a label."""
    points = fake.muct_points(ibug_fake.faces(5 * subjects, fake.MUCT_SIZE)).round(1).clip(1, 478)
    labelled = np.ones(points.shape[:2], bool)
    for i in range(len(points)):
        labelled[i, fake.HIDDEN.get("abcde"[i % 5], [])] = False
    return points, labelled


@pytest.mark.parametrize(("count", "landmarks"), [(76, "muct-landmarks"), (76, "."), (68, "muct-landmarks")])
def test_muct(tmp_path: Path, count: int, landmarks: str) -> None:
    fake.write_muct(tmp_path, 3, count=count, landmarks=landmarks)
    table = muct.read(tmp_path, strict=True)
    points, labelled = muct_truth(3)
    assert (table.form, table.scheme) == ("muct76", KAGGLE15) and len(table) == 15
    assert table.name[[0, 1, 4, 14]].tolist() == ["i000qa-fn", "i000qb-fn", "i000qe-f2", "i202se-fn"]
    assert table.group.tolist() == ["000"] * 5 + ["001"] * 5 + ["202"] * 5
    assert set(table.split) == {"train"}
    np.testing.assert_array_equal(table.labelled, MUCT76.reduce(labelled, "kaggle15"))
    assert (~table.labelled).sum() == 6 and not table.labelled[1, KAGGLE15.names.index("left_brow_outer")]
    known = table.labelled
    np.testing.assert_allclose(table.points[known], MUCT76.reduce(points, "kaggle15")[known], atol=1e-4)
    np.testing.assert_array_equal(table.subsets["complete"], known.all(1))
    tight = dataclasses.replace(table, points=points, labelled=labelled).tight
    np.testing.assert_allclose(table.box[:, :2] + table.box[:, 2:], tight[:, :2] + tight[:, 2:], rtol=1e-5)
    np.testing.assert_allclose(table.box[:, 2:] - table.box[:, :2], 1.25 * (tight[:, 2:] - tight[:, :2]), rtol=1e-4)
    assert table.load(0).shape == (640, 480, 3)
    assert table.version.all()


def test_muct_all_76(tmp_path: Path) -> None:
    fake.write_muct(tmp_path)
    table = muct.read(tmp_path, strict=True, points=76)
    points, labelled = muct_truth(3)
    assert (table.form, table.scheme) == ("muct76", MUCT76)
    np.testing.assert_array_equal(table.labelled, labelled)
    np.testing.assert_allclose(table.points[labelled], points[labelled], atol=1e-4)
    np.testing.assert_allclose(offset(table, points), 0, atol=0.1)
    fewer = muct.read(tmp_path)
    np.testing.assert_array_equal(table.reduce("kaggle15", KAGGLE15).points, fewer.points)
    np.testing.assert_array_equal(table.box, fewer.box)
    fake.write_muct(tmp_path / "68", 1, count=68)
    stop(lambda: muct.read(tmp_path / "68", points=76), "68 points a face, not 76", "data.reader.points=15")


@pytest.mark.parametrize("points", [15, 76])
def test_muct_mean_face_is_its_own_mirror_image(tmp_path: Path, points: int) -> None:
    fake.write_muct(tmp_path, 8)
    table = muct.read(tmp_path, points=points)  # type: ignore[arg-type]
    assert asymmetry(table) < 0.1
    wrong = dataclasses.replace(table.scheme, pairs=table.scheme.pairs[1:])
    assert asymmetry(dataclasses.replace(table, scheme=wrong)) > 0.3


def test_the_scheme_of_76_points() -> None:
    """A symmetric face is its own mirror image point by point, and its 15 points are those of iBUG's 68."""
    face = ibug_fake.layout()
    points = fake.muct_points(face)
    np.testing.assert_allclose(points[MUCT76.mirror_order] * [-1, 1], points, atol=1e-9)
    assert len(np.unique(points.round(6), axis=0)) == 76
    for small in MUCT76.reductions:
        np.testing.assert_allclose(MUCT76.reduce(points, small), IBUG68.reduce(face, small), atol=1e-9)


MUCT_STOPS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "column": (lambda r: replace(r / LABELS, ",x40,", ",x4O,"), ("no column", "'x40'",)),
    "tail_in_part": (lambda r: replace(r / LABELS, ",x75,", ",q75,"), ("no column", "'x75'",)),
    "no_pictures": (lambda r: (r / "jpg").rename(r / "gif"), ("no folder jpg/", "muct-a-jpg-v1.tar.gz")),
    "no_picture_at_all": (
        lambda r: [path.unlink() for path in (r / "jpg").iterdir()], ("no usable face is left of 5", "cannot be read"),
    ),
    "only_mirrored": (
        lambda r: replace(r / LABELS, "\ni0", "\nir0"), ("no usable face",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), MUCT_STOPS.values(), ids=MUCT_STOPS)
def test_muct_that_stops(tmp_path: Path, spoil: Callable[[Path], object], words: tuple[str, ...]) -> None:
    fake.write_muct(tmp_path, 1)
    spoil(tmp_path)
    stop(lambda: muct.read(tmp_path), str(tmp_path), *words)


MUCT_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "all_missing": (lambda r: [edit(r / LABELS, 2, k, "0") for k in range(2, 154)], "no point has a label"),
    "name": (lambda r: edit(r / LABELS, 2, 0, "face 1"), "line 3: its name is not of the form i000qa-fn"),
    "twice": (lambda r: edit(r / LABELS, 2, 0, "i000qa-fn"), "it is listed twice"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), MUCT_FAULTS.values(), ids=MUCT_FAULTS)
def test_muct_faults_of_one_face(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    fake.write_muct(tmp_path, 1)
    spoil(tmp_path)
    table = muct.read(tmp_path)
    assert len(table) == 4 and len(table.faults) == 1
    assert reason in table.faults[0].reason
    stop(lambda: muct.read(tmp_path, strict=True), reason)


# ---------------------------------------------------------------- the real labels


@pytest.fixture
def muct_labels(real_data: Path) -> Path:
    path = real_data / "muct_labels/muct76-opencv.csv"
    if not path.is_file():
        pytest.skip(f"needs real files: no {path}")
    return path


def test_real_muct_labels(muct_labels: Path) -> None:
    names, points, bad = muct.read_landmarks(muct_labels)
    assert len(names) == len(set(names)) == 3755 and points.shape == (3755, 68, 2) and not bad
    assert len({name[1:4] for name in names}) == 276
    lacking = np.isnan(points).any(-1)
    assert lacking.sum() == 2544 and lacking.any(1).sum() == 840
    assert np.flatnonzero(lacking.any(0)).tolist() == [15, 16, 20, 39, 42, 43, 44, 45, 47]
    cameras = np.array([name[5] for name in names])
    assert {c: int(lacking[cameras == c].any(1).sum()) for c in "abcde"} == {"a": 0, "b": 160, "c": 680, "d": 0, "e": 0}
    assert np.nanmax(points, (0, 1)).tolist() == [479, 639]


def test_real_muct_mirrored_rows_are_the_pairs(muct_labels: Path) -> None:
    """Milborrow's own mirrored rows are 479 - x with our pairs swapped: the pairs are his, the coordinates 0-based."""
    with muct_labels.open(newline="") as file:
        _, *rows = csv.reader(file)
    names, points = [row[0] for row in rows], np.array([row[2:] for row in rows], float).reshape(-1, 68, 2)
    points[(points == 0).all(-1)] = np.nan
    place = {name: i for i, name in enumerate(names)}
    turned = [i for i, name in enumerate(names) if name.startswith("ir")]
    plain = [place["i" + names[i][2:]] for i in turned]
    assert len(turned) == 3755
    order = MUCT76.mirror_order[:68]
    expected = points[plain][:, order] * [-1, 1] + [479, 0]
    np.testing.assert_array_equal(np.isnan(points[turned]), np.isnan(expected))
    assert np.nanmax(np.abs(points[turned] - expected)) < 0.11  # he moved what fell onto (0, 0) of his centred frame
    assert np.nanmean(np.abs(points[turned] - expected)) < 1e-5


def mean_shape(points: np.ndarray) -> np.ndarray:
    """(K, 2) the mean of faces (N, K, 2) laid over each other by similarities."""
    mean = points[0]
    for _ in range(4):
        mean = transform(fit_similarity(points, np.broadcast_to(mean, points.shape)), points).mean(0)
    return mean


def kaggle_labels(root: Path) -> np.ndarray:
    """(7049, 15, 2) the genuine labels, NaN where missing."""
    path = root / "kaggle_labels/training_labels.csv"
    if not path.is_file():
        pytest.skip(f"needs real files: no {path}")
    head, *rows = csv.reader(path.open())
    assert tuple(head) == kaggle.FEATURES
    return np.array([[float(v) if v else np.nan for v in row] for row in rows]).reshape(-1, 15, 2)


def test_real_shapes_agree(real_data: Path, muct_labels: Path) -> None:
    """Three sets that were labelled apart have the same 15 points: MUCT's by our reduction, 300-W's by another."""
    _, points, _ = muct.read_landmarks(muct_labels)
    groups = [list(group) for group in MUCT76.reductions["kaggle15"]]
    mine = np.stack([points[:, group].mean(1) for group in groups], 1)
    shapes = [
        mean_shape(part[np.isfinite(part).all((1, 2))])
        for part in (mine, kaggle_labels(real_data), IBUG68.reduce(ibug.read(real_data / "300w").points, "kaggle15"))
    ]
    for shape in shapes[1:]:
        apart = np.linalg.norm(transform(fit_similarity(shapes[0], shape), shapes[0]) - shape, axis=-1)
        assert (apart / np.linalg.norm(shape[0] - shape[1])).max() < 0.08
        swapped = shapes[0][KAGGLE15.mirror_order]
        assert (
            np.linalg.norm(transform(fit_similarity(swapped, shape), swapped) - shape, axis=-1).max() > 10 * apart.max()
        )


def test_real_kaggle_labels(real_data: Path, tmp_path: Path) -> None:
    """All 7049 genuine rows, with no pixels: what is missing is missing, and no row is lost."""
    truth = kaggle_labels(real_data)
    source = (real_data / "kaggle_labels/training_labels.csv").read_text().splitlines()
    (tmp_path / "training.csv").write_text("\n".join([f"{source[0]},Image", *(f"{line},1 2" for line in source[1:])]))
    table = muct.read(tmp_path, strict=True)
    known = np.isfinite(truth).all(-1)
    np.testing.assert_array_equal(table.labelled, known)
    np.testing.assert_allclose(table.points[known], truth[known], atol=1e-4)
    assert len(table) == 7049 and table.subsets["complete"].sum() == 2140
    assert table.labelled[2284:].sum(1).max() == 4 and not table.subsets["complete"][2284:].any()
    whole = table.take(np.flatnonzero(table.subsets["complete"]))
    assert asymmetry(whole) < 0.05
    stop(lambda: table.load(0), "2 pixels, not 96 x 96")


def test_real_pictures_in_kaggles_form(real_data: Path, real_forms: Path) -> None:
    """300-W's photos in Kaggle's form, written elsewhere: the same points on the same pixels."""
    table = muct.read(real_forms / "kaggle", strict=True)
    assert table.form == "muct_csv+answers" and len(table) == 80
    test = table.take(np.flatnonzero(table.split == "test"))
    assert asymmetry(test) < 0.1
    photos = ibug.read(real_data / "300w")
    photos = photos.take(np.flatnonzero(photos.split == "test")[:40])
    to_crop = BoxPolicy(scale=1.25).crop(photos.tight.astype(float), 96)
    mapped = transform(to_crop, IBUG68.reduce(photos.points, "kaggle15").astype(float))
    # Its crop is cut half a pixel of the photo's beside ours, so points and pixels both lie up to that apart.
    np.testing.assert_allclose(test.points, mapped, atol=0.6)
    for i in range(0, 40, 8):
        ours = crop(cv2.cvtColor(photos.load(i), cv2.COLOR_RGB2GRAY), to_crop[i], 96, 1)[..., 0].astype(float)
        assert np.corrcoef(ours.ravel(), test.load(i).ravel())[0, 1] > 0.97
