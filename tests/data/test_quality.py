"""The card of a set: what it counts is what was put there, and nonsense is told from faces."""

import dataclasses
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from flr.augment.device import Augment
from flr.data.boxes import BoxPolicy
from flr.data.crops import CropSettings, open_store
from flr.data.datamodule import FaceData
from flr.data.findings import nonsense
from flr.data.quality import groups_of, make_card, open_card
from flr.data.readers import ibug
from flr.data.readers.table import read as read_table
from flr.data.splits import hold_out
from flr.data.table import FaceTable
from flr.landmarks.scheme import IBUG68, get_scheme
from tests.fakes import ibug as fake
from tests.fakes import table as fake_table

PARTS = {"afw": 24, "helen/testset": 8}


def tell(table: FaceTable, cache: Path) -> dict:
    kept, store = open_store(table, CropSettings(48, 1, BoxPolicy()), 1.0, cache, 0, strict=False)
    return make_card(kept, store)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    fake.write(tmp_path / "set", PARTS)
    return tmp_path / "set"


def test_counts_are_those_of_the_set(faces: Path, tmp_path: Path) -> None:
    table = hold_out(ibug.read(faces), 0.25)
    card = tell(table, tmp_path)
    val = int((table.split == "val").sum())
    assert card["faces"] == {"train": 24 - val, "val": val, "test": 8}
    assert card["subsets"]["helen_test"] == {"test": 8} and sum(card["subsets"]["afw"].values()) == 24
    assert card["pictures"] == 32 and card["left_out"] == []
    assert card["picture_size"]["width"]["median"] == 144 and card["picture_size"]["height"]["max"] == 128
    side = table.tight[:, 2:] - table.tight[:, :2]
    assert card["face_side"]["median"] == pytest.approx(np.median(side.max(1)), abs=0.01)
    low, high = table.points.min((1, 2)), table.points - np.array([143.5, 127.5])
    outside = (table.points < -0.5).any(-1) | (high > 0).any(-1)
    assert low.min() < -0.5  # the fake has points beyond the edge
    assert card["outside"] == {"points": int(outside.sum()), "faces": int(outside.any(1).sum())}
    assert card["symmetry"]["deviation"] < 0.06
    assert not any(card["duplicates"][kind].get("pairs", 0) for kind in ("labelled_twice", "look_alike"))
    assert any("outside" in line for line in card["findings"])


def test_missing_and_hidden_labels_are_counted_by_point(faces: Path, tmp_path: Path) -> None:
    table = ibug.read(faces)
    table.labelled[:5, 3] = False
    table.visible[:7, 40] = False
    card = tell(table, tmp_path)
    assert card["not_labelled"]["jaw_3"] == 5 and sum(card["not_labelled"].values()) == 5
    assert card["hidden"]["right_eye_4"] == 7 and sum(card["hidden"].values()) == 7


def test_points_that_no_training_face_labels_are_named(faces: Path, tmp_path: Path) -> None:
    table = ibug.read(faces)
    table.labelled[table.split == "train", 3] = False
    card = tell(table, tmp_path)
    assert card["never_trained"] == ["jaw_3"]
    assert any("1 point(s) have no label in the training split" in line for line in card["findings"])


@pytest.mark.parametrize(("orientation", "upright", "problem"), [
    (6, True, ""), (6, False, ""), (3, False, ""),
    (3, True, "its mean face is upside down; 32 of its images have an EXIF orientation, so set data.reader.upright=false"),
])  # fmt: skip
def test_labels_of_images_that_are_stored_turned(tmp_path: Path, orientation: int, upright: bool, problem: str) -> None:
    fake_table.write_turned(tmp_path, orientation, 32)
    data = FaceData(
        name="table", reader=partial(read_table, scheme="ibug68", upright=upright), root=tmp_path, workers=0,
        crop=CropSettings(48, 1, BoxPolicy()), val_fraction=0.1, test_fraction=0.1, augment=Augment(mirror=0.5),
        cache=tmp_path / "cache", seed=0, batch_size=2,
    )  # fmt: skip
    found = data.label_problem(data.prepare(refuse=False))
    assert found.startswith(f"data=table: {problem}") if problem else not found


def test_a_copied_picture_is_found_across_splits(faces: Path, tmp_path: Path) -> None:
    source = sorted((faces / "afw").glob("*.jpg"))[4]
    for kind in (".jpg", ".pts"):
        data = source.with_suffix(kind).read_bytes()
        (faces / "helen/testset" / f"999_1{kind}").write_bytes(data)
    card = tell(ibug.read(faces), tmp_path)
    same = card["duplicates"]["same_picture"]
    assert (same["groups"], same["across_splits"]) == (1, 1)
    assert same["examples"] == [[f"afw/{source.name}", "helen/testset/999_1.jpg"]]
    twice = card["duplicates"]["labelled_twice"]
    assert (twice["pairs"], twice["across_splits"]) == (1, 1)
    assert any("1 across splits" in line for line in card["findings"])


def test_a_picture_that_was_saved_anew_is_found_by_its_looks(faces: Path, tmp_path: Path) -> None:
    source = sorted((faces / "afw").glob("*.jpg"))[3]
    copy = faces / "helen/testset/999_1.jpg"
    copy.write_bytes(cv2.imencode(".jpg", cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
    copy.with_suffix(".pts").write_bytes(source.with_suffix(".pts").read_bytes())
    card = tell(ibug.read(faces), tmp_path)
    assert card["duplicates"]["same_picture"]["groups"] == 0  # other bytes, other pixels
    assert card["duplicates"]["look_alike"]["across_splits"] == 1
    assert [f"afw/{source.name}", "helen/testset/999_1.jpg"] in card["duplicates"]["look_alike"]["examples"]


def test_people_on_both_sides_are_told(faces: Path, tmp_path: Path) -> None:
    table = ibug.read(faces)
    group = table.group.copy().astype("<U40")
    group[-3:] = group[0]
    card = tell(dataclasses.replace(table, group=group), tmp_path)
    assert card["identities"]["also_in_training"]["test"] == {"faces": 3, "of": 8, "groups": 1, "examples": [group[0]]}
    assert any("3 of 8 test faces are of 1 identities" in line for line in card["findings"])


@pytest.mark.parametrize("scheme", ["ibug68", "kaggle15", "celeba5"])
def test_faces_that_stand_well_are_not_refused(faces: Path, tmp_path: Path, scheme: str) -> None:
    table = ibug.read(faces).reduce(scheme, get_scheme(scheme))
    card = tell(table, tmp_path)
    assert card["symmetry"]["fault"] is None
    assert not nonsense(card)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda points: points[:, np.random.default_rng(0).permutation(68)], "mirror image"),
        (lambda points: points[:, :, ::-1], "mirror image"),  # x and y swapped
        (lambda points: np.abs(points - [0, 127]), "upside down"),
        (lambda points: points[:, IBUG68.mirror_order], "left and right exchanged"),
        (lambda points: points / 144, "outside|pixels wide"),  # shares in place of pixels
        (lambda points: points + [90, 0], "outside their images"),  # of other pictures
    ],
    ids=["order", "axes", "upside down", "exchanged", "shares", "shifted"],
)
def test_nonsense_is_refused(faces: Path, tmp_path: Path, spoil, words: str) -> None:
    table = ibug.read(faces)
    assert not nonsense(tell(table, tmp_path / "good"))
    card = tell(dataclasses.replace(table, points=spoil(table.points).astype(np.float32)), tmp_path / "bad")
    assert re.search(words, nonsense(card))


def test_a_card_is_made_once_for_a_split(faces: Path, tmp_path: Path) -> None:
    table = hold_out(ibug.read(faces), 0.25)
    kept, store = open_store(table, CropSettings(48, 1, BoxPolicy()), 1.0, tmp_path, 0, strict=False)
    first = open_card(kept, store)
    (path,) = store.folder.glob("card-*.json")
    path.write_text(path.read_text().replace(f'"{kept.form}"', '"kept"'))
    assert open_card(kept, store)["form"] == "kept" and first["form"] == kept.form
    other = dataclasses.replace(kept, split=np.where(kept.split == "val", "train", kept.split))
    assert open_card(other, store)["faces"] == {"train": 24, "test": 8}


def test_groups_of_values() -> None:
    found = groups_of(np.array([7, 1, 7, 2**64 - 1, 3, 2**64 - 1, 7], np.uint64))
    assert [group.tolist() for group in found] == [[0, 2, 6], [3, 5]]
