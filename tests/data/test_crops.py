"""The crop store: what it holds, that it decodes once, and that a broken build is never trusted."""

import dataclasses
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from flr.data.boxes import BoxPolicy, face_boxes
from flr.data.crops import SEEN, CropSettings, CropStore, crop, crop_labels, open_store, to_channels
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.landmarks.geometry import transform
from tests.landmarks.painted import dot, face_picture, face_points, face_table

SETTINGS = CropSettings(64, 1, BoxPolicy())
PARTS = ("train",) * 4 + ("test",) * 2


def picture(i: int) -> np.ndarray:
    return face_picture(face_points(len(PARTS))[i])


def must_not_load(i: int) -> np.ndarray:
    raise AssertionError(f"face {i} was decoded again")


def broken_at(*faces: int):
    def load(i: int) -> np.ndarray:
        if i in faces:
            raise UserError(f"picture{i}.jpg: a truncated JPEG")
        return picture(i)

    return load


def table_of(load=picture, parts: tuple[str, ...] = PARTS) -> FaceTable:
    return face_table(parts, load=load)


def open_(table: FaceTable, cache: Path, settings=SETTINGS, margin=1.0, workers=0, strict=False):
    return open_store(table, settings, margin, cache, workers, strict)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [BoxPolicy(), BoxPolicy("truth", 1.1, "stretch")], ids=str)
@pytest.mark.parametrize("size", [64, 24])
def test_the_store_is_the_crop_of_each_face(tmp_path, channels, policy, size):
    settings = CropSettings(size, channels, policy)
    table, store = open_(table_of(), tmp_path, settings)
    assert store.images.shape == (6, size, size, channels)
    assert store.images.dtype == np.uint8
    maps = policy.crop(face_boxes(table, policy, tmp_path, 0).box, size)
    np.testing.assert_allclose(store.to_crop(), maps)
    for i in range(6):
        np.testing.assert_array_equal(store.images[i], crop(picture(i), maps[i], size, channels))


@pytest.mark.parametrize("margin", [1.0, 1.3])
def test_dots_lie_under_the_labels(tmp_path, margin):
    table, store = open_(table_of(), tmp_path, margin=margin)
    labels = crop_labels(table, store)
    assert labels.dtype == np.float32
    for image, points in zip(store.images, labels, strict=True):
        for point in points:
            at = point + store.margin
            assert np.linalg.norm(dot(image[..., 0], at)[0] - at) < 0.06


def test_the_middle_of_a_store_with_a_margin_is_the_store_without(tmp_path):
    _, plain = open_(table_of(), tmp_path)
    _, wide = open_(table_of(), tmp_path, margin=1.4)
    assert wide.margin == 13  # ceil(64 * .4 / 2)
    assert wide.images.shape[1] == 64 + 2 * 13
    np.testing.assert_allclose(wide.to_crop(), plain.to_crop())
    middle = wide.images[:, 13:-13, 13:-13].astype(int)
    assert np.abs(middle - plain.images).max() <= 3  # OpenCV rounds a map to 1/32 pixel, from another origin
    assert np.abs(middle - plain.images).mean() < 0.1


def test_labels_of_unlabelled_points_are_finite():
    labelled = np.ones((6, 5), bool)
    labelled[1, 2] = False
    table = face_table(PARTS, labelled=labelled)
    table.points[1, 2] = np.nan
    maps = SETTINGS.policy.crop(table.tight.astype(float), 64)
    store = CropStore(SETTINGS, np.zeros((6, 64, 64, 1), np.uint8), maps, np.zeros(6, SEEN), {}, None, Path())
    labels = crop_labels(table, store)
    assert np.isfinite(labels).all()
    assert (labels[1, 2] == 0).all()
    assert (labels[labelled] != 0).all()


def test_opening_again_decodes_nothing(tmp_path):
    _, first = open_(table_of(), tmp_path)
    table, again = open_(table_of(must_not_load), tmp_path)
    assert len(table) == 6
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.to_store, first.to_store)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": CropSettings(48, 1, BoxPolicy())},
        {"settings": CropSettings(64, 3, BoxPolicy())},
        {"settings": CropSettings(64, 1, BoxPolicy("truth", 1.3))},
        {"settings": CropSettings(64, 1, BoxPolicy("truth", 1.25, "stretch"))},
        {"margin": 1.2},
        {"table": face_table(PARTS, seed=1)},
    ],
    ids=["size", "channels", "scale", "shape", "margin", "labels"],
)
def test_other_settings_are_another_store(tmp_path, change):
    open_(table_of(), tmp_path)
    table = dataclasses.replace(change.pop("table", table_of()), read_image=must_not_load)
    with pytest.raises(AssertionError, match="decoded again"):
        open_(table, tmp_path, **change)


def test_what_is_written_to_a_store_stays_in_memory(tmp_path):
    _, store = open_(table_of(), tmp_path)
    before = store.images.copy()
    store.images[:] = 0
    np.testing.assert_array_equal(open_(table_of(), tmp_path)[1].images, before)


@pytest.mark.parametrize("reopened", [False, True])
def test_a_training_picture_that_cannot_be_decoded_is_named_and_left_out(tmp_path, reopened):
    if reopened:
        open_(table_of(broken_at(1, 3)), tmp_path)
    table, store = open_(table_of(broken_at(1, 3)), tmp_path)
    assert table.name.tolist() == ["face0", "face2", "face4", "face5"]
    assert [(fault.face, fault.reason) for fault in table.faults] == [
        ("face1", "picture1.jpg: a truncated JPEG"), ("face3", "picture3.jpg: a truncated JPEG"),
    ]  # fmt: skip
    assert len(store.images) == len(store.to_store) == 4
    for row, i in enumerate((0, 2, 4, 5)):
        np.testing.assert_array_equal(store.images[row], crop(picture(i), store.to_store[row], 64, 1))
        np.testing.assert_array_equal(table.points[row], face_points(6)[i])


@pytest.mark.parametrize(("face", "strict"), [(4, False), (1, True)], ids=["test part", "strict"])
def test_it_stops_where_no_face_may_be_missing(tmp_path, face, strict):
    for _ in range(2):  # built, and opened again
        with pytest.raises(UserError, match=f"face{face}: picture{face}.jpg: a truncated JPEG"):
            open_(table_of(broken_at(face)), tmp_path, strict=strict)


def test_no_picture_at_all_is_told(tmp_path):
    with pytest.raises(UserError, match="no usable face is left of 3"):
        open_(table_of(broken_at(0, 1, 2), ("train",) * 3), tmp_path)


def test_a_build_that_fails_leaves_nothing_to_trust(tmp_path):
    def fails(i: int) -> np.ndarray:
        if i == 3:
            raise RuntimeError("half way")
        return np.zeros((100, 120), np.uint8)

    with pytest.raises(RuntimeError, match="half way"):
        open_(table_of(fails), tmp_path)
    assert [path for path in (tmp_path / "crops").iterdir() if path.is_dir()] == []
    _, store = open_(table_of(), tmp_path)
    assert (store.images.max((1, 2, 3)) > 100).all()


@pytest.fixture
def one_thread():
    """OpenCV's threads do not live on in a fork."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def in_process(target) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def test_a_build_that_is_killed_leaves_nothing_to_trust(tmp_path, one_thread):
    def dies(i: int) -> np.ndarray:
        if i == 3:
            os._exit(9)
        return np.zeros((100, 120), np.uint8)

    process = in_process(lambda: open_(table_of(dies), tmp_path))
    process.join(60)
    assert process.exitcode == 9
    _, store = open_(table_of(), tmp_path)
    assert (store.images.max((1, 2, 3)) > 100).all()


def test_two_processes_build_once(tmp_path, one_thread):
    barrier = multiprocessing.get_context("fork").Barrier(2)
    log = tmp_path / "decoded"
    log.touch()

    def counted(i: int) -> np.ndarray:
        with log.open("a") as file:
            file.write(f"{i}\n")
        return picture(i)

    def job() -> None:
        barrier.wait(60)
        _, store = open_(table_of(counted), tmp_path / "cache")
        os._exit(0 if (store.images.max((1, 2, 3)) > 100).all() else 1)

    processes = [in_process(job), in_process(job)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == list("012345")


def test_threads_give_the_same_store(tmp_path):
    table = face_table(("train",) * 70)  # more than one span of work
    alone, together = (open_(table, tmp_path / str(workers), workers=workers)[1] for workers in (0, 3))
    np.testing.assert_array_equal(alone.images, together.images)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        open_(table_of(), tmp_path / "file")


def test_a_set_without_boxes_names_the_policy_that_works(tmp_path):
    with pytest.raises(UserError, match=r"data\.crop\.policy\.source=truth"):
        open_(table_of(), tmp_path, CropSettings(64, 1, BoxPolicy("file")))


def test_the_file_box_is_used_where_it_is_asked_for(tmp_path):
    table = dataclasses.replace(table_of(), box=np.tile(np.float32([20, 10, 80, 70]), (6, 1)))
    _, store = open_(table, tmp_path, CropSettings(64, 1, BoxPolicy("file", 1.0)))
    np.testing.assert_allclose(transform(store.to_crop(), np.full((6, 1, 2), [50.0, 40.0])), 31.5)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_to_channels(shape, channels):
    image = np.full(shape, 90, np.uint8)
    out = to_channels(image, channels)
    assert out.shape == ((4, 5) if channels == 1 else (4, 5, 3))
    assert (out == 90).all()


def test_grey_weighs_the_colours_of_rgb():
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    assert to_channels(red, 1)[0, 0] == round(0.299 * 200)


def test_pictures_that_changed_are_cropped_anew(tmp_path):
    table = table_of()
    _, before = open_(table, tmp_path)
    changed = dataclasses.replace(table, read_image=lambda name: 255 - picture(int(name)), version=table.version + 1)
    assert changed.fingerprint() == table.fingerprint()  # which must agree between machines
    _, after = open_(changed, tmp_path)
    np.testing.assert_allclose(after.images.astype(int), 255 - before.images.astype(int), atol=1)
