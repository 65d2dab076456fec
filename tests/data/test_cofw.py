"""COFW's reader against its fake, and spoiled and hostile Matlab files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flr.data.readers import cofw
from flr.data.table import FaceTable
from flr.landmarks.scheme import COFW29
from flr.system import parallel_map
from tests.data.support import asymmetry, offset, stop
from tests.fakes import cofw as fake

TRAIN, TEST = "COFW_train_color.mat", "COFW_test_color.mat"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fake.write(tmp_path)
    return tmp_path


def of(table: FaceTable, split: str) -> FaceTable:
    return table.take(table.split == split)


# ---------------------------------------------------------------- what is read


def test_columns(root: Path) -> None:
    table = cofw.read(root, strict=True)
    assert table.form == "cofw[train:7|test:4]" and table.scheme is COFW29 and not table.faults
    assert table.split.tolist() == ["train"] * 7 + ["test"] * 4
    assert table.name.tolist() == [f"train/{i:04d}" for i in range(1, 8)] + [f"test/{i:04d}" for i in range(1, 5)]
    assert table.group.tolist() == table.image.tolist() == table.name.tolist()
    truth = np.concatenate([fake.faces("train", 7), fake.faces("test", 4)])
    np.testing.assert_allclose(table.points, truth, atol=1e-4)
    assert table.points.dtype == table.box.dtype == np.float32 and table.labelled.all()
    np.testing.assert_array_equal(table.visible, ~np.concatenate([fake.hidden("train", 7), fake.hidden("test", 4)]))
    assert table.subsets["occlusion"].tolist() == [False] * 4 + [True] * 3 + [False, True, True, True]
    np.testing.assert_array_equal(
        table.box, np.concatenate([truth.min(1).round() - 0.5, truth.max(1).round() + 0.5], 1)
    )
    assert asymmetry(table) < 0.12  # the real mean face has .06


def test_pictures_are_upright_and_rgb(root: Path) -> None:
    table = cofw.read(root)
    for split in ("train", "test"):
        part = of(table, split)
        drawn = fake.images(fake.faces(split, len(part)), fake.ibug.SIZE, colour=True)
        assert {picture.ndim for picture in drawn} >= {3}
        for i, picture in enumerate(drawn):
            loaded = part.load(i)
            assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous
            np.testing.assert_array_equal(loaded, picture)


def test_points_lie_on_the_pixels(tmp_path: Path) -> None:
    """The files count from 1; a slip of one pixel shows here."""
    fake.write(tmp_path, size=(240, 216))
    assert np.abs(offset(cofw.read(tmp_path))).max() < 0.1


def test_grey(root: Path, tmp_path: Path) -> None:
    fake.write(tmp_path / "grey", colour=False)
    table = cofw.read(tmp_path / "grey")
    assert table.form == "cofw_grey[train:7|test:4]"
    assert all(table.load(i).shape == (128, 144) for i in range(len(table)))
    for path in (tmp_path / "grey").iterdir():
        path.rename(root / path.name)
    assert cofw.read(root).form == "cofw[train:7|test:4]"
    (root / TEST).unlink()
    assert cofw.read(root).form == "cofw_grey[train:7|test:4]"  # colour is not all there


def test_form_of_the_whole_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cofw.TOTAL == {"train": 1345, "test": 507}
    monkeypatch.setattr(cofw, "TOTAL", {"train": 7, "test": 4})
    assert cofw.read(root).form == "cofw"


def test_workers_load_the_same(tmp_path: Path) -> None:
    fake.write(tmp_path, {"train": 36, "test": 4}, size=(40, 36))
    table = cofw.read(tmp_path)
    table.load(0)  # the parent has had the file open
    loaded = parallel_map(table.load, len(table), workers=2)
    for i, picture in enumerate(loaded):
        np.testing.assert_array_equal(picture, table.load(i))


def test_a_changed_file_is_another_version(root: Path) -> None:
    before = cofw.read(root)
    os.utime(root / TEST, ns=(1, 1))
    after = cofw.read(root)
    assert ((before.version != after.version) == (after.split == "test")).all()
    assert before.fingerprint() == after.fingerprint()


# ---------------------------------------------------------------- what is wrong


def put(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def hdf5(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return spoil


def array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], object]:
    """Another array of that name."""

    def spoil(file: h5py.File) -> None:
        values = file[name][()]
        del file[name]
        file[name] = change(values)

    return hdf5(spoil)


def claim(name: str, shape: tuple[int, ...], dtype: Any = "f8", **how: Any) -> Callable[[Path], object]:
    """An array that takes no room on the disk and all of it in memory."""

    def spoil(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, **how)

    return hdf5(spoil)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    """The labels of a sound file behind a link out of this one."""
    other = path.with_name("other.mat")
    other.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["phisTr"]
        file["phisTr"] = h5py.ExternalLink(str(other), "/phisTr")


def outside(path: Path) -> None:
    """Labels that are the bytes of another file."""
    with h5py.File(path, "r+") as file:
        shape = file["phisTr"].shape
        del file["phisTr"]
        file.create_dataset("phisTr", shape, "f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(path: Path) -> None:
    other = path.with_name("other.mat")
    other.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        shape = file["phisTr"].shape
        layout = h5py.VirtualLayout(shape, "f8")
        layout[...] = h5py.VirtualSource(str(other), "phisTr", shape)
        del file["phisTr"]
        file.create_virtual_dataset("phisTr", layout)


STOPS = {
    "older_matlab": (put(b"MATLAB 5.0 MAT-file, Platform: PCWIN64".ljust(124) + b"\0\1IM" + bytes(900)), "'-v7.3'"),
    "folder": (folder, "is not a file"),
    "pipe": (pipe, "is not a file"),
    "cut": (cut, "cannot be read as Matlab 7.3"),
    "no_pictures": (hdf5(lambda file: file.pop("IsTr")), "it holds no array IsTr"),
    "group": (hdf5(lambda file: (file.pop("phisTr"), file.create_group("phisTr"))), "phisTr is not an array"),
    "external_link": (link, "it holds no array phisTr"),
    "external_values": (outside, "phisTr keeps its values in another file"),
    "virtual_values": (virtual, "phisTr keeps its values in another file"),
    "turned": (array("phisTr", lambda values: values.T), "phisTr is float64 (7, 87), not numbers (87, 7)"),
    "text": (array("phisTr", lambda values: values.astype("S8")), "phisTr is |S8 (87, 7), not numbers"),
    "nothing": (array("phisTr", lambda values: h5py.Empty("f8")), "phisTr is not an array"),
    "no_references": (array("IsTr", lambda values: np.zeros((1, 7))), "IsTr is float64 (1, 7), not references"),
    "absurd_labels": (claim("phisTr", (87, 10**12), chunks=(87, 10)), "phisTr claims 87 x 1000000000000 elements"),
    "absurd_chunks": (claim("phisTr", (87, 7), chunks=(87, 10**6), maxshape=(None, None)), "phisTr claims 87 x 7"),
    "absurd_faces": (claim("IsTr", (1, 10**12), h5py.ref_dtype, chunks=(1, 10)), "IsTr claims 1 x 1000000000000"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), STOPS.values(), ids=STOPS)
def test_stops(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(root / TRAIN)
    stop(lambda: cofw.read(root), str(root / TRAIN), reason)


def number(name: str, row: int, value: float) -> Callable[[Path], object]:
    """Another number of the second face."""

    def spoil(file: h5py.File) -> None:
        file[name][row, 1] = value

    return hdf5(spoil)


def picture(make: Callable[[h5py.File], Any]) -> Callable[[Path], object]:
    """Another image of the second face: what `make` returns is referred to."""

    def spoil(file: h5py.File) -> None:
        made = make(file)
        file["IsTr"][0, 1] = made if isinstance(made, h5py.Reference) else made.ref

    return hdf5(spoil)


def gone(file: h5py.File) -> h5py.Reference:
    reference = file.create_dataset("gone", data=np.zeros((4, 4), np.uint8)).ref
    del file["gone"]
    return reference


def claimed(shape: tuple[int, ...], dtype: Any = np.uint8, **how: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset("other", shape, dtype, **how)


FAULTS = {
    "nan": (number("phisTr", 0, np.nan), "a point is not a finite number"),
    "1e300": (number("phisTr", 40, -1e300), "a point is not a finite number"),
    "flag": (number("phisTr", 86, 57.0), "an occlusion is not between 0 and 1"),
    "no_width": (number("bboxesTr", 2, 0), "its box has no size"),
    "null": (picture(lambda file: h5py.Reference()), f"{TRAIN}: its image is a reference to nothing"),
    "gone": (picture(gone), f"{TRAIN}: "),
    "to_a_group": (picture(lambda file: file["#refs#"]), "its image is not an array"),
    "to_labels": (picture(lambda file: file["phisTr"]), "its image is float64 (87, 7), not uint8 (W, H) or (3,"),
    "channels_last": (picture(claimed((20, 20, 3))), "its image is uint8 (20, 20, 3), not"),
    "sixteen_bits": (picture(claimed((20, 20), np.uint16)), "its image is uint16 (20, 20), not"),
    "absurd": (picture(claimed((10**6, 10**6), chunks=(10, 10))), "its image claims 1000000 x 1000000 elements"),
    "outside": (
        picture(claimed((20, 20), external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])),
        "its image keeps its values in another file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(root: Path, spoil: Callable[[Path], object], reason: str) -> None:
    """One face is named, counted and skipped; it stops a strict reading, and any where it is a test face."""
    spoil(root / TRAIN)
    table = cofw.read(root)
    assert [fault.face for fault in table.faults] == ["train/0002"] and reason in table.faults[0].reason
    assert len(table) == 10 and np.isfinite(table.points).all() and np.isfinite(table.box).all()
    np.testing.assert_array_equal(table.load(1), fake.images(fake.faces("train", 7), fake.ibug.SIZE, True)[2])
    stop(lambda: cofw.read(root, strict=True), str(root), "train/0002", reason, "data.strict=false")


def test_a_faulty_test_face_stops(root: Path) -> None:
    with h5py.File(root / TEST, "r+") as file:
        file["phisT"][3, 2] = np.nan
    stop(lambda: cofw.read(root), str(root), "test/0003: a point is not a finite number; it is a test face")


def test_damaged_pixels(root: Path) -> None:
    """Pixels are looked at when they are loaded, not before."""
    table = cofw.read(root)
    with h5py.File(root / TRAIN, "r") as file:
        at = file["#refs#/p1"].id.get_chunk_info(0).byte_offset
    data = bytearray((root / TRAIN).read_bytes())
    data[at : at + 40] = bytes(40)
    (root / TRAIN).write_bytes(data)
    assert len(cofw.read(root)) == 11
    stop(lambda: table.load(1), str(root / TRAIN), "cannot be read as Matlab 7.3")
    assert table.load(0).size
    (root / TRAIN).unlink()
    stop(lambda: table.load(0), str(root / TRAIN), "is not a file")
