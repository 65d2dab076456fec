"""Datasets of the field in their publishers' own forms: every face where it is drawn, splits, subsets, faults."""

import contextlib
import dataclasses
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from flr.data.formats.mat import read_mat
from flr.data.readers import aflw, face_synthetics, lapa, merl_rav, vw300, w300lp, wholebody
from flr.data.table import FaceTable
from flr.landmarks.scheme import get_scheme
from tests.data.support import asymmetry, offset, stop
from tests.fakes import field

READERS: dict[str, tuple[Callable[[Path], object], Callable[..., FaceTable]]] = {
    "lapa": (field.write_lapa, lapa.read),
    "face_synthetics": (field.write_face_synthetics, face_synthetics.read),
    "aflw": (field.write_aflw, aflw.read),
    "w300lp": (field.write_w300lp, w300lp.read),
    "wholebody": (field.write_wholebody, wholebody.read),
    "merl_rav": (field.write_merl_rav, merl_rav.read),
    "vw300": (field.write_vw300, lambda root, **options: vw300.read(root, every=1, **options)),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in READERS}
    for name, (write, _) in READERS.items():
        write(folders[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aflw, "TRAINING", 5)
        yield folders


@pytest.mark.parametrize("name", READERS)
def test_every_point_is_where_it_is_drawn(roots: dict[str, Path], name: str) -> None:
    table = READERS[name][1](roots[name])
    dots = (
        table.take(np.array([i for i in range(len(table)) if table.labelled[i].all()]))
        if name != "wholebody"
        else table
    )
    boxed = np.isfinite(table.box).all(1) & table.labelled.all(1)
    assert np.abs(table.box - table.tight)[boxed].max(initial=0) < 0.01 and boxed.any() == (
        name in ("aflw", "wholebody")
    )
    known = dataclasses.replace(dots, points=np.where(dots.labelled[..., None], dots.points, -99))
    assert np.abs(offset(known)).max() < 0.1
    assert asymmetry(dots) < 0.2, "the pairs are those of its points"
    for small in table.scheme.reductions:
        reduced = dots.reduce(small, get_scheme(small))
        assert asymmetry(reduced) < 0.2
    assert len(set(table.name.tolist())) == len(table) and set(table.split.tolist()) <= {"train", "val", "test"}


COUNTS = {
    "lapa": {"train": 4, "val": 2, "test": 2}, "face_synthetics": {"train": 8}, "aflw": {"train": 5, "test": 3},
    "w300lp": {"train": 12, "test": 3}, "wholebody": {"train": 4, "test": 1}, "vw300": {"train": 5, "test": 7}, "merl_rav": {"train": 8, "test": 4},
}  # fmt: skip
SUBSETS = {
    "aflw": {"frontal": 7},
    "w300lp": {"yaw30": 1, "yaw60": 1, "yaw90": 1},
    "vw300": {"category1": 4, "category3": 3},
    "merl_rav": {"frontal": 6, "left": 6},
}
GROUPS = {"lapa": 2, "face_synthetics": 8, "aflw": 7, "w300lp": 8, "wholebody": 5, "vw300": 3, "merl_rav": 6}
FORMS = {
    "lapa": "lapa[train:4|val:2|test:2]", "face_synthetics": "face_synthetics[8]", "aflw": "aflw[train:5|test:3]",
    "w300lp": "w300lp-3d[train:12|test:3]", "wholebody": "wholebody", "vw300": "vw300-1[3]", "merl_rav": "merl_rav[train:8|test:4]",
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_splits_subsets_and_groups(roots: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = READERS[name][1](roots[name])
    splits, counts = np.unique(table.split, return_counts=True)
    assert dict(zip(splits.tolist(), counts.tolist(), strict=True)) == COUNTS[name]
    assert {subset: int(mask.sum()) for subset, mask in table.subsets.items()} == SUBSETS.get(name, {})
    assert len(set(table.group.tolist())) == GROUPS[name] and table.form == FORMS[name]
    if name == "wholebody":
        assert capsys.readouterr().err.count("skipped 1 faces under 16 pixels") == 2
        without = ~table.labelled[:, 0]
        assert without.sum() == 3 and table.labelled[:, 1].all() and not table.visible[without, 1].any()


@pytest.mark.parametrize("name", READERS)
def test_nothing_there_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    stop(lambda: READERS[name][1](tmp_path), str(tmp_path), "is in it; get ", "set data.root=DIR")
    stop(lambda: READERS[name][1](tmp_path / "none"), "there is no such folder")


SPOILED = {
    "lapa": "train/landmarks/1000_0.txt", "face_synthetics": "000000_ldmks.txt",
    "w300lp": "300W_LP/landmarks/AFW/AFW_134212_1_0_pts.mat", "vw300": "001/annot/000001.pts",
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize(
    "content", [b"", b"106\n1 2\n", b"<html>", b"106\n" + b"1 nan\n" * 106], ids=["empty", "short", "page", "nan"]
)
def test_a_damaged_label_is_named_and_skipped(roots: dict[str, Path], name: str, content: bytes) -> None:
    path = roots[name] / SPOILED[name]
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        table = READERS[name][1](roots[name])
    finally:
        path.write_bytes(whole)
    assert len(table.faults) == 1 and path.name.partition("_pts")[0].partition("_ldmks")[0][:6] in str(table.faults[0])
    assert len(table) == sum(COUNTS[name].values()) - 1


@pytest.mark.parametrize(("name", "file", "content", "message"), [
    ("aflw", "AFLWinfo_release.mat", b"no", "not AFLWinfo_release.mat"),
    ("wholebody", "annotations/coco_wholebody_val_v1.0.json", b"{}", "not COCO-WholeBody's"),
    ("wholebody", "annotations/coco_wholebody_val_v1.0.json",
     b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "face_valid": true, "face_box": '
     b'[0, 0, 20, 1' + b"0" * 400 + b']}]}', "face_box holds a number that is not finite"),
    ("wholebody", "annotations/coco_wholebody_val_v1.0.json", b'{"images": [], "annotations": [{"face_valid": true}]}', "not COCO-W"),
])  # fmt: skip
def test_a_file_of_all_faces_that_is_damaged_stops(
    roots: dict[str, Path], name: str, file: str, content: bytes, message: str
) -> None:
    path = roots[name] / file
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        stop(lambda: READERS[name][1](roots[name]), str(path), message)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(("key", "change", "message"), [
    ("ra", lambda values: values + 1, "ra is not an order of its faces"),
    ("data", lambda values: values * 1e300, "data holds a number that is not below 1e+09"),
    ("bbox", lambda values: values / 0.0, "bbox holds a number that is not below 1e+09"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_aflw_s_arrays_must_agree(
    roots: dict[str, Path], tmp_path: Path, key: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    arrays = loadmat(roots["aflw"] / "AFLWinfo_release.mat")
    arrays[key] = change(arrays[key])
    savemat(
        tmp_path / "AFLWinfo_release.mat", {key: arrays[key] for key in ("nameList", "data", "mask_new", "bbox", "ra")}
    )
    stop(lambda: aflw.read(tmp_path), message)


def test_an_unknown_kind_of_element_is_refused_before_scipy_reads_it(roots: dict[str, Path], tmp_path: Path) -> None:
    """SciPy's table of kinds has 20 places; the kind 4096 ended the process."""
    data = (roots["aflw"] / "AFLWinfo_release.mat").read_bytes()
    at = data.index(b"image00000.jpg") - 10  # the tag of the first name's text
    assert data[at : at + 4] == struct.pack("<I", 16)
    (tmp_path / "AFLWinfo_release.mat").write_bytes(data[:at] + struct.pack("<I", 4096) + data[at + 4 :])
    stop(lambda: aflw.read(tmp_path), "an element of kind 4096 and 16 bytes does not fit")
    size = (
        data.rindex(struct.pack("<II", 5, 8), 0, at) + 4
    )  # a size of 9 bytes takes in the name, and the text becomes the name
    (tmp_path / "AFLWinfo_release.mat").write_bytes(data[:size] + struct.pack("<I", 9) + data[size + 4 :])
    stop(lambda: aflw.read(tmp_path), "a variable has no class, size and name")


MATRICES = [np.zeros((68, 2)), np.zeros((0, 3)), np.zeros(1, np.uint8), np.array(["ab", "c"], object)]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("values", MATRICES, ids=["numbers", "empty", "byte", "cell"])
def test_sound_matlab_files_are_read(tmp_path: Path, values: np.ndarray, compressed: bool) -> None:
    savemat(tmp_path / "a.mat", {"a": values, "b": {"c": np.ones(3), "d": "text"}}, do_compression=compressed)
    found, data = read_mat(tmp_path / "a.mat", ["a"], 1 << 20), (tmp_path / "a.mat").read_bytes()
    np.testing.assert_array_equal(found["a"], loadmat(tmp_path / "a.mat")["a"])
    for end in range(120, len(data), 7):
        (tmp_path / "cut.mat").write_bytes(data[:end])
        with contextlib.suppress(Exception):
            read_mat(tmp_path / "cut.mat", ["a"], 1 << 20)


@pytest.mark.parametrize(
    "spoilt", [{"pts_3d": np.full((68, 2), 1e300)}, {"Pose_Para": np.full((1, 7), 1e308)}], ids=["points", "yaw"]
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_no_image_can_have_are_a_fault(
    roots: dict[str, Path], tmp_path: Path, spoilt: dict[str, np.ndarray]
) -> None:
    root = tmp_path / "set"
    shutil.copytree(roots["w300lp"], root)
    path = root / "300W_LP/landmarks/AFW/AFW_134212_1_0_pts.mat"
    savemat(path, {key: value for key, value in loadmat(path).items() if not key.startswith("_")} | spoilt)
    (fault,) = w300lp.read(root).faults
    assert path.name in fault.reason


def test_pupils_are_those_of_their_eyes(tmp_path: Path) -> None:
    field.write_face_synthetics(tmp_path, 4, crossed=True)
    points = face_synthetics.read(tmp_path).points
    assert np.allclose(points[:, 68], points[:, 36:42].mean(1), atol=0.01)


def test_frames_are_those_of_their_number(roots: dict[str, Path]) -> None:
    table = READERS["vw300"][1](roots["vw300"])
    backwards = [table.load(i) for i in range(len(table))][::-1]
    assert all(
        np.array_equal(table.load(i), image) for i, image in zip(range(len(table))[::-1], backwards, strict=True)
    )
    stop(lambda: table.read_image("001/000099"), "has no frame 000099")
    assert vw300.read(roots["vw300"], every=2).name[:3].tolist() == ["001/000001", "001/000003", "001/000005"]


def test_two_dimensional_points_have_no_test_part(roots: dict[str, Path]) -> None:
    assert set(w300lp.read(roots["w300lp"], points="2d").split.tolist()) == {"train"}


def test_a_file_of_coco_wholebody_is_enough(roots: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    place = "annotations/coco_wholebody_val_v1.0.json"
    (tmp_path / place).write_text((roots["wholebody"] / place).read_text())
    (tmp_path / "val2017").symlink_to(roots["wholebody"] / "val2017")
    assert len(wholebody.read(tmp_path, smallest=0)) == 2
    assert json.loads((tmp_path / place).read_text())["annotations"][2]["face_valid"] is False


def test_hidden_points_of_merl_rav(roots: dict[str, Path]) -> None:
    table = merl_rav.read(roots["merl_rav"])
    partly = np.flatnonzero(~table.labelled.all(1))
    assert len(partly) == 4 and (~table.labelled[partly]).sum(1).tolist() == [3] * 4
    assert (
        np.flatnonzero((table.labelled & ~table.visible)[partly[0]]).tolist() == [3]
        and (table.points[partly, 3] > 0).all()
    )
