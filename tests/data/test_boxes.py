"""Box policies: where each puts a crop, what a detector finds, and what becomes of the faces that it misses."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flr.data.boxes import Boxes, BoxPolicy, Haar, face_boxes, faces_by_image
from flr.data.crops import CropSettings, open_store
from flr.data.finders.builtin import Builtin
from flr.data.readers import ibug
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.landmarks.geometry import transform
from flr.landmarks.scheme import get_scheme
from tests.landmarks.painted import face_table


@pytest.mark.parametrize(("shape", "sides"), [("square", (80, 80)), ("stretch", (40, 80))])
@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_box_policy_places_the_box(shape, sides, scale):
    crop = BoxPolicy("truth", scale, shape).crop(np.array([[10.0, 20, 50, 100], [0, 0, 40, 80]]), 64)
    assert crop.shape == (2, 2, 3)
    np.testing.assert_allclose(transform(crop[0], np.array([[30.0, 60]])), [[31.5, 31.5]])
    factor = 64 / (scale * np.array(sides))
    np.testing.assert_allclose(crop[:, :, :2], np.broadcast_to(np.diag(factor), (2, 2, 2)), atol=1e-12)
    # the side of the box, grown by the scale, is the whole crop: from its outer edge to its outer edge
    corners = np.array([[30.0, 60]]) + np.array([[-0.5], [0.5]]) * scale * np.array(sides)
    np.testing.assert_allclose(transform(crop[0], corners), [[-0.5, -0.5], [63.5, 63.5]])


def test_policies_have_names_of_their_own() -> None:
    policies = [
        BoxPolicy(), BoxPolicy("file"), BoxPolicy(scale=1.3), BoxPolicy(shape="stretch"), BoxPolicy(jitter=0.1),
        BoxPolicy("haar"), BoxPolicy("haar", haar=Haar(1.2)), BoxPolicy("haar", haar=Haar(neighbours=2)),
        BoxPolicy("haar", haar=Haar(missed="picture")), BoxPolicy("detector"),
        BoxPolicy("detector", detector=Builtin(missed="picture")), BoxPolicy("detector", detector=Builtin(work=640)),
    ]  # fmt: skip
    assert len({str(policy) for policy in policies}) == len(policies)
    assert str(policies[0]) == "truth-square-1.25"
    assert str(policies[5]) == "haar-1.1-5-missed:truth-square-1.25"


@pytest.mark.parametrize("source", ["truth", "file"])
def test_jitter_is_a_bounded_function_of_the_face_s_name(tmp_path: Path, source: str) -> None:
    table = face_table(("train",) * 400)
    table = dataclasses.replace(table, box=np.tile(np.float32([20, 10, 80, 70]), (400, 1)))
    plain = face_boxes(table, BoxPolicy(source), tmp_path, 0).box
    policy = BoxPolicy(source, jitter=0.1)
    shaken = face_boxes(table, policy, tmp_path, 0).box
    side, now = plain[:, 2:] - plain[:, :2], shaken[:, 2:] - shaken[:, :2]
    moved = (shaken[:, :2] + shaken[:, 2:] - plain[:, :2] - plain[:, 2:]) / 2 / side
    for share in (moved[:, 0], moved[:, 1], now[:, 0] / side[:, 0] - 1):
        assert abs(share).max() <= 0.1 and abs(share).max() > 0.09
        assert abs(share.mean()) < 0.01 and 0.05 < share.std() < 0.065  # uniform: .1 / sqrt(3)
    np.testing.assert_allclose(now[:, 0] / side[:, 0], now[:, 1] / side[:, 1])
    some = np.array([7, 3, 399])  # other company, another order: the same boxes
    np.testing.assert_array_equal(face_boxes(table.take(some), policy, tmp_path, 0).box, shaken[some])


def test_faces_that_share_a_picture_are_grouped_in_the_order_of_the_pictures() -> None:
    table = dataclasses.replace(face_table(("train",) * 5), image=np.array(["b", "a", "b", "c", "a"]))
    assert [rows.tolist() for rows in faces_by_image(table)] == [[0, 2], [1, 4], [3]]


@pytest.fixture(scope="module")
def helen(real_data: Path) -> FaceTable:
    table = ibug.read(real_data / "300w")
    rows = np.flatnonzero(table.subsets["helen_test"])[:40]
    return dataclasses.replace(table.take(rows), split=np.array(["train"] * 30 + ["test"] * 10))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the detections of `helen` are kept."""
    return tmp_path_factory.mktemp("detections")


def test_haar_finds_real_faces_and_its_offset_puts_the_box_on_the_points(helen: FaceTable, cache: Path) -> None:
    found = face_boxes(helen, BoxPolicy("haar"), cache, 2)
    seen = ~found.missed
    assert 34 <= seen.sum() < 40  # some are missed
    truth = helen.tight.astype(float)
    side = (truth[:, 2:] - truth[:, :2]).max(1, keepdims=True)
    assert np.median(abs(found.box - truth)[seen] / side[seen]) < 0.06
    assert abs(np.median(((found.box - truth) / side)[seen], 0)).max() < 0.05  # no side is off on the whole
    np.testing.assert_array_equal(found.box[~seen], truth[~seen])  # missed: truth
    assert found.offset is not None and found.offset[0] > 0 and found.offset[3] > 0.8


def missed_as(helen: FaceTable, cache: Path, missed: str) -> Boxes:
    return face_boxes(helen, BoxPolicy("haar", haar=Haar(missed=missed)), cache, 2)  # type: ignore[arg-type]


def test_threads_detect_what_one_after_another_does(helen: FaceTable) -> None:
    """A cascade keeps the image that it looks at, so that a shared one mixes them up, or crashes."""
    pictures = [helen.load(i) for i in range(3)] * 4
    alone = [Haar().detect(picture) for picture in pictures[:3]] * 4
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(Haar().detect, pictures))
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_faces_that_haar_misses_are_counted_and_cropped_as_the_policy_says(helen: FaceTable, cache: Path) -> None:
    (first, *_) = np.flatnonzero(missed_as(helen, cache, "truth").missed)
    height, width = helen.load(int(first)).shape[:2]
    np.testing.assert_array_equal(
        missed_as(helen, cache, "picture").box[first], [-0.5, -0.5, width - 0.5, height - 0.5]
    )
    left_out = missed_as(helen, cache, "leave_out")
    policy = BoxPolicy("haar", haar=Haar(missed="leave_out"))
    table, store = open_store(helen, CropSettings(48, 1, policy), 1.0, cache, 2, strict=True)
    assert table.name.tolist() == helen.name[~left_out.missed].tolist() and not table.faults
    assert store.missed["train"] + store.missed["test"] == left_out.missed.sum() > 0
    assert store.offset == pytest.approx(left_out.offset)
    assert len(store.images) == len(store.to_store) == len(store.image_info) == len(table)
    assert store.offset is not None
    given = BoxPolicy("haar", haar=Haar(offset=store.offset))
    last = open_store(table.take(np.array([len(table) - 1])), CropSettings(48, 1, given), 1.0, cache, 0, strict=True)[1]
    np.testing.assert_array_equal(last.images[0], store.images[-1])  # moved down with its own pixels


def test_a_face_is_found_by_few_points_as_by_many(helen: FaceTable, cache: Path) -> None:
    some = helen.take(np.arange(12))
    few = some.reduce("celeba5", get_scheme("celeba5"))
    missed = [face_boxes(table, BoxPolicy("haar"), cache, 2).missed for table in (some, few)]
    np.testing.assert_array_equal(*missed)


def test_the_whole_picture_is_a_box_too(tmp_path: Path) -> None:
    table = face_table(("train",) * 3)  # 120 x 100
    box = face_boxes(table, BoxPolicy("picture"), tmp_path, 0).box
    np.testing.assert_array_equal(box, np.tile([-0.5, -0.5, 119.5, 99.5], (3, 1)))
    _, store = open_store(table, CropSettings(120, 1, BoxPolicy("picture", 1.0)), 1.0, tmp_path, 0, strict=True)
    np.testing.assert_array_equal(store.images[1, 10:110, :, 0], table.load(1))


def test_detections_are_searched_once(helen: FaceTable, cache: Path) -> None:
    def must_not_load(name: str) -> np.ndarray:
        raise AssertionError(f"{name} was decoded again")

    first = face_boxes(helen, BoxPolicy("haar"), cache, 2)
    again = dataclasses.replace(helen, read_image=must_not_load)
    np.testing.assert_array_equal(face_boxes(again, BoxPolicy("haar"), cache, 2).box, first.box)
    with pytest.raises(AssertionError, match="decoded again"):
        face_boxes(again, BoxPolicy("haar", haar=Haar(1.3)), cache, 0)


def test_without_a_found_training_face_the_offset_has_to_be_given(tmp_path: Path) -> None:
    table = face_table(("train",) * 3)  # dots on black are no face to Haar
    with pytest.raises(UserError, match=r"finds none of its 3 training faces.*haar\.offset"):
        face_boxes(table, BoxPolicy("haar"), tmp_path, 0)
    given = BoxPolicy("haar", haar=Haar(offset=(0.1, 0.3, 0.9, 1.1)))
    assert face_boxes(table, given, tmp_path, 0).missed.all()
    nothing = BoxPolicy("haar", haar=Haar(missed="leave_out", offset=(0.1, 0.3, 0.9, 1.1)))
    with pytest.raises(UserError, match="finds none of its 3 faces"):
        open_store(table, CropSettings(32, 1, nothing), 1.0, tmp_path, 0, strict=False)
