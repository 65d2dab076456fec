"""From a table to batches: which faces a rank sees, that every way leads back to the original's pixels, repeatability."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flr.augment.device import Augment
from flr.augment.draws import order
from flr.data.batches import Batch, IndexBatches
from flr.data.boxes import BoxPolicy
from flr.data.crops import CropSettings
from flr.data.datamodule import FaceData
from flr.data.table import FaceTable
from flr.errors import UserError
from flr.landmarks.geometry import transform
from flr.landmarks.scheme import CELEBA5, Scheme
from tests.fakes import ibug as fake
from tests.landmarks.painted import dot, face_table

PARTS = ("train",) * 8 + ("val",) * 3 + ("test",) * 3
BEND = Augment(rotation=25, scale=0.1, shift=0.03, mirror=0.5)
PIXELS = Augment(rotation=25, mirror=0.5, brightness=0.2, contrast=0.2, noise=0.05, erasing=0.5)


def some_labelled() -> np.ndarray:
    labelled = np.ones((len(PARTS), 5), bool)
    labelled[1, 2] = labelled[4, 0] = labelled[12, 3] = False
    return labelled


def data_of(cache: Path, augment: Augment = BEND, table: FaceTable | None = None, **changes) -> FaceData:
    table = table or face_table(PARTS, labelled=some_labelled())
    arguments = {
        "name": "dots", "reader": lambda root, strict: table, "root": "dots", "crop": CropSettings(64, 1, BoxPolicy()),
        "cache": str(cache), "augment": augment, "workers": 0,
    }  # fmt: skip
    return FaceData(**{**arguments, **changes})


@pytest.fixture
def data(tmp_path) -> FaceData:
    return data_of(tmp_path)


def rows(*index: int) -> torch.Tensor:
    return torch.tensor(index, dtype=torch.int64)


EVERY = rows(*range(len(PARTS)))


# -- the order of faces --------------------------------------------------------------------------------------------


def batches(count: int, batch: int, ranks: int, epoch: int | None, seed: int = 0) -> list[list[list[int]]]:
    """Per rank the batches of one pass over rows 100, 101, ..."""
    current = None if epoch is None else (lambda: epoch)
    return [
        [part.tolist() for part in IndexBatches(np.arange(100, 100 + count), batch, rank, ranks, current, seed)]
        for rank in range(ranks)
    ]


@given(count=st.integers(2, 40), batch=st.integers(2, 12), epoch=st.integers(0, 9))
def test_training_ranks_slice_the_one_global_batch(count, batch, epoch):
    ((*whole,),) = batches(count, batch, 1, epoch)
    taken = min(batch, count)
    assert [len(part) for part in whole] == [taken] * (count // taken)
    seen = [row for part in whole for row in part]
    assert seen == (100 + order(0, epoch, count))[: len(seen)].tolist()  # each face at most once, in the drawn order
    if 4 <= batch <= count // 2 * 2:  # two faces a rank, as batch norm wants
        first, second = batches(count, batch, 2, epoch)
        assert len(first) == len(second) == len(whole)
        for one, two, both in zip(first, second, whole, strict=True):
            assert not set(one) & set(two)
            assert sorted(one + two) == sorted(both)
            assert abs(len(one) - len(two)) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("count", "batch"), [(7, 3), (8, 4), (13, 5), (4, 8)])
def test_evaluation_is_unpadded_and_in_order(count, batch, ranks):
    parts = batches(count, batch, ranks, None)
    assert {len(rank) for rank in parts} == {-(-count // batch)}
    assert sorted(row for rank in parts for part in rank for row in part) == list(range(100, 100 + count))
    if ranks == 1:
        assert [row for part in parts[0] for row in part] == list(range(100, 100 + count))


def test_epochs_and_seeds_reorder():
    assert batches(20, 5, 1, 0) == batches(20, 5, 1, 0)
    assert len({str(batches(20, 5, 1, epoch, seed)) for epoch in range(3) for seed in range(2)}) == 6


def test_a_loader_follows_the_epoch():
    now = [0]
    loader = IndexBatches(np.arange(12), 4, 0, 1, lambda: now[0], 0)
    first = [part.tolist() for part in loader]
    now[0] = 1
    assert [part.tolist() for part in loader] != first


@pytest.mark.parametrize(("count", "batch", "epoch"), [(9, 1, 0), (9, 1, None), (1, 8, 0), (9, 3, 0), (3, 8, 0)])
def test_a_device_without_a_face_is_told(count, batch, epoch):
    with pytest.raises(UserError, match="batch_size"):
        batches(count, batch, 2, epoch)


# -- the batch -----------------------------------------------------------------------------------------------------


def drawn_mirror(data: FaceData, epoch: int) -> np.ndarray:
    return data.augment.draw(data.seed, epoch, EVERY.numpy()).mirror


@pytest.mark.parametrize("epoch", [None, 0, 1, 5])
def test_every_point_leads_back_to_its_original_pixel(data, epoch):
    batch, table = data.batch(EVERY, epoch), data.prepare()
    back = transform(batch.to_original, batch.points).numpy()
    mirrored = np.zeros(len(PARTS), bool) if epoch is None else drawn_mirror(data, epoch)
    assert epoch is None or 0 < mirrored.sum() < len(PARTS)
    for i in range(len(PARTS)):
        swap = CELEBA5.mirror_order if mirrored[i] else np.arange(5)
        np.testing.assert_array_equal(batch.labelled[i], table.labelled[i, swap])
        known = batch.labelled[i].numpy()
        np.testing.assert_allclose(back[i, known], table.points[i, swap][known], atol=2e-3)
    assert torch.isfinite(batch.points).all()


@pytest.mark.parametrize("epoch", [None, 0, 1, 2])
def test_every_dot_lies_under_its_point(tmp_path, epoch):
    batch = data_of(tmp_path, crop=CropSettings(80, 1, BoxPolicy("truth", 1.6))).batch(EVERY, epoch)
    assert batch.images.shape == (len(PARTS), 1, 80, 80)
    errors = []
    for image, points, labelled in zip((batch.images[:, 0] + 1) / 2, batch.points, batch.labelled, strict=True):
        whole = ((points > 6) & (points < 73)).all(-1)  # the crop's edge cuts no part of these dots
        errors += [dot(image.numpy(), point)[0] - point for point in points[labelled & whole].numpy()]
    assert len(errors) > 60
    assert np.linalg.norm(errors, axis=1).max() < 0.1  # twice through bilinear taps and whole grey levels
    assert np.abs(np.mean(errors, 0)).max() < 0.015  # and no shift common to all


def test_evaluation_sees_the_middle_of_the_store(data):
    batch = data.batch(rows(9, 0), None)
    margin = data.store.margin
    middle = data.store.images[[9, 0], margin:-margin, margin:-margin].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(batch.images, middle / 255 * 2 - 1, atol=1e-6)
    assert batch.index.tolist() == [9, 0]
    np.testing.assert_allclose(batch.normaliser, data.normaliser[[9, 0]], rtol=1e-6)
    assert margin > 0


def test_visible_points_are_those_of_the_labels_mirrored_with_them(tmp_path):
    table = face_table(PARTS)
    table.visible[3, 1] = False
    mirror = data_of(tmp_path, Augment(mirror=1.0), table)
    mirror.check_visibility()
    partner = int(CELEBA5.mirror_order[1])
    for epoch, hidden in ((None, 1), (0, partner)):
        visible = mirror.batch(EVERY, epoch).visible
        assert (~visible).nonzero().tolist() == [[3, hidden]]
    with pytest.raises(UserError, match="no training face of data=dots has a hidden point"):
        data_of(tmp_path, table=face_table(PARTS)).check_visibility()


@pytest.mark.parametrize("pixels", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_pixels_are_the_range_of_black_and_white(tmp_path, pixels):
    table = face_table(PARTS, load=lambda i: np.full((100, 120), 255 * (i % 2), np.uint8))
    images = data_of(tmp_path, table=table, pixels=pixels).batch(rows(0, 1), None).images
    assert images[0].unique().tolist() == [pixels[0]]
    assert images[1].unique().tolist() == [pixels[1]]


def alike(a: Batch, b: Batch, at: list[int]) -> None:
    """`b` holds the rows `at` of `a`, bit for bit."""
    for name in ("images", "points", "labelled", "to_original", "normaliser", "index"):
        torch.testing.assert_close(getattr(a, name)[at], getattr(b, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("augment", [BEND, PIXELS], ids=["geometry", "pixels"])
def test_a_face_is_the_same_in_any_company(tmp_path, augment):
    data = data_of(tmp_path, augment)
    together = data.batch(EVERY, 2)
    alike(together, data_of(tmp_path, augment).batch(EVERY, 2), list(range(len(PARTS))))
    for company in ([5], [7, 3], [13, 0, 5, 2, 9]):
        alike(together, data.batch(rows(*company), 2), company)


def test_epochs_and_seeds_draw_anew(data, tmp_path):
    first = data.batch(EVERY, 0)
    for other in (data.batch(EVERY, 1), data_of(tmp_path, seed=1).batch(EVERY, 0)):
        assert (first.images != other.images).flatten(1).any(1).all()


def test_an_empty_slice_of_a_batch_is_fine(data):
    batch = data.batch(rows(), None)
    assert batch.images.shape == (0, 1, 64, 64)
    assert batch.points.shape == (0, 5, 2)


# -- the set -------------------------------------------------------------------------------------------------------


def test_in_original_inverts_the_crop(data):
    table = data.prepare()
    at = np.array([12, 3, 3, 0])
    points = np.random.default_rng(0).uniform(0, 64, (4, 5, 2))
    back = transform(data.store.to_crop()[at], data.in_original(points, at))
    np.testing.assert_allclose(back, points, atol=1e-9)
    known = table.labelled[at]
    np.testing.assert_allclose(data.in_original(data.labels[at], at)[known], table.points[at][known], atol=2e-3)


def test_mean_face_is_of_labelled_training_points(data):
    known = some_labelled()[:8]
    for k in range(5):
        expected = data.batch(rows(*np.flatnonzero(known[:, k])), None).points[:, k].mean(0)
        np.testing.assert_allclose(data.mean_face()[k], expected, atol=1e-4)


def test_rows_and_protocol(data):
    assert [data.rows(split).tolist() for split in ("train", "val", "test")] == [
        [*range(8)], [8, 9, 10], [11, 12, 13],
    ]  # fmt: skip
    protocol = data.protocol
    assert protocol.counts == {"train": 8, "val": 3, "test": 3}
    assert protocol.fingerprint == data.prepare().fingerprint()
    for word in ("dots", "celeba5", "8/3/3", "truth-square-1.25", "interpupil"):
        assert word in protocol.name


def test_an_epoch_of_the_loaders(data):
    data.batch_size = 2
    assert [part.tolist() for part in data.val_dataloader()] == [[8, 9], [10]]
    assert [part.tolist() for part in data.test_dataloader()] == [[11, 12], [13]]


def test_a_part_without_faces_is_told(tmp_path):
    data = data_of(tmp_path, table=face_table(("test",) * 4))  # a set to be scored on alone
    assert [part.tolist() for part in data.test_dataloader()] == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match="dots has no train faces"):
        data.train_dataloader()


def test_a_test_part_is_held_out_where_there_is_none(tmp_path):
    data = data_of(tmp_path, table=face_table(("train",) * 20), val_fraction=0.2, test_fraction=0.1)
    assert data.protocol.counts == {"train": 14, "val": 4, "test": 2}
    assert data.protocol.held_out == {"test": 0.1, "val": 0.2}
    other = data_of(tmp_path, table=face_table(("train",) * 20), val_fraction=0.5, test_fraction=0.1)
    np.testing.assert_array_equal(data.rows("test"), other.rows("test"))  # whatever validation takes


# -- weights -------------------------------------------------------------------------------------------------------


def visits(weight, epochs, batch=4, seed=0):
    """(epochs, n) how often each face is visited, and all the names under which it is."""
    weight, now = np.asarray(weight, float), [0]
    loader = IndexBatches(np.arange(len(weight)), batch, 0, 1, lambda: now[0], seed, weight, len(weight))
    counts, names = [], []
    for now[0] in range(epochs):
        names.append(np.concatenate([part.numpy() for part in loader]))
        counts.append(np.bincount(names[-1] % len(weight), minlength=len(weight)))
    return np.array(counts), names


def test_weights_say_how_often_a_face_is_visited():
    weight = [0.25] * 16 + [1] * 8 + [2.5] * 4
    counts, names = visits(weight, 200, batch=2)
    assert (counts.sum(1) == 22).all()
    for faces, share in ((slice(0, 16), 4), (slice(16, 24), 8), (slice(24, 28), 10)):
        assert (counts[:, faces].sum(1) == share).all()  # each weight has its share in every epoch
    np.testing.assert_allclose(counts.mean(0), weight, atol=0.13)  # and each face has its own in the long run
    assert set(counts[:, 24:].ravel()) == {2, 3}
    assert all(len(np.unique(epoch)) == len(epoch) for epoch in names)  # so no visit repeats another's draws


def test_visits_are_a_function_of_seed_and_epoch():
    first, second, other = (visits([0.5] * 20, 3, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert (first[0] != first[1]).any()


def test_a_second_visit_is_bent_anew(tmp_path):
    table = dataclasses.replace(face_table(PARTS), weight=np.full(len(PARTS), 2.0))
    data = data_of(tmp_path, table=table)
    once, twice = data.batch(rows(3), 0), data.batch(rows(3 + len(PARTS)), 0)
    assert once.index.tolist() == twice.index.tolist() == [3]
    assert not torch.equal(once.images, twice.images)


def test_validation_is_held_out_where_there_is_none(tmp_path):
    data = data_of(tmp_path, table=face_table(("train",) * 10 + ("test",) * 2), val_fraction=0.2)
    assert data.protocol.counts == {"train": 8, "val": 2, "test": 2}


def test_the_set_is_read_once(tmp_path):
    reads = []

    def reader(root, strict):
        reads.append((root, strict))
        return face_table(PARTS)

    data = data_of(tmp_path, reader=reader, root="~/faces", strict=True)
    assert data.prepare() is data.prepare()
    data.batch(rows(0), None)
    assert reads == [(Path("~/faces").expanduser(), True)]


def test_a_real_form_on_disk_reduces_to_five_points(tmp_path):
    from flr.data.readers import ibug

    fake.write(tmp_path / "300w", {"afw": 6, "helen/testset": 2})
    data = data_of(
        tmp_path / "cache", reader=ibug.read, root=str(tmp_path / "300w"), scheme="celeba5", val_fraction=0.2
    )
    batch = data.batch(rows(*range(8)), 0)
    assert data.scheme is CELEBA5
    assert batch.points.shape == (8, 5, 2)
    back = transform(batch.to_original, batch.points).numpy()
    swap = data.augment.draw(0, 0, np.arange(8)).mirror
    expected = np.where(swap[:, None, None], data.prepare().points[:, CELEBA5.mirror_order], data.prepare().points)
    np.testing.assert_allclose(back, expected, atol=2e-3)


def test_points_that_are_painted_over_or_outside_are_not_visible(tmp_path: Path) -> None:
    augment = Augment(erasing=1.0, erasing_area=0.3, shift=0.4, mirror=0.5)
    data = data_of(tmp_path, augment, workers=0)
    batch, draws = data.batch(EVERY, epoch=0), augment.draw(0, 0, EVERY.numpy())
    low, high = (torch.from_numpy(edge)[:, None] for edge in draws.erased(64))
    erased = ((batch.points >= low) & (batch.points < high)).all(-1)
    outside = ((batch.points < -0.5) | (batch.points > 63.5)).any(-1)
    assert (erased & batch.labelled).any() and (outside & batch.labelled).any()
    assert torch.equal(batch.visible & batch.labelled, batch.labelled & ~erased & ~outside)


# -- what cannot be trained on -------------------------------------------------------------------------------------


def test_a_part_without_its_normaliser_is_refused(tmp_path: Path) -> None:
    labelled = np.ones((len(PARTS), 5), bool)
    labelled[8:11, 1] = False  # one eye of all validation faces
    data = data_of(tmp_path, table=face_table(PARTS, labelled=labelled))
    (problem,) = data.problems()
    assert "normaliser interpupil of all 3 val faces is undefined: left_eye has no label" in problem
    assert "set normaliser: box or diagonal" in problem
    with pytest.raises(UserError, match="interpupil of all 3 val faces"):
        data.refuse_ranks(1)
    assert any("3 of 3 val faces have no normaliser" in line for line in data.card["findings"])


def test_a_mirror_needs_the_pairs(tmp_path: Path) -> None:
    table = face_table(PARTS)
    table = dataclasses.replace(table, scheme=dataclasses.replace(CELEBA5, name="mine", pairs=()))
    with pytest.raises(UserError, match=r"augment.mirror=0.5 mirrors faces, but with the pairs of mine"):
        data_of(tmp_path, table=table).prepare()
    assert data_of(tmp_path, dataclasses.replace(BEND, mirror=0.0), table=table).problems() == []


@pytest.mark.parametrize(("pairs", "message"), [
    ([(0, 4), (1, 3)], "the scheme pairs [right_eye, mouth_left], [left_eye, mouth_right], but by the labels the pairs are likely "
     "[right_eye, left_eye], [mouth_right, mouth_left]; fix the scheme's pairs"),
    ([(0, 2), (3, 4)], "the scheme pairs [right_eye, nose], but by the labels the pairs are likely [right_eye, left_eye]; fix"),
    ([(0, 1)], "the scheme lacks pairs; by the labels they are likely [[right_eye, left_eye], [mouth_right, mouth_left]]; fix"),
])  # fmt: skip
@pytest.mark.parametrize("parts", [PARTS, ("train",) * 40 + PARTS], ids=["few", "many"])
def test_wrong_pairs_are_named_with_the_likely_ones(
    tmp_path: Path, pairs: list[tuple[int, int]], message: str, parts: tuple[str, ...]
) -> None:
    table = face_table(parts)
    table = dataclasses.replace(table, scheme=dataclasses.replace(CELEBA5, name="mine", pairs=tuple(pairs)))
    data = data_of(tmp_path, table=table)
    assert message in data.label_problem(data.prepare(refuse=False))


def test_one_point_is_trained_on_with_the_box_of_the_labels(tmp_path: Path) -> None:
    table = face_table(PARTS)
    scheme = Scheme("one", ("nose",), (), {}, {}, "box")
    box = np.concatenate([table.points[:, 2] - 20, table.points[:, 2] + 20], 1)
    one = {key: getattr(table, key)[:, 2:3] for key in ("points", "labelled", "visible")}
    boxed = dataclasses.replace(table, scheme=scheme, box=box.astype(np.float32), **one)
    crop = CropSettings(64, 1, BoxPolicy("file"))
    data = data_of(tmp_path, table=boxed, crop=crop)
    assert data.problems() == []
    np.testing.assert_allclose(data.batch(rows(*range(4)), None).normaliser, 40)
    bare = data_of(
        tmp_path, table=dataclasses.replace(boxed, box=table.box), crop=CropSettings(64, 1, BoxPolicy("picture"))
    )
    assert all("add their boxes to the labels (columns left" in problem for problem in bare.problems())
