"""CelebA's reader against fakes of each of the set's forms, spoiled copies, and real files where FLR_DATA names them."""

from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest

from flr.augment.device import Augment
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.data.readers import celeba
from flr.data.table import FaceTable
from flr.landmarks.geometry import transform
from flr.landmarks.scheme import CELEBA5
from tests.data.support import asymmetry, dot_offsets, stop
from tests.fakes import celeba as fake

PAGE = "<!DOCTYPE html>\n<html><head><title>Google Drive - Quota exceeded</title></head></html>\n"


def count(table: FaceTable) -> dict[str, int]:
    return {part: int((table.split == part).sum()) for part in ("train", "val", "test") if (table.split == part).any()}


# ---------------------------------------------------------------- the forms


def test_wild(tmp_path: Path) -> None:
    fake.write(tmp_path, parts=(14, 3, 4))
    table = celeba.read(tmp_path, strict=True)
    assert table.form == "celeba_wild[21/202599]" and table.scheme is CELEBA5
    np.testing.assert_array_equal(table.points, fake.wild(21))
    assert table.points.dtype == table.box.dtype == np.float32
    assert table.labelled.all() and table.visible.all() and not table.faults and not table.subsets
    assert table.split.tolist() == ["train"] * 14 + ["val"] * 3 + ["test"] * 4
    assert table.name.tolist() == table.group.tolist() == [f"{i:06d}.jpg" for i in range(1, 22)]
    assert table.image[0] == "img_celeba/000001.jpg"
    x, y, width, height = fake.boxes(fake.wild(21)).T
    # A box of pixels x to x + width - 1 has its edges half a pixel outside their centres.
    np.testing.assert_array_equal(table.box, np.stack([x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5], 1))
    offs = [np.mean(dot_offsets(table.load(i), table.points[i]), 0) for i in range(21)]
    assert np.abs(np.mean(offs, 0)).max() < 0.1  # a slip of one pixel, or of one face, shows here
    assert asymmetry(table) < 0.06 and asymmetry(table, np.arange(5)) > 0.8


def test_aligned(tmp_path: Path) -> None:
    fake.write(tmp_path, kinds=("aligned",))
    table = celeba.read(tmp_path, strict=True)
    assert table.form == "celeba_aligned[12/202599]"
    np.testing.assert_array_equal(table.points, fake.aligned(12))
    np.testing.assert_array_equal(table.box, [[-0.5, -0.5, 177.5, 217.5]] * 12)  # the picture, not the list's box
    assert all(table.load(i).shape[:2] == (218, 178) for i in range(12))
    assert max(np.abs(np.mean(dot_offsets(table.load(i), table.points[i]), 0)).max() for i in range(12)) < 0.3
    assert asymmetry(table) < 0.06 and asymmetry(table, np.arange(5)) > 0.8
    (tmp_path / "list_bbox_celeba.txt").write_text(PAGE)  # that list is not asked
    assert celeba.read(tmp_path).fingerprint() == table.fingerprint()


def test_both(tmp_path: Path) -> None:
    fake.write(tmp_path, kinds=("wild", "aligned"))
    assert celeba.read(tmp_path).form == celeba.read(tmp_path, images="wild").form == "celeba_wild[12/202599]"
    assert celeba.read(tmp_path, images="aligned").form == "celeba_aligned[12/202599]"


def _move(root: Path, **places: str) -> None:
    """Put files of the set (by the beginnings of their names) elsewhere under its root."""
    for start, place in places.items():
        for path in sorted(root.glob(f"{start}*")):
            (root / place).mkdir(parents=True, exist_ok=True)
            path.rename(root / place / path.name)


def _nest(root: Path) -> None:
    (root / "img_celeba").rename(root / "moved")
    (root / "img_celeba").mkdir()
    (root / "moved").rename(root / "img_celeba/img_celeba")


def _text(change: Callable[[str], str | bytes], stem: str = "") -> Callable[[Path], None]:
    """Change the text of the lists whose names begin so."""

    def spoil(root: Path) -> None:
        paths = [path for path in root.iterdir() if path.suffix in (".txt", ".csv") and path.name.startswith(stem)]
        assert paths
        for path in paths:
            text = path.read_text()
            changed = change(text)
            assert changed != text
            path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return spoil


def _columns(order: tuple[int, ...]) -> Callable[[str], str]:
    """The list's columns in another order."""
    return lambda text: "".join(
        ",".join(line.split(",")[i] for i in (*order, *range(len(order), len(line.split(","))))) + "\n"
        for line in text.splitlines()
    )


SAME: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "blanks": (False, lambda root: None),
    "publisher": (False, lambda root: _move(root, list_eval="Eval", list="Anno", identity="Anno", img_celeba="Img")),
    "nested": (True, _nest),
    "mark_on_count": (False, _text(lambda text: "\ufeff" + text.replace("\n", "\r\n"))),
    "quoted": (True, _text(lambda text: text.replace("0000", '"0000').replace(".jpg", '.jpg"'))),
    "no_count": (False, _text(lambda text: text.removeprefix("12\n"), "list_bbox")),
    "header_of_all": (False, _text(lambda text: text.replace("lefteye_x", "image_id lefteye_x"), "list_landmarks")),
    "points_swapped": (True, _text(_columns((0, 4, 3, 2, 1)), "list_landmarks")),
    "rows_in_another_order": (
        False,
        _text(lambda text: "".join(reversed(text.splitlines(keepends=True))), "identity"),
    ),
    "numbered_rows": (
        True,
        _text(
            lambda text: "".join(f"{i or ''},{line}" for i, line in enumerate(text.splitlines(True))), "list_landmarks"
        ),
    ),
    "more_pictures": (False, lambda root: (root / "img_celeba/._000001.jpg").write_bytes(b"twin")),
    "boxes_of_all": (False, _text(lambda text: text.replace("12\n", "13\n", 1) + "000099.jpg 1 1 1 1\n", "list_bbox")),
}


@pytest.mark.parametrize(("csv", "change"), SAME.values(), ids=SAME)
def test_same_set(tmp_path: Path, csv: bool, change: Callable[[Path], object]) -> None:
    """Copies of one set, however they are laid out and written, are one set: the same faces, groups and fingerprint."""
    for name, commas in (("plain", False), ("copy", csv)):
        fake.write(tmp_path / name, csv=commas, identities=True)
    change(tmp_path / "copy")
    plain, copy = celeba.read(tmp_path / "plain", strict=True), celeba.read(tmp_path / "copy", strict=True)
    assert copy.fingerprint() == plain.fingerprint() and copy.form == plain.form
    assert all(np.array_equal(copy.load(i), plain.load(i)) for i in range(len(plain)))


def test_names(tmp_path: Path) -> None:
    """Names are whatever the list says, as long as such a file is there."""
    fake.write(tmp_path, csv=True)
    names = {
        "000001.jpg": "zoë 顔, 1.jpg",
        "000002.jpg": "UPPER.JPG",
        "000003.jpg": "two  blanks.Jpeg",
        "000004.jpg": "=.jpg",
    }
    for old, new in names.items():
        (tmp_path / "img_celeba" / old).rename(tmp_path / "img_celeba" / new)
        _text(lambda text, old=old, new=new: text.replace(old, f'"{new}"' if "," in new else new))(tmp_path)
    table = celeba.read(tmp_path, strict=True)
    assert table.name[:4].tolist() == list(names.values()) and len(table) == 12
    assert table.load(0).size and table.fingerprint()


# ---------------------------------------------------------------- what is there, and how it is split


def test_part_of_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most copies hold a part: no fault, no stop, but another form; a strict reading wants them all."""
    fake.write(tmp_path)
    for i in (2, 8, 10):
        (tmp_path / f"img_celeba/{i:06d}.jpg").unlink()
    table = celeba.read(tmp_path)
    assert table.form == "celeba_wild[9/202599]" and not table.faults
    assert count(table) == {"train": 5, "val": 1, "test": 3}
    np.testing.assert_array_equal(table.points, np.delete(fake.wild(12), [1, 7, 9], 0))
    np.testing.assert_array_equal(table.box[:, 0], np.delete(fake.boxes(fake.wild(12)), [1, 7, 9], 0)[:, 0] - 0.5)
    stop(lambda: celeba.read(tmp_path, strict=True), "img_celeba: 3 of the 12 images", "'000002.jpg'", "data.strict=")
    monkeypatch.setattr(celeba, "FACES", 9)
    assert celeba.read(tmp_path).form == "celeba_wild"
    # The lists need to know the images that are there, no others.
    _text(lambda text: "".join(line for line in text.splitlines(True) if "000002" not in line), "list_eval")(tmp_path)
    assert celeba.read(tmp_path).fingerprint() != table.fingerprint() and len(celeba.read(tmp_path)) == 9


def test_none_of_the_pictures(tmp_path: Path) -> None:
    fake.write(tmp_path)
    for path in sorted((tmp_path / "img_celeba").iterdir()):
        path.rename(path.with_suffix(".JPG"))
    stop(lambda: celeba.read(tmp_path), "img_celeba: none of the images", "'000001.jpg'", "'000001.JPG'", "images=")
    for path in (tmp_path / "img_celeba").iterdir():
        path.unlink()
    stop(lambda: celeba.read(tmp_path), "none of the images", "it is empty")


def test_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 150,000 rows of the list, whether their images are there or not."""
    assert (celeba.PUBLISHED, celeba.FACES) == (150_000, 202_599)
    fake.write(tmp_path)
    table = celeba.read(tmp_path, split="published")
    assert table.form == "celeba_wild+published[12/202599]" and count(table) == {"train": 12}
    monkeypatch.setattr(celeba, "PUBLISHED", 9)
    assert count(celeba.read(tmp_path, split="published")) == {"train": 9, "test": 3}
    (tmp_path / "img_celeba/000002.jpg").unlink()
    table = celeba.read(tmp_path, split="published")
    assert count(table) == {"train": 8, "test": 3} and table.form == "celeba_wild+published[11/202599]"
    assert table.name[table.split == "test"].tolist() == ["000010.jpg", "000011.jpg", "000012.jpg"]


def test_no_partition(tmp_path: Path) -> None:
    fake.write(tmp_path / "a", partition=False)
    stop(
        lambda: celeba.read(tmp_path / "a"), "no list_eval_partition.txt or .csv", celeba.SITE, "data.reader.split=none"
    )
    assert celeba.read(tmp_path / "a", split="published").form == "celeba_wild+published[12/202599]"
    table = celeba.read(tmp_path / "a", split="none")
    assert table.form == "celeba_wild+by_picture[12/202599]" and count(table) == {"train": 12}
    assert table.group.tolist() == table.name.tolist()
    fake.write(tmp_path / "b", identities=True)
    table = celeba.read(tmp_path / "b", split="none")
    assert table.form == "celeba_wild+by_identity[12/202599]" and count(table) == {"train": 12}


def test_identities(tmp_path: Path) -> None:
    fake.write(tmp_path, identities=True)
    table = celeba.read(tmp_path)
    assert table.group.tolist() == ["2880", "2880", "2881", "2881", "2882", "2882", "2980", "2980"] + [
        "3080", "3080", "3081", "3081",
    ]  # fmt: skip
    assert table.form == "celeba_wild[12/202599]"  # the official split is by identity, with or without their list
    assert not set(table.group[table.split == "train"]) & set(table.group[table.split == "test"])


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("size", ["0 0 0 0", "5 5 10 0", "5 5 -10 9", "9e8 5 9e8 9"])
def test_boxes_of_no_size(tmp_path: Path, size: str) -> None:
    """The set's own list has some, also of test faces: they are left out by name, or kept where no box is asked for."""
    fake.write(tmp_path, csv=True)
    for place, cell in enumerate(size.split(), 1):
        for name in ("000002.jpg", "000012.jpg"):
            _cell(place, cell, "list_bbox")(tmp_path, name)
    table = celeba.read(tmp_path)
    assert table.form == "celeba_wild[10/202599]" and count(table) == {"train": 5, "val": 2, "test": 3}
    assert [fault.face for fault in table.faults] == ["000002.jpg", "000012.jpg"]
    assert all("list_bbox_celeba gives it a box of no size" in fault.reason for fault in table.faults)
    assert np.isfinite(table.box).all()
    stop(lambda: celeba.read(tmp_path, strict=True), "000002.jpg: list_bbox_celeba", "data.reader.boxes=false")
    whole = celeba.read(tmp_path, boxes=False, strict=True)
    assert whole.form == "celeba_wild[12/202599]" and np.isnan(whole.box).all() and not whole.faults
    for name in whole.name:
        _cell(3, "0", "list_bbox")(tmp_path, name)
    stop(lambda: celeba.read(tmp_path), "000001.jpg: list_bbox_celeba gives it a box of no size", "boxes=false")


def test_no_boxes(tmp_path: Path) -> None:
    fake.write(tmp_path, kinds=("wild", "aligned"))
    (tmp_path / "list_bbox_celeba.txt").unlink()
    stop(lambda: celeba.read(tmp_path), "no list_bbox_celeba.txt or .csv", "data.reader.boxes=false", "source=truth")
    assert celeba.read(tmp_path, boxes=False).form == "celeba_wild[12/202599]"
    assert np.isnan(celeba.read(tmp_path, boxes=False, images="aligned").box).all()
    assert np.isfinite(celeba.read(tmp_path, images="aligned").box).all()


@pytest.mark.parametrize("kind", ["wild", "aligned"])
def test_default_crop(tmp_path: Path, kind: str) -> None:
    """From conf/data/celeba.yaml to a batch: the crop follows the box, and the landmarks move along."""
    fake.write(tmp_path, parts=(6, 6, 4), kinds=(kind,))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["data=celeba", f"data.root={tmp_path}", "data.workers=0", f"data.reader.images={kind}"]
        cfg = hydra.compose("train", words)
    data = build(cfg.data, augment=Augment(), seed=0, cache=str(tmp_path / "cache"))
    assert data.prepare().form == f"celeba_{kind}[16/202599]"
    assert data.protocol.policy == "file-square-1" and data.crop.channels == 1
    size, side = data.crop.size, (data.table.box[:, 2:] - data.table.box[:, :2]).max(1)
    factor = (size / side)[:, None, None]
    centre = ((data.table.box[:, :2] + data.table.box[:, 2:]) / 2)[:, None]
    expected = (data.table.points - centre) * factor + (size - 1) / 2
    np.testing.assert_allclose(data.labels, expected, atol=1e-3)
    assert data.labels.min() > 0 and data.labels.max() < size - 1
    np.testing.assert_allclose(transform(data.store.to_crop(), data.table.points.astype(float)), expected, atol=1e-3)
    margin = data.store.margin
    for image, points in zip(data.store.images[..., 0], data.labels, strict=True):
        middle = image[margin : margin + size, margin : margin + size]
        assert middle[tuple(points.round().astype(int).T[::-1])].min() > np.median(middle) + 40, "no dot under a point"


# ---------------------------------------------------------------- spoiled copies


def _replace(stem: str, old: str, new: str) -> Callable[[Path], None]:
    return _text(lambda text: text.replace(old, new, 1), stem)


def _instead(stem: str, data: bytes | str) -> Callable[[Path], object]:
    data = data.encode() if isinstance(data, str) else data
    return lambda root: next(root.glob(f"{stem}*")).write_bytes(data)


LISTED = {
    "landmarks": "list_landmarks_celeba.", "boxes": "list_bbox_celeba.", "partition": "list_eval_partition.",
    "identity": "identity_CelebA.",
}  # fmt: skip
STOPS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    **{f"page_{k}": (_instead(v, PAGE), (v, "a web page, not the file itself")) for k, v in LISTED.items()},
    **{f"other_{k}": (_instead(v, "000077.jpg 1\n" * 2), (v,)) for k, v in LISTED.items()},
    "no_landmarks": (lambda r: (r / "list_landmarks_celeba.txt").unlink(), ("no list_landmarks_celeba.txt or", celeba.SITE)),
    "counts_more": (_replace("list_landmarks", "12\n", "202599\n"), ("says 202599 rows, 12 are there",)),
    "lacks_rows": (_text(lambda t: t[: t.index("000005")], "list_eval"),
                   ("list_eval_partition.txt: does not list 8 of the images, such as '000005.jpg'",)),
    "twice_in_boxes": (_replace("list_bbox", "000007", "000008"), ("list_bbox_celeba.txt: lists '000008.jpg' twice",)),
    "no_column": (_replace("list_landmarks", "nose_x", "nose"), ("no column 'nose_x' (did you mean 'nose_y'?)",)),
    "no_box_column": (_replace("list_bbox", "x_1", "left"), ("list_bbox_celeba.txt: no column 'x_1'",)),
    "climbing": (_replace("list_landmarks", "000003.jpg", "../a.jpg"), ("line 5: '../a.jpg' is not the name of a file",)),
    "part_3": (_replace("list_eval", "000012.jpg    2", "000012.jpg    3"), ("line 12: '3' is not 0, 1 or 2",)),
    "person_word": (_replace("identity", "2880", "Ann"), ("identity_CelebA.txt line 1: 'Ann' is not a person's number",)),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), STOPS.values(), ids=STOPS)
def test_spoiled_lists(tmp_path: Path, spoil: Callable[[Path], object], words: tuple[str, ...]) -> None:
    fake.write(tmp_path, identities=True)
    spoil(tmp_path)
    text = stop(lambda: celeba.read(tmp_path), str(tmp_path), *words)
    assert len(text) < 600


def _cell(place: int, text: str, stem: str = "list_landmarks") -> Callable[[Path, str], object]:
    """Put another text in a cell (the image's name is cell 0)."""

    def spoil(root: Path, name: str) -> None:
        path = next(root.glob(f"{stem}*"))
        rows = [line.split(",") for line in path.read_text().splitlines()]
        row = next(row for row in rows if row[0] == name)
        row[place] = text
        path.write_text("\n".join(map(",".join, rows)) + "\n")

    return spoil


FAULTS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "word": (_cell(5, "nose"), "list_landmarks_celeba.csv line {line}: 'nose' is not a number"),
    "no_cell": (_cell(3, ""), "a point is not a finite number"),
    "box_word": (_cell(1, "left", "list_bbox"), "list_bbox_celeba.csv line {line}: 'left' is not a number"),
}


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path: Path, spoil: Callable[[Path, str], object], reason: str) -> None:
    """A fault of one face is skipped and counted in training, and stops a strict reading and a test part."""
    fake.write(tmp_path, csv=True)
    spoil(tmp_path, "000002.jpg")
    table = celeba.read(tmp_path)
    assert table.form == "celeba_wild[11/202599]" and "000002.jpg" not in table.name
    assert [fault.face for fault in table.faults] == ["000002.jpg"]
    assert reason.format(line=3) in table.faults[0].reason
    stop(lambda: celeba.read(tmp_path, strict=True), str(tmp_path), "000002.jpg: ", reason.format(line=3))
    spoil(tmp_path, "000011.jpg")
    stop(lambda: celeba.read(tmp_path), str(tmp_path), "000011.jpg: ", reason.format(line=12), "test face")


def test_faults_name_their_own_face(tmp_path: Path) -> None:
    """Lists of other orders and missing images shift no fault, box or part to another face."""
    fake.write(tmp_path, csv=True, identities=True)
    (tmp_path / "img_celeba/000001.jpg").unlink()
    for stem in ("list_bbox", "list_eval", "identity"):
        _text(lambda text: "\n".join([*text.split()[:1], *text.split()[:0:-1]]) + "\n", stem)(tmp_path)
    _cell(2, "brow")(tmp_path, "000003.jpg")
    _cell(2, "top", "list_bbox")(tmp_path, "000005.jpg")
    _cell(4, "0", "list_bbox")(tmp_path, "000011.jpg")
    table = celeba.read(tmp_path)
    assert [fault.face for fault in table.faults] == ["000003.jpg", "000005.jpg", "000011.jpg"]
    kept = [1, 3, 5, 6, 7, 8, 9, 11]
    assert table.name.tolist() == [f"{i + 1:06d}.jpg" for i in kept]
    np.testing.assert_array_equal(table.points, fake.wild(12)[kept])
    np.testing.assert_array_equal(table.box[:, :2], fake.boxes(fake.wild(12))[kept][:, :2] - 0.5)
    assert table.split.tolist() == ["train"] * 3 + ["val"] * 2 + ["test"] * 3
    assert table.group.tolist() == ["2880", "2881", "2882", "2980", "2980", "3080", "3080", "3081"]


def test_listed_twice(tmp_path: Path) -> None:
    fake.write(tmp_path)
    _replace("list_landmarks", "000002.jpg", "000001.jpg")(tmp_path)
    table = celeba.read(tmp_path)
    assert [str(fault) for fault in table.faults] == ["000001.jpg: it is listed twice"] and len(table) == 11


def test_images_of_the_other_kind_are_reported(tmp_path: Path) -> None:
    fake.write(tmp_path, kinds=("wild",))
    stop(lambda: celeba.read(tmp_path, images="aligned"), f"{tmp_path}: ", "img_align_celeba/ is in it", celeba.SITE)


@pytest.mark.long
def test_whole_index(tmp_path: Path) -> None:
    """The whole set's index over forty of its images, which lie far apart in it."""
    total, step = celeba.FACES, 5000
    fake.write(tmp_path, parts=(41, 0, 0), kinds=("aligned",), csv=True)
    names = [f"{i:06d}.jpg" for i in range(1, total + 1)]
    points = np.arange(total)[:, None] % 50 + fake.ALIGNED.ravel()
    (tmp_path / "list_landmarks_align_celeba.csv").write_text(fake.listing(names, fake.POINTS, points, csv=True))
    parts = np.repeat([0, 1, 2], [162770, 19867, 19962])[:, None]  # the official counts
    (tmp_path / "list_eval_partition.csv").write_text(fake.listing(names, ("partition",), parts, csv=True))
    folder = tmp_path / "img_align_celeba"
    for i in reversed(range(41)):
        (folder / f"{i + 1:06d}.jpg").rename(folder / f"{i * step + 1:06d}.jpg")
    table = celeba.read(tmp_path)
    assert table.form == "celeba_aligned[41/202599]" and not table.faults
    assert count(table) == {"train": 33, "val": 4, "test": 4}
    np.testing.assert_array_equal(table.points.reshape(-1, 10), points[::step])


# ---------------------------------------------------------------- fakes and real files


def test_real_aligned(real_data: Path) -> None:
    root = real_data / "celeba_align"
    if not root.is_dir():
        pytest.skip(f"needs real files: no {root}")
    table = celeba.read(root, strict=True, split="none")
    assert table.form == "celeba_aligned+by_picture[32/202599]" and len(table) == 32
    assert all(table.load(i).shape == (218, 178, 3) for i in range(32))
    assert table.points[0].tolist() == [[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]]
    assert asymmetry(table) < 0.05 and asymmetry(table, np.arange(5)) > 0.8
    assert table.points[:, :2, 0].mean() == pytest.approx((178 - 1) / 2, abs=0.3)  # counted from 0
    stop(lambda: celeba.read(root), "no list_eval_partition.txt or .csv", "data.reader.split=none")


def test_real_faces_in_the_wild(real_forms: Path) -> None:
    """Real images whose 68 points were made into this form elsewhere."""
    table = celeba.read(real_forms / "celeba", strict=True)
    assert table.form == "celeba_wild[80/202599]" and count(table) == {"train": 36, "val": 4, "test": 40}
    assert asymmetry(table) < 0.1 and asymmetry(table, np.arange(5)) > 0.8
    middle = table.points.mean(1)
    assert ((table.box[:, :2] < middle) & (middle < table.box[:, 2:])).all()
    assert table.load(0).ndim == 3
