"""What holds of every reader: what it reports where its dataset is not, and that no bytes of a list make it crash."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flr.data.readers import celeba, cofw, ibug, ibug_xml, muct, table, wflw, youtube_faces
from flr.data.table import FaceTable
from flr.errors import UserError
from tests.data.support import Change, changed_file, changes, stop
from tests.fakes import celeba as fake_celeba
from tests.fakes import cofw as fake_cofw
from tests.fakes import ibug as fake_ibug
from tests.fakes import ibug_xml as fake_xml
from tests.fakes import muct as fake_muct
from tests.fakes import table as fake_table
from tests.fakes import wflw as fake_wflw
from tests.fakes import youtube_faces as fake_youtube_faces


class Reader(NamedTuple):
    """A reader, its fake, and what it reports of a folder in which its files are not."""

    read: Callable[..., FaceTable]
    write: Callable[[Path], object]
    found: str
    words: tuple[str, ...]
    lists: tuple[str, ...]  # files whose bytes may be others


CELEBA = (
    "list_landmarks_celeba.txt", "list_bbox_celeba.txt", "list_landmarks_align_celeba.txt", "list_eval_partition.txt",
    celeba.SITE, "non-commercial research",
)  # fmt: skip
LISTS = ("list_landmarks_celeba", "list_bbox_celeba", "list_eval_partition", "identity_CelebA")
READERS = {
    "ibug": Reader(
        ibug.read, partial(fake_ibug.write, parts={"afw": 3, "helen/testset": 2}), "is in it",
        ("helen/trainset/", "https://ibug.doc.ic.ac.uk/resources/300-W/"), ("afw/100040721_1.pts",),
    ),
    "ibug_xml": Reader(
        ibug_xml.read, fake_xml.write, "no image", (ibug_xml.TEST,), (ibug_xml.TRAIN, ibug_xml.TEST)
    ),
    "wflw": Reader(
        wflw.read, fake_wflw.write, "is in it; get WFLW",
        (wflw.SITE, "WFLW_images/"), tuple(wflw.INDEX.values()),
    ),
    "cofw": Reader(
        cofw.read, partial(fake_cofw.write, size=(24, 20)), "are not both in it", ("COFW_train.mat", cofw.SITE),
        ("COFW_train_color.mat", "COFW_test_color.mat"),
    ),
    "youtube_faces": Reader(
        youtube_faces.read, fake_youtube_faces.write, "is in it", ("train-test-data.zip",),
        tuple(youtube_faces.INDEX.values()),
    ),
    "celeba": Reader(
        celeba.read, partial(fake_celeba.write, identities=True), "img_align_celeba/ is in it", CELEBA,
        tuple(f"{name}.txt" for name in LISTS),
    ),
    "celeba csv": Reader(
        celeba.read, partial(fake_celeba.write, identities=True, csv=True), "img_align_celeba/ is in it", CELEBA,
        tuple(f"{name}.csv" for name in LISTS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "deeper"])
@pytest.mark.parametrize("name", READERS)
def test_nothing_there(tmp_path: Path, name: str, kind: str) -> None:
    reader, root = READERS[name], tmp_path / "set"
    if kind == "file":
        root.write_text("")
    elif kind != "missing":
        root.mkdir()
    if kind == "deeper":
        reader.write(root / "inner")
    found = "there is no such folder" if kind in ("missing", "file") else reader.found
    stop(lambda: reader.read(root), f"{root}: ", found, *reader.words, "data.root=DIR", "FLR_DATA")


# Forms whose errors of a missing folder have a test of their own.
ALL = READERS | {
    "kaggle": Reader(
        muct.read, partial(fake_muct.write_kaggle, train=4, test=2, answers=True), "", (),
        ("training.csv", "test.csv", "IdLookupTable.csv"),
    ),
    "muct": Reader(muct.read, partial(fake_muct.write_muct, subjects=1), "", (), (muct.LANDMARKS[1],)),
    **{
        f"table {form}": Reader(
            table.read, partial(fake_table.write, form=form, parts={"train": 2}), "", (), files
        )
        for form, files in {
            "csv": ("labels.csv", "scheme.yaml"), "coco": ("labels_train.json",), "xml": ("labels_train.xml",),
            "pts": ("train/000.pts",),
        }.items()
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp("written") for name in ALL}
    for name, root in roots.items():
        ALL[name].write(root)
    return roots


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), changed=changes(), strict=st.booleans())
def test_any_bytes(written: dict[str, Path], name: str, data: st.DataObject, changed: Change, strict: bool) -> None:
    """Whatever a list holds: sound faces whose images load, or a UserError."""
    reader, root = ALL[name], written[name]
    with changed_file(root / data.draw(st.sampled_from(reader.lists)), changed):
        try:
            faces = reader.read(root, strict)
            assert len(faces) and np.isfinite(faces.points[faces.labelled]).all() and faces.fingerprint()
            assert all(faces.load(i).dtype == np.uint8 for i in range(min(len(faces), 5)))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
