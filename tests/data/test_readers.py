"""The readers against fakes of each set's form, spoiled files, and real files where FLR_DATA names them."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from flr.data.formats import dlib_xml
from flr.data.images import decode_image
from flr.data.readers import ibug, ibug_xml
from flr.data.readers import table as table_reader
from flr.errors import UserError
from tests.data.support import asymmetry, offset, read_pts, stop
from tests.fakes import ibug as fake
from tests.fakes import ibug_xml as fake_xml

SMALL = {"afw": 4, "helen/testset": 3}


# ---------------------------------------------------------------- .pts


def test_pts_columns(tmp_path: Path) -> None:
    parts = {"afw": 4, "helen/trainset": 5, "lfpw/trainset": 2}
    parts |= {"helen/testset": 3, "lfpw/testset": 2, "ibug": 3}
    fake.write(tmp_path, parts)
    table = ibug.read(tmp_path)
    truth = [fake.faces(count, fake.SIZE, fake.folder_seed(part, 0)) for part, count in parts.items()]
    np.testing.assert_allclose(np.sort(table.points[:4], 0), np.sort(truth[0], 0), atol=1e-3)
    assert table.points.dtype == table.box.dtype == np.float32
    assert table.labelled.all() and table.visible.all() and np.isnan(table.box).all()
    assert table.split.tolist() == ["train"] * 11 + ["test"] * 8
    assert {name: int(mask.sum()) for name, mask in table.subsets.items()} == {
        "afw": 4, "helen_train": 5, "lfpw_train": 2, "helen_test": 3, "lfpw_test": 2, "ibug": 3,
        "common": 5, "challenging": 3, "full": 8,
    }  # fmt: skip
    assert table.name[table.subsets["ibug"]].tolist() == [
        "ibug/image_092 _01.jpg", "ibug/image_100_02.jpg", "ibug/image_101_01.jpg",
    ]  # fmt: skip
    assert table.group[:4].tolist() == ["afw/100040721", "afw/100040721", "afw/100040758", "afw/100040758"]
    assert table.group[9:11].tolist() == ["lfpw/trainset/image_0001", "lfpw/trainset/image_0002"]
    assert table.group[-1] == "ibug/image_101_01"
    assert asymmetry(table) < 0.05


def test_points_lie_on_the_pixels(tmp_path: Path) -> None:
    """A .pts counts from 1; a slip of one pixel, or of one face, shows here."""
    fake.write(tmp_path, {"afw": 8, "lfpw/testset": 6})
    (tmp_path / "afw/100040758_1.pts").write_text("no points\n")
    table = ibug.read(tmp_path)
    assert len(table) == 13 and len(table.faults) == 1
    assert np.abs(offset(table)).max() < 0.1
    assert sum(table.load(i).ndim == 2 for i in range(len(table))) == 2  # grey stays grey
    assert (table.points < 0).any() or (table.points[..., 0] > fake.SIZE[0]).any()  # such points are allowed


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.split("{\n")[1].split("}")[0],
        lambda text: "{" + text.split("{")[1],
        lambda text: text.replace("{", "").replace("}", ""),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text.split("{\n")[1].split("}")[0],
        lambda text: text.replace(" ", "\t").replace("\n", " \n\n"),
        lambda text: text.replace("68\n{", "68 {").replace("version: 1", "VERSION : 2"),
        lambda text: text.rstrip("\n"),
    ],
    ids=["whole", "bare", "braces", "no_braces", "crlf", "bom", "bare_bom", "blank", "one_line", "no_end"],
)
def test_pts_variants(tmp_path: Path, change: Callable[[str], str]) -> None:
    points = fake.faces(1)[0]
    path = tmp_path / "a.pts"
    fake.write_pts(path, points)
    path.write_bytes(change(path.read_text()).encode())
    read = read_pts(path)
    np.testing.assert_allclose(read, points, atol=1e-3)


def _line(number: int, text: str | None) -> Callable[[Path], None]:
    """Put a line in place of a .pts file's `number`-th (from 1)."""

    def spoil(picture: Path) -> None:
        path = picture.with_suffix(".pts")
        lines = path.read_text().split("\n")
        lines[number - 1 : number] = [] if text is None else [text]
        path.write_text("\n".join(lines))

    return spoil


def _text(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda picture: picture.with_suffix(".pts").write_bytes(data)


SPOILED = {
    "67_points": (_line(10, None), "its .pts: 67 points, not 68"),
    "two_blocks": (lambda p: _text(p.with_suffix(".pts").read_text() * 2)(p), "line 73: 'version:' is not a"),
    "three_numbers": (_line(10, "1 2 3"), "line 10: '1 2 3' is not two numbers"),
    "word": (_line(10, "12.5 nose"), "line 10: 'nose' is not a number"),
    "cut": (lambda p: _text(p.with_suffix(".pts").read_text()[:-4])(p), "a brace is missing"),
    "empty_pts": (_text(""), "its .pts: 0 points, not 68"),
    "no_pts": (lambda p: p.with_suffix(".pts").unlink(), "has no .pts"),
    "no_picture": (lambda p: p.unlink(), "has no image"),
    "two_pictures": (lambda p: p.with_suffix(".png").write_bytes(b"x"), "have the same stem"),
    "unreadable_pts": (
        lambda p: (p.with_suffix(".pts").unlink(), p.with_suffix(".pts").mkdir()),
        "its .pts cannot be read (Is a directory",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED)
def test_pts_faults(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    """A fault is skipped and counted in training, and stops a strict reading and a test part."""
    train, test = tmp_path / "train", tmp_path / "test"
    for root in (train, test):
        fake.write(root, SMALL)
    spoil(train / "afw/100040721_2.jpg")
    table = ibug.read(train)
    assert table.form == "ibug[afw:3|helen_test:3]"
    assert [fault.face.rpartition(".")[0] for fault in table.faults] == ["afw/100040721_2"]
    assert reason in table.faults[0].reason
    assert np.isfinite(table.points).all() and "afw/100040721_2.jpg" not in table.name
    stop(lambda: ibug.read(train, strict=True), str(train), "afw/100040721_2.", reason, "data.strict=false")
    spoil(test / "helen/testset/100040721_2.jpg")
    stop(lambda: ibug.read(test), str(test), "helen/testset/100040721_2.", reason, "test face")


def test_pts_none_left(tmp_path: Path) -> None:
    fake.write(tmp_path, {"afw": 3})
    for path in sorted(tmp_path.glob("afw/*.pts"))[:2]:
        path.write_text("1 2\n")
    sorted(tmp_path.glob("afw/*.pts"))[2].write_text("5 5\n" * 68)
    stop(lambda: ibug.read(tmp_path), "no usable face is left of 3", "/100040721_1.jpg: its .pts: 1 points")


PNG, GIF, JPG = (cv2.imencode(kind, np.full((8, 8, 3), 90, np.uint8))[1].tobytes() for kind in (".png", ".gif", ".jpg"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PNG[:33] + b"\x40\0\0\0IDAT" + PNG[41:], "a truncated PNG"),
        (PNG[:8] + b"\x40\0\0\0", "a truncated PNG"),
        (PNG[:-1], "a truncated PNG"),
        (GIF[:6] + b"\x98\x3a" * 2 + GIF[10:], "not an image"),
        (JPG.replace(b"\xc0\0\x11\x08\0\x08\0\x08", b"\xff\xc0\0\x11\x08" + b"\x3a\x98" * 2), "not an image"),
    ],
    ids=["chunk", "no chunk", "end", "gif", "fill byte"],
)
def test_pixels_that_would_take_memory(data: bytes, reason: str) -> None:
    """OpenCV asks for what memory a PNG's chunk claims, and would take 35 bytes of GIF for 7 GB of pixels."""
    assert all(decode_image(whole, "whole").shape == (8, 8, 3) for whole in (PNG, GIF, JPG))
    stop(lambda: decode_image(data, "claims.png"), "claims.png", reason)


def test_names(tmp_path: Path) -> None:
    """Kinds in capitals, blanks, letters of all sorts, links, macOS's twins and dlib's mirrored copies."""
    fake.write(tmp_path / "other", {"afw": 2, "helen/trainset": 2})
    kept, folder = tmp_path / "other/afw", tmp_path / "set/afw"
    folder.mkdir(parents=True)
    for name in ("UPPER_1.JPG", "two  blanks_1.Jpeg", "zoë 顔_1.png", "._UPPER_1.JPG", "UPPER_1_mirror.jpg"):
        (folder / name).write_bytes((kept / "100040721_1.jpg").read_bytes())
    for name in ("UPPER_1.PTS", "two  blanks_1.pts", "zoë 顔_1.pts", "._UPPER_1.pts"):
        (folder / name).write_bytes((kept / "100040721_1.pts").read_bytes())
    for kind in (".jpg", ".pts"):
        (folder / f"link_1{kind}").symlink_to(kept / f"100040721_2{kind}")
    (folder / "readme.txt").write_text("hello")
    (folder.parent / "helen").symlink_to(tmp_path / "other/helen", target_is_directory=True)
    table = ibug.read(tmp_path / "set", strict=True)
    assert table.name.tolist() == [
        "afw/UPPER_1.JPG", "afw/link_1.jpg", "afw/two  blanks_1.Jpeg", "afw/zoë 顔_1.png",
        "helen/trainset/100040721_1.jpg", "helen/trainset/100040721_2.jpg",
    ]  # fmt: skip
    assert table.group[:4].tolist() == ["afw/UPPER", "afw/link", "afw/two  blanks", "afw/zoë 顔"]
    assert all(table.load(i).size for i in range(len(table)))


def test_name_that_is_no_unicode(tmp_path: Path) -> None:
    fake.write(tmp_path, {"afw": 2})
    for kind in (b".jpg", b".pts"):
        try:
            old = os.fsencode(tmp_path / "afw/100040721_1")
            os.rename(old + kind, os.path.dirname(old) + b"/caf\xe9_1" + kind)
        except OSError:
            pytest.skip("this file system takes Unicode names alone")
    table = ibug.read(tmp_path, strict=True)
    assert table.name.tolist() == ["afw/100040721_2.jpg", "afw/caf\\xe9_1.jpg"]
    assert table.load(1).size and table.fingerprint()


@pytest.mark.parametrize(
    ("parts", "form"),
    [
        ({}, "ibug"),
        ({"300w/01_Indoor": 2, "300w/02_Outdoor": 1}, "ibug+private"),
        ({"300w/01_Indoor": 2}, "ibug[afw+helen_train+lfpw_train|helen_test+lfpw_test+ibug+indoor]"),
        ({"300w/01_Indoor": 1, "300w/02_Outdoor": 1},
         "ibug[afw+helen_train+lfpw_train|helen_test+lfpw_test+ibug+indoor:1+outdoor]"),
        ({"ibug": 0}, "ibug[afw+helen_train+lfpw_train|helen_test+lfpw_test]"),
        ({"helen/trainset": 2, "lfpw/testset": 3},
         "ibug[afw+helen_train:2+lfpw_train|helen_test+lfpw_test:3+ibug]"),
        ({"afw": 0, "helen/trainset": 0, "lfpw/trainset": 0}, "ibug[none|helen_test+lfpw_test+ibug]"),
        ({"helen/testset": 0, "lfpw/testset": 0, "ibug": 0}, "ibug[afw+helen_train+lfpw_train|none]"),
    ],
)  # fmt: skip
def test_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, int], form: str) -> None:
    """The form says which parts are there and which are not whole (here: against small official counts)."""
    assert [part.total for part in ibug.PARTS] == [337, 2000, 811, 330, 224, 135, 300, 300]
    whole = {"afw": 2, "helen/trainset": 3, "lfpw/trainset": 1}
    whole |= {"helen/testset": 2, "lfpw/testset": 1, "ibug": 1}
    private = {"300w/01_Indoor": 2, "300w/02_Outdoor": 1}
    small = [part._replace(total=(whole | private)[part.folders[0]]) for part in ibug.PARTS]
    monkeypatch.setattr(ibug, "PARTS", tuple(small))
    fake.write(tmp_path, whole | parts)
    table = ibug.read(tmp_path)
    assert table.form == form
    assert ("private" in table.subsets) == (private.keys() <= parts.keys())
    members = {"helen_test", "lfpw_test", "ibug"}
    assert ("full" in table.subsets) == (members <= set(table.subsets)), "a part of full is not full"


def test_private_test_has_one_name(tmp_path: Path) -> None:
    """The private test is the same set under each of its places."""
    prints = set()
    for place in ("300w/", "300W/", ""):
        root = tmp_path / f"root{place[:-1]}"
        fake.write(root, {"300w/01_Indoor": 2, "300w/02_Outdoor": 2})
        if place != "300w/":
            (root / "300w").rename(root / "moved")
            (root / place).mkdir(exist_ok=True)
            for folder in ("01_Indoor", "02_Outdoor"):
                (root / "moved" / folder).rename(root / place / folder)
        table = ibug.read(root)
        ends = table.name[[0, -1]].tolist()
        assert ends == ["300w/01_Indoor/indoor_001.png", "300w/02_Outdoor/outdoor_002.png"]
        assert table.form == "ibug[none|indoor:2+outdoor:2]" and (table.split == "test").all()
        assert {name: mask.tolist() for name, mask in table.subsets.items()} == {
            "indoor": [True, True, False, False],
            "outdoor": [False, False, True, True],
            "private": [True] * 4,
        }
        prints.add(table.fingerprint())
    assert len(prints) == 1


def test_order_and_place_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write(tmp_path / "a", SMALL)
    fake.write(tmp_path / "b/c", dict(reversed(SMALL.items())))
    first = ibug.read(tmp_path / "a")
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listing(self), reverse=True)))
    second = ibug.read(tmp_path / "b/c")
    assert first.name.tolist() == second.name.tolist() == sorted(first.name.tolist())
    assert first.fingerprint() == second.fingerprint()
    (tmp_path / "a/afw/100040721_1.jpg").write_bytes(b"other")
    assert ibug.read(tmp_path / "a").fingerprint() != second.fingerprint()


# ---------------------------------------------------------------- dlib's XML


def test_xml_columns(tmp_path: Path) -> None:
    fake_xml.write(tmp_path, {"afw": 4, "lfpw/trainset": 1, "helen/testset": 3, "ibug": 1})
    table = ibug_xml.read(tmp_path)  # without the mirrored copies
    assert table.form == "ibug_xml"
    assert table.name.tolist() == [
        "afw/100040721_1.jpg#1", "afw/100040721_1.jpg#2", "afw/100040721_2.jpg", "afw/100040758_1.jpg",
        "lfpw/trainset/image_0001.png#1",
        "helen/testset/100040721_1.jpg#1", "helen/testset/100040721_1.jpg#2",
        "helen/testset/100040721_2.jpg", "ibug/image_092 _01.jpg#1",
    ]  # fmt: skip
    assert table.group.tolist() == [
        "afw/100040721", "afw/100040721", "afw/100040721", "afw/100040758", "lfpw/trainset/image_0001",
        *["helen/testset/100040721"] * 3, "ibug/image_092 _01",
    ]  # fmt: skip
    assert table.split.tolist() == ["train"] * 5 + ["test"] * 4
    assert {name: int(mask.sum()) for name, mask in table.subsets.items()} == {
        "afw": 4, "lfpw_train": 1, "helen_test": 3, "ibug": 1, "challenging": 1,
    }  # fmt: skip
    truth = fake.faces(4, fake.SIZE, fake.folder_seed("afw", 0))
    truth[1, :, 0] += fake.SIZE[0]
    np.testing.assert_allclose(table.points[:4], truth, atol=0.501)
    assert (table.points == table.points.round()).all()  # whole pixels as they stand
    np.testing.assert_array_equal(table.box, table.tight + np.array([-0.5, -0.5, 0.5, 0.5]))
    assert asymmetry(table) < 0.1  # whole pixels of few faces


def _set(root: Path, body: str | bytes, split: str = "train", encoding: str = "latin-1") -> Path:
    """A set whose `split` file is `body`; a sound image lies at afw/a_1.jpg."""
    (root / "afw").mkdir(parents=True, exist_ok=True)
    fake.save(root / "afw/a_1.jpg", fake.picture(fake.faces(1)[0]))
    path = root / f"labels_ibug_300W_{split}.xml"
    path.write_bytes(body if isinstance(body, bytes) else body.encode(encoding))
    return path


FACE = fake_xml.entry("afw/a_1.jpg", fake.SIZE, fake.faces(1))
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
BAD_FILES = {
    "billion_laughs": (f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><dataset>&l9;</dataset>', "DTD or entities"),
    "outer_entity": ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///x">]><dataset>&e;</dataset>', "or entities"),
    "outer_dtd": ('<!DOCTYPE dataset SYSTEM "http://localhost/x.dtd"><dataset/>', "DTD or entities"),
    "cut": (fake_xml.document(FACE)[:500], "malformed XML"),
    "encoding": ("<?xml version='1.0' encoding='klingon'?><dataset/>", "klingon"),
    "no_dlib_xml": ("<annotation><object/></annotation>", "its root is <annotation>, not dlib's <dataset>"),
    "climbing": (fake_xml.document(FACE.replace("afw/a_1", "afw/../../a_1")), "leads out of"),
    "climbing_backwards": (fake_xml.document(FACE.replace("afw/a_1", "..\\a_1")), "leads out of"),
    "absolute": (fake_xml.document(FACE.replace("afw/a_1", "/etc/a_1")), "leads out of"),
    "drive": (fake_xml.document(FACE.replace("afw/a_1", "C:\\afw\\a_1")), "leads out of"),
    "unnamed": (fake_xml.document(FACE, FACE.replace('file="afw/a_1.jpg"', "")), "number 2 has no file"),
    "twice": (fake_xml.document(FACE, FACE.replace("afw/a_1", "./afw//a_1")), "lists afw/a_1.jpg"),
    "no_box": (fake_xml.document("<image file='afw/a_1.jpg'/>"), "no <box>"),
    "only_ignored": (fake_xml.document(FACE.replace("<box", "<box ignore='1'")), "no <box>"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_xml_bad_files(tmp_path: Path, body: str | bytes, reason: str) -> None:
    path = _set(tmp_path, body)
    stop(lambda: ibug_xml.read(tmp_path), str(path if reason != "no <box>" else tmp_path), reason, "; ")


def test_xml_in_both_files(tmp_path: Path) -> None:
    """An image that is trained on and tested on would make the score a lie."""
    _set(tmp_path, fake_xml.document(FACE))
    _set(tmp_path, fake_xml.document(FACE), "test")
    stop(lambda: ibug_xml.read(tmp_path), ibug_xml.TEST, f"lists afw/a_1.jpg, as {ibug_xml.TRAIN} did")


def _swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    return change


LEFT, _ = fake.faces(1)[0].round().astype(int).min(0)
PART = next(line for line in FACE.split("\n") if "name='07'" in line)
BAD_FACES = {
    "67_parts": (_swap(PART, ""), "its <box> has 67 parts, not 68"),
    "duplicate": (_swap("name='08'", "name='07'"), "<part> 07 is given twice"),
    "odd_name": (_swap("name='07'", "name='68'"), "named '68', not 00 to 67"),
    "no_name": (_swap("name='07'", ""), "named '', not 00 to 67"),
    "no_x": (_swap(PART, "<part name='07' y='3'/>"), "a <part> has no x"),
    "word": (_swap(PART, "<part name='07' x='3' y='chin'/>"), "<part>'s y: 'chin' is not a number"),
    "box_word": (_swap(f"left='{LEFT}'", "left='l'"), "<box>'s left: 'l' is not a number"),
    "box_without": (_swap(f"left='{LEFT}'", ""), "a <box> has no left"),
    "no_size": (lambda text: text.replace(" width='", " width='0' was='", 2), "its <box> has no size"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), BAD_FACES.values(), ids=BAD_FACES)
def test_xml_faults(tmp_path: Path, change: Callable[[str], str], reason: str) -> None:
    bad = change(FACE)
    file = bad.split('"')[1]
    (tmp_path / "afw").mkdir()
    fake.save(tmp_path / "afw/z_1.jpg", fake.picture(fake.faces(1)[0]))
    good = FACE.replace("a_1", "z_1")
    _set(tmp_path, fake_xml.document(bad, good))
    table = ibug_xml.read(tmp_path)
    assert table.name.tolist() == ["afw/z_1.jpg"] and [fault.face for fault in table.faults] == [file]
    assert reason in table.faults[0].reason
    stop(lambda: ibug_xml.read(tmp_path, strict=True), str(tmp_path), f"{file}: ", reason, "data.strict=")
    (tmp_path / ibug_xml.TRAIN).rename(tmp_path / ibug_xml.TEST)
    stop(lambda: ibug_xml.read(tmp_path), str(tmp_path), f"{file}: ", reason, "test face")


def test_xml_missing_picture_of_several(tmp_path: Path) -> None:
    faces = fake.faces(2)
    several = fake_xml.entry("afw/gone_1.jpg", fake.SIZE, faces)
    _set(tmp_path, fake_xml.document(several, FACE))
    faults = ibug_xml.read(tmp_path).faults
    assert [fault.face for fault in faults] == ["afw/gone_1.jpg#1", "afw/gone_1.jpg#2"]


def test_xml_ignored_boxes(tmp_path: Path) -> None:
    """An ignored box is no fault, even in a test part, and leaves the others their numbers."""
    faces = fake.faces(3)
    text = fake_xml.entry("afw/a_1.jpg", fake.SIZE, faces).replace("<box", "<box ignore='1'", 1)
    _set(tmp_path, fake_xml.document(text.replace("<box top", "<box ignore='0' top")), "test")
    table = ibug_xml.read(tmp_path, strict=True)
    assert table.name.tolist() == ["afw/a_1.jpg#2", "afw/a_1.jpg#3"] and not table.faults
    np.testing.assert_array_equal(table.points, faces[1:].round())


VARIANTS: dict[str, Callable[[str], bytes]] = {
    "bom": lambda text: text.replace("ISO-8859-1", "UTF-8").encode("utf-8-sig"),
    "utf16": lambda text: text.replace("ISO-8859-1", "UTF-16").encode("utf-16"),
    "backslash": lambda text: text.replace("afw/a_1", "afw\\a_1").encode(),
    "dots": lambda text: text.replace("afw/a_1", "./afw/./a_1").encode(),
    "reversed": lambda text: text.replace(
        "".join(lines := [f"{line}\n" for line in text.split("\n") if "<part" in line]), "".join(lines[::-1])
    ).encode(),
    "more_attributes": lambda text: text.replace("<box top", "<box label='face' difficult='1' top").encode(),
    "fractions": lambda text: text.replace("' y='", ".0' y='").encode(),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_xml_variants(tmp_path: Path, change: Callable[[str], bytes]) -> None:
    plain = fake_xml.document(FACE)
    assert change(plain) != plain.encode()
    _set(tmp_path, change(plain))
    table = ibug_xml.read(tmp_path, strict=True)
    assert table.name.tolist() == ["afw/a_1.jpg"] and table.group.tolist() == ["afw/a"]
    np.testing.assert_array_equal(table.points[0], fake.faces(1)[0].round())


@pytest.mark.parametrize(("letters", "encoding"), [("Zoë", "utf-8"), ("Zoë", "latin-1"), ("ZoÃ«", "latin-1")])
def test_xml_names(tmp_path: Path, letters: str, encoding: str) -> None:
    """imglab heads its file ISO-8859-1, whatever the bytes of its names are; the last only looks garbled."""
    name = f"{letters} & a' blank_1.jpg"
    path = tmp_path / "pictures" / name
    path.parent.mkdir()
    fake.save(path, fake.picture(fake.faces(1)[0]))
    entry = fake_xml.entry(f"pictures/{name}", fake.SIZE, fake.faces(1))
    _set(tmp_path, fake_xml.document(entry), encoding=encoding)
    table = ibug_xml.read(tmp_path, strict=True)
    assert table.name.tolist() == [f"pictures/{name}"]
    assert table.group.tolist() == [f"pictures/{letters} & a' blank_1"]  # no folder of 300-W
    assert not table.subsets and table.load(0).shape == (128, 144, 3)


def test_xml_links(tmp_path: Path) -> None:
    """What a name says may not leave the folder; where the user's own links lead is theirs to say."""
    fake_xml.write(tmp_path / "kept", {"helen/trainset": 2})
    (tmp_path / "set").mkdir()
    for name in ("helen", ibug_xml.TRAIN):
        (tmp_path / "set" / name).symlink_to(tmp_path / "kept" / name)
    assert len(ibug_xml.read(tmp_path / "set", strict=True)) == 2


# ---------------------------------------------------------------- real files


def test_real_300w(real_data: Path) -> None:
    if not (real_data / "300w").is_dir():
        pytest.skip(f"needs real files: no {real_data / '300w'}")
    table = ibug.read(real_data / "300w", strict=True)
    assert table.form == "ibug[afw+helen_train:872+lfpw_train:805|helen_test]"
    assert {name: int(mask.sum()) for name, mask in table.subsets.items()} == {
        "afw": 337, "helen_train": 872, "lfpw_train": 805, "helen_test": 330,
    }  # fmt: skip
    assert (table.split == "train").sum() == 2014 and (table.split == "test").sum() == 330
    assert len(set(table.name)) == 2344 and len(set(table.group[table.subsets["afw"]])) < 337
    assert not set(table.group[table.split == "train"]) & set(table.group[table.split == "test"])
    assert asymmetry(table) < 0.05
    assert table.load(0).ndim == 3


def test_real_dlib_faces(real_data: Path) -> None:
    root = real_data / "dlib_faces"
    if not root.is_dir():
        pytest.skip(f"needs real files: no {root}")
    train, test = (f"{split}ing_with_face_landmarks.xml" for split in ("train", "test"))
    table = table_reader.read(root, strict=True, labels={"train": train, "test": test}, scheme="ibug68")
    assert len(table) == 43 and len(set(table.group)) == 9 and len(set(table.name)) == 43
    assert ((table.split == "train").sum(), (table.split == "test").sum()) == (18, 25)
    assert asymmetry(table) < 0.1
    middle = table.points.mean(1)
    assert ((table.box[:, :2] < middle) & (middle < table.box[:, 2:])).all()
    assert all(cv2.cvtColor(table.load(i), cv2.COLOR_RGB2GRAY).std() > 5 for i in range(0, 43, 10))


def test_real_forms_agree(real_data: Path, real_forms: Path) -> None:
    """The same faces by .pts and by an XML that was made from it elsewhere, to half a pixel."""
    xml, pts = ibug_xml.read(real_forms / "ibug_xml", strict=True), ibug.read(real_data / "300w")
    assert len(xml) == 80 and set(xml.subsets) == {"afw", "helen_test"}
    place = {name: i for i, name in enumerate(pts.name.tolist())}
    same = [place[name] for name in xml.name.tolist()]
    np.testing.assert_allclose(xml.points, pts.points[same], atol=0.5 + 1e-3)
    assert abs(float((xml.points - pts.points[same]).mean())) < 0.05  # a slip of one pixel is no rounding
    for column in ("group", "split"):
        np.testing.assert_array_equal(getattr(xml, column), getattr(pts, column)[same])
    assert xml.form != pts.form


@pytest.mark.parametrize("kind", ["fifo", "device", "sparse"])
@pytest.mark.parametrize("suffix", [".pts", ".jpg"])
def test_what_only_looks_like_a_file(tmp_path: Path, kind: str, suffix: str) -> None:
    """A pipe that nobody writes to, a device without an end, a file that claims thirty gigabytes."""
    fake.write(tmp_path, {"afw": 3})
    path = tmp_path / f"afw/100040721_2{suffix}"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(30 * 10**9)
    table = ibug.read(tmp_path)
    if kind == "sparse" and suffix == ".jpg":  # pictures are read when they are loaded
        stop(lambda: table.load(1), "100040721_2.jpg", "too many")
    else:
        assert len(table) == 2 and len(table.faults) == 1


def test_an_xml_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ibug_xml.TRAIN)
    with pytest.raises(UserError, match="not a regular file"):
        list(dlib_xml.read_images(tmp_path / ibug_xml.TRAIN))
