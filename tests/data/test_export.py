"""What is written out in any form reads back as the same faces, and other tools read it too."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flr.data import export as exporting
from flr.data.export import export
from flr.data.formats.records import fits
from flr.data.readers import ibug, ibug_xml
from flr.data.readers import table as reader
from flr.data.table import FaceTable, make_table
from flr.landmarks.definition import parse_scheme
from flr.landmarks.scheme import CELEBA5, KAGGLE15, SCHEMES
from tests.data.support import read_pts, stop
from tests.fakes import ibug as fake
from tests.fakes import ibug_xml as fake_xml

FORMS = ("csv", "coco", "pts", "xml")
every_form = pytest.mark.parametrize("form", FORMS)


def same(table: FaceTable, again: FaceTable, pixels: bool = True) -> None:
    """Whether two tables hold the same faces, in whatever order."""
    assert sorted(table.name.tolist()) == sorted(again.name.tolist()) and not again.faults
    place = {name: i for i, name in enumerate(again.name.tolist())}
    again = again.take(np.array([place[name] for name in table.name.tolist()]))
    np.testing.assert_array_equal(again.labelled, table.labelled)
    np.testing.assert_array_equal(again.points[table.labelled], table.points[table.labelled])
    np.testing.assert_array_equal(again.visible, table.visible & table.labelled)
    np.testing.assert_array_equal(again.box, table.box)
    assert again.points.dtype == again.box.dtype == np.float32
    for column in ("split", "group"):
        assert getattr(again, column).tolist() == getattr(table, column).tolist()
    members = {name: mask.tolist() for name, mask in table.subsets.items() if mask.any()}
    assert {name: mask.tolist() for name, mask in again.subsets.items()} == members
    assert again.scheme.plain() == table.scheme.plain()
    if table.scheme.name in SCHEMES:
        assert again.scheme is table.scheme
    for i in range(len(table)) if pixels else ():
        np.testing.assert_array_equal(again.load(i), table.load(i))


def photos(root: Path) -> FaceTable:
    """One face an image, each whole; two images of each group in afw."""
    fake.write(root / "300w", {"afw": 4, "lfpw/trainset": 2, "helen/testset": 3, "ibug": 2})
    return ibug.read(root / "300w", strict=True)


def crowds(root: Path) -> FaceTable:
    """Whole-number points, boxes, and images of two faces."""
    fake_xml.write(root / "300w_xml", {"afw": 4, "helen/testset": 3})
    return ibug_xml.read(root / "300w_xml", strict=True)


def gaps(root: Path) -> FaceTable:
    """Missing and hidden points, boxes for some, a validation part, an empty subset, images without labels."""
    table, random = photos(root).reduce("kaggle15", KAGGLE15), np.random.default_rng(0)
    labelled = random.random(table.labelled.shape) < 0.7
    labelled[3], labelled[4] = False, True
    split = table.split.astype("<U10")
    split[1], split[3], split[4] = "val", "unlabelled", "unlabelled"
    box = np.concatenate([table.tight[:, :2] - np.float32(1 / 3), table.tight[:, 2:] + np.float32(1e-3)], 1)
    box[::3] = np.nan
    subsets = {**table.subsets, "none": np.zeros(len(table), bool), "a/b c": np.arange(len(table)) % 3 == 1}
    return dataclasses.replace(
        table, labelled=labelled, visible=random.random(labelled.shape) < 0.6, split=split, subsets=subsets, box=box,
        points=np.where(labelled[..., None], table.points, np.nan).astype(np.float32),
    )  # fmt: skip


def rendered(root: Path) -> FaceTable:
    """Pictures that are no files, grey and in colour, one with two faces."""
    table = photos(root)
    pictures = {f"cell {i % 10}": table.load(i) for i in range(len(table))}
    image = np.array([f"cell {i % 10}" for i in range(len(table))])
    return dataclasses.replace(table, image=image, read_image=lambda name: pictures[name])


TABLES: dict[str, Callable[[Path], FaceTable]] = {
    "photos": photos,
    "fifteen": lambda root: photos(root).reduce("kaggle15", KAGGLE15),
    "five": lambda root: photos(root).reduce("celeba5", CELEBA5),
    "crowds": crowds,
    "gaps": gaps,
    "rendered": rendered,
}


@every_form
@pytest.mark.parametrize("kind", TABLES)
def test_a_set_comes_back(tmp_path: Path, form: str, kind: str) -> None:
    table, folder = TABLES[kind](tmp_path), tmp_path / "out" / "new"
    if form == "pts" and kind == "gaps":
        text = stop(lambda: export(table, "pts", folder), "a .pts cannot lack one", "set export=csv, coco or xml")
        assert "(one of 9)" in text and not folder.exists()
        table = table.take(table.labelled.all(1) | ~table.labelled.any(1))
    export(table, form, folder)
    same(table, reader.read(folder, strict=True))
    assert sorted(path.name for path in folder.parent.iterdir()) == [".new.lock", "new"]


@every_form
def test_a_second_export_is_the_first(tmp_path: Path, form: str) -> None:
    """Out and in and out again: nothing drifts, and the bytes are a function of the faces."""
    table = crowds(tmp_path)
    export(table, form, tmp_path / "a")
    export(table, form, tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    once = reader.read(tmp_path / "a")
    export(once, form, tmp_path / "c")
    again = reader.read(tmp_path / "c")
    same(once, again)
    assert once.form == again.form == "table" and once.fingerprint() == again.fingerprint()


def test_every_form_reads_back_as_one_set(tmp_path: Path) -> None:
    """All forms name the same faces, splits and scheme; .pts files alone hold other values, since they count from 1."""
    table = photos(tmp_path)
    for form in FORMS:
        export(table, form, tmp_path / form)
    *same_parts, values = zip(*(reader.read(tmp_path / form).fingerprint().split("-") for form in FORMS), strict=True)
    assert [len(set(part)) for part in same_parts] == [1, 1, 1]
    assert len({value for form, value in zip(FORMS, values, strict=True) if form != "pts"}) == 1


@every_form
def test_pictures_keep_their_bytes(tmp_path: Path, form: str) -> None:
    table = photos(tmp_path)
    export(table, form, tmp_path / "out")
    again = reader.read(tmp_path / "out")
    for name, image, old in zip(again.name.tolist(), again.image.tolist(), table.image.tolist(), strict=True):
        assert (tmp_path / "out" / image).read_bytes() == (tmp_path / "300w" / old).read_bytes()
        assert image.endswith(name) and (form == "pts") == (image != name), (
            "under its own name, by split where .pts are"
        )
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {
        ".jpg", ".png", ".pts", ".csv", ".json", ".xml", ".yaml",
    }  # fmt: skip


def test_pictures_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    table = photos(tmp_path)
    link = next((tmp_path / "300w/afw").glob("*.jpg"))
    link.rename(tmp_path / "kept.jpg")
    link.symlink_to(tmp_path / "kept.jpg")
    export(table, "csv", tmp_path / "linked")
    monkeypatch.setattr(os, "link", refuse)
    export(table, "csv", tmp_path / "copied")
    for folder in ("linked", "copied"):
        same(table, reader.read(tmp_path / folder))
        assert not any(path.is_symlink() for path in (tmp_path / folder).rglob("*"))


# ---------------------------------------------------------------- for other tools


def exported_as_the_set(table: FaceTable, folder: Path) -> FaceTable:
    export(table, "xml", folder)
    for name, its_own in (("labels_train.xml", ibug_xml.TRAIN), ("labels_test.xml", ibug_xml.TEST)):
        if (folder / name).exists():
            (folder / name).rename(folder / its_own)
    return ibug_xml.read(folder, strict=True)


def test_dlibs_xml_is_read_by_the_reader_of_its_own_set(tmp_path: Path) -> None:
    table = crowds(tmp_path)
    again = exported_as_the_set(table, tmp_path / "out")
    same(table, again)  # names, groups and subsets follow from the pictures' places
    plain = photos(tmp_path / "b")
    again = exported_as_the_set(plain, tmp_path / "plain")
    np.testing.assert_array_equal(np.sort(again.points, 0), np.sort(plain.points, 0))
    tight = again.tight  # drawn round the points, its edge pixels hold them
    assert (again.box[:, :2] <= tight[:, :2] - 0.5 + 1e-3).all() and (again.box[:, 2:] >= tight[:, 2:] - 0.5).all()
    assert np.abs(again.box - tight).max() <= 1.5


def test_rounded_xml_holds_whole_numbers_alone(tmp_path: Path) -> None:
    table = gaps(tmp_path)
    export(table, "xml", tmp_path / "out", rounded=True)
    for path in (tmp_path / "out").glob("*.xml"):
        for element in ElementTree.parse(path).iter():
            for key in {"x", "y", "left", "top", "width", "height"} & set(element.attrib):
                assert re.fullmatch(r"-?\d+", element.attrib[key])
    again = reader.read(tmp_path / "out")
    order = [again.name.tolist().index(name) for name in table.name.tolist()]
    again = again.take(np.array(order))
    np.testing.assert_array_equal(again.points, np.rint(table.points))
    assert np.nanmax(np.abs(again.box - table.box)) <= 0.5
    assert (np.isnan(again.box) == np.isnan(table.box)).all()
    box = ElementTree.parse(tmp_path / "out" / "labels_train.xml").find(".//box")
    assert box is not None and {part.attrib["name"] for part in box.iter("part")} <= {f"{k:02d}" for k in range(15)}


@every_form
def test_rounding_is_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    table = crowds(tmp_path)
    moved = dataclasses.replace(table, points=table.points + np.float32(0.3), box=table.box + np.float32(0.2))
    export(moved, form, tmp_path / "out", rounded=True)
    same(table, reader.read(tmp_path / "out"))


def test_pts_are_read_by_the_reader_of_their_own_set(tmp_path: Path) -> None:
    table = crowds(tmp_path)
    export(table, "pts", tmp_path / "out")
    names = reader.read(tmp_path / "out")
    assert len(set(names.image)) == len(table) > len(set(table.image)), "a picture a face"
    for i, image in enumerate(names.image.tolist()):
        points = read_pts((tmp_path / "out" / image).with_suffix(".pts"))
        np.testing.assert_array_equal(points.astype(np.float32), names.points[i])
    (tmp_path / "out" / "labels.csv").unlink()
    alone = reader.read(tmp_path / "out", strict=True)  # by the folders
    assert (alone.split == "train").sum() == 4 and (alone.split == "test").sum() == 3
    np.testing.assert_array_equal(np.sort(alone.points, 0), np.sort(table.points, 0))
    shown = (tmp_path / "out" / names.image[0]).with_suffix(".pts").read_text().splitlines()
    assert shown[:3] == ["version: 1", "n_points: 68", "{"] and shown[-1] == "}" and len(shown) == 72
    x, y = names.points[0, 0]
    assert shown[3] == f"{x + 1:.0f} {y + 1:.0f}", "counted from 1"


def test_coco_is_what_its_tools_expect(tmp_path: Path) -> None:
    table = gaps(tmp_path)
    export(table, "coco", tmp_path / "out")
    seen = 0
    for split in ("train", "val", "test", "unlabelled"):
        document = json.loads((tmp_path / "out" / f"labels_{split}.json").read_text())
        images = {image["id"]: image for image in document["images"]}
        (category,) = document["categories"]
        assert category["keypoints"] == list(KAGGLE15.names) and category["id"] == 1
        for face in document["annotations"]:
            image, row = images[face["image_id"]], table.name.tolist().index(face["name"])
            height, width = cv2.imread(str(tmp_path / "out" / image["file_name"])).shape[:2]
            assert (image["width"], image["height"]) == (width, height)
            marks = np.array(face["keypoints"]).reshape(15, 3)
            kinds = np.where(table.labelled[row], np.where(table.visible[row], 2, 1), 0)
            assert marks[:, 2].tolist() == kinds.tolist() and face["num_keypoints"] == (kinds > 0).sum()
            assert all(type(kind) is int for kind in face["keypoints"][2::3])
            assert (marks[kinds == 0] == 0).all() and face["iscrowd"] == 0 and face["category_id"] == 1
            if kinds.any():
                x, y, width, height = face["bbox"]
                assert face["area"] == pytest.approx(width * height, abs=1e-3)
                known = marks[kinds > 0, :2]
                assert (known >= [x - 1e-3, y - 1e-3]).all() and (known <= [x + width + 1e-3, y + height + 1e-3]).all()
            seen += 1
    assert seen == len(table)


def test_numbers_are_short(tmp_path: Path) -> None:
    """12.345 of a label is 12.345 again, and not the digits of the float32 next to it."""
    table = photos(tmp_path)
    long = 0
    for form in FORMS:
        export(table, form, tmp_path / form)
        for path in (tmp_path / form).rglob("*.*"):
            if path.suffix in (".csv", ".json", ".xml", ".pts"):
                long += len(re.findall(r"\d\.\d{5}", path.read_text()))
    assert long == 0


# ---------------------------------------------------------------- names


def test_pictures_with_names_that_not_every_place_takes(tmp_path: Path) -> None:
    names = [
        "A.jpg", "a.jpg", "a.png", "b?.jpg", "b*.jpg", "c:d/e.jpg", "c_d", "f\\g.jpg", " h .jpg", ".i.jpg", "j.", "k/.l/m.jpg",
        "labels.csv", "scheme.yaml", "Zoë 顔.jpg", "Zoe\u0308 顔.jpg", "n\tn.jpg", "o'\"&<>,;#%.jpg", "p" * 240 + ".jpg", "q",
        "labels_train.xml/r.jpg", "a_2.jpg", "s.pts", "t.PTS", "u.jpg\u3000", "v." + "w" * 220,
    ]  # fmt: skip
    root = tmp_path / "from"
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        done, data = cv2.imencode(".png", np.full((9, 9), i, np.uint8))
        assert done
        (root / name).write_bytes(data.tobytes())
    points = np.random.default_rng(0).uniform(0, 9, (len(names), 5, 2))
    faces = [f"face {i}" for i in range(len(names))]
    table = make_table(
        "t",
        CELEBA5,
        root,
        names,
        points,
        ["train"] * len(names),
        published=(points,),
        strict=False,
        name=faces,
        group=faces,
    )
    assert len(table) == len(names)
    for form in FORMS:
        export(table, form, tmp_path / form)
        again = reader.read(tmp_path / form, strict=True)
        same(table, again)
        assert [table.load(i)[0, 0] for i in range(len(names))] == list(range(len(names))), "no picture is written over"
        places = [path.relative_to(tmp_path / form).as_posix() for path in (tmp_path / form).rglob("*")]
        assert len({place.casefold() for place in places}) == len(places)
        assert not any(re.search(r'[<>:"|?*\\\t]|(^|/)[. ]|[. ]($|/)', place) for place in places), places
        if form == "pts":
            stems = [image.rpartition(".")[0].casefold() or image for image in again.image.tolist()]
            assert len(set(stems)) == len(stems)


@example(names=["a.b", "a.b/c"], suffix="")  # the second cannot lie in the first, nor share its stem
@example(names=["a.png", "a.pts/b"], suffix=".png")
@given(
    names=st.lists(st.text(st.sampled_from("aA._/ ?2\\éps\u3000💡")) | st.just("💡" * 60 + ".éé"), max_size=12),
    suffix=st.sampled_from(["", ".png"]),
)
def test_places_are_apart(names: list[str], suffix: str) -> None:
    places = exporting._places(names, [suffix] * len(names))
    assert len(places) == len(names)
    files = [place.casefold() for place in places]
    files += [os.path.splitext(place)[0].casefold() + ".pts" for place in places]
    assert len(set(files)) == len(files)
    for place in places:
        assert fits(place) and place == os.path.normpath(place) and not place.startswith(("/", "."))
        above = [str(parent).casefold() for parent in Path(place).parents][:-1]
        assert not set(above) & set(files), "no file is another's folder"


def test_places_of_many_pictures_are_found_in_time() -> None:
    """Names that are apart, and names that must all be told apart."""
    for names in ([f"a/{i}.jpg" for i in range(30_000)], ["a/b.jpg"] * 30_000):
        start = time.process_time()
        assert len(set(exporting._places(names, [""] * len(names)))) == 30_000
        assert time.process_time() - start < 5  # half a second; each against all the others took a minute


@every_form
@pytest.mark.parametrize(
    ("column", "word"), [("name", "a\nb"), ("name", " a"), ("group", ""), ("group", "\ud800"), ("name", "x" * 401)]
)
def test_names_that_no_file_holds_are_refused(tmp_path: Path, form: str, column: str, word: str) -> None:
    table = photos(tmp_path)
    words = getattr(table, column).astype("<U500")
    words[2] = word
    spoiled = dataclasses.replace(table, **{column: words})
    stop(lambda: export(spoiled, form, tmp_path / "out"), f"no label file holds its {column}", "fix it")
    assert not (tmp_path / "out").exists()
    odd = dataclasses.replace(table, subsets={"a,b": np.ones(len(table), bool)})
    stop(lambda: export(odd, form, tmp_path / "out"), "no label file holds the subset 'a,b'")


word = st.text(max_size=12).map(lambda text: f"{text}") | st.sampled_from(
    [
        '"',
        "a,b",
        "a;b",
        "'",
        "&amp;",
        "<box>",
        "]]>",
        "=1+1",
        "\u2028",
        "no",
        "1e5",
        "#",
        "\ufeff",
        "💡",
        "a\u0301",
        "\x85",
    ]
)
real = st.floats(-2e4, 2e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)


@st.composite
def tables(draw: st.DrawFn) -> FaceTable:
    """Up to six faces of up to four points in up to three images that are no files."""
    count, k = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    pairs = [["p0", "p1"]] if k > 1 else []
    scheme = parse_scheme({"names": [f"p{i}" for i in range(k)], "pairs": pairs, "normaliser": "box"})
    fit = word.filter(fits)
    pictures = draw(
        st.lists(word, min_size=1, max_size=3, unique=True).filter(lambda names: "\0" not in "".join(names))
    )
    points = draw(arrays(np.float32, (count, k, 2), elements=real, fill=st.nothing()))
    labelled = draw(arrays(bool, (count, k), fill=st.nothing()))
    split = draw(st.lists(st.sampled_from(["train", "val", "test", "unlabelled"]), min_size=count, max_size=count))
    box = np.full((count, 4), np.nan, np.float32)
    for i in range(count):
        if draw(st.booleans()):
            low, side = (
                draw(arrays(np.float32, 2, elements=real)),
                draw(arrays(np.float32, 2, elements=st.floats(1, 999, width=32))),
            )
            box[i] = [*low, *(low + side)]
        if split[i] != "unlabelled":
            labelled[i, 0] = True
        points[i, 1:] = points[i, :1] + np.arange(1, k, dtype=np.float32)[:, None] * [1.5, 1.25]  # they span an area
    subsets = {name: draw(arrays(bool, count)) for name in draw(st.sets(st.sampled_from(["a", "b/c d", "é"])))}
    images = draw(st.lists(st.sampled_from(pictures), min_size=count, max_size=count))
    return FaceTable(
        form="drawn", scheme=scheme, points=points, labelled=labelled, visible=draw(arrays(bool, (count, k))), box=box,
        group=np.array(draw(st.lists(fit, min_size=count, max_size=count))), split=np.array(split),
        name=np.array(draw(st.lists(fit, min_size=count, max_size=count, unique=True))), image=np.array(images),
        subsets=subsets, read_image=lambda name: np.full((3, 4), pictures.index(name), np.uint8),
        published=np.arange(count).astype(str), version=np.zeros(count, np.int64),
    )  # fmt: skip


@every_form
@given(table=tables())
def test_any_faces_come_back(tmp_path_factory: pytest.TempPathFactory, form: str, table: FaceTable) -> None:
    folder = tmp_path_factory.mktemp("any") / "out"
    whole = table.labelled.all(1) | ~table.labelled.any(1)
    if form == "pts" and not whole.all():
        stop(lambda: export(table, "pts", folder), "a .pts cannot lack one")
        return
    export(table, form, folder)
    same(table, reader.read(folder, strict=True))
    for path in folder.glob("*.xml"):
        sound(path)


def sound(path: Path) -> None:
    """Whether dlib would take a file: it lists each image once, with all its boxes."""
    root = ElementTree.parse(path).getroot()
    images = root.findall("images/image")
    assert images == list(root.iter("image")) and root.tag == "dataset"
    boxed = [image.attrib["file"] for image in images if image.find("box") is not None]
    assert len(set(boxed)) == len(boxed)


def test_a_picture_stands_once_in_the_xml(tmp_path: Path) -> None:
    """Faces of two images by turns, with and without labels."""
    table = rendered(tmp_path)
    table = table.take(np.array([0, 1, 10, 2, 3, 4]))
    labelled, points, split = table.labelled.copy(), table.points.copy(), np.full(6, "unlabelled")
    labelled[[1, 3]], points[[1, 3]] = False, np.nan
    image = np.array(["cell 1", "cell 1", "cell 2", "cell 1", "cell 2", "cell 1"])
    table = dataclasses.replace(table, labelled=labelled, points=points, split=split, image=image)
    export(table, "xml", tmp_path / "out")
    same(table, reader.read(tmp_path / "out", strict=True))
    sound(tmp_path / "out" / "labels_unlabelled.xml")
    assert (tmp_path / "out" / "labels_unlabelled.xml").read_text().count("<image ") == 4


# ---------------------------------------------------------------- what is refused


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    table = photos(tmp_path)
    (tmp_path / "out").mkdir()
    export(table, "csv", tmp_path / "out")  # an empty one is taken
    before = sorted((tmp_path / "out").rglob("*"))
    stop(
        lambda: export(table, "xml", tmp_path / "out"), f"{tmp_path / 'out'}: exists and is not empty; set another out="
    )
    assert sorted((tmp_path / "out").rglob("*")) == before
    stop(lambda: export(table, "csv", tmp_path / "out/labels.csv"), "exists and is not empty")
    stop(lambda: export(table, "csv", tmp_path / "out/labels.csv/deeper"), "cannot be written (")
    stop(lambda: export(table, "cvs", tmp_path / "new"), "export=cvs is no form (did you mean 'csv'?)")


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path) -> None:
    table = photos(tmp_path)
    path = tmp_path / "300w" / str(table.image[5])
    path.write_bytes(path.read_bytes()[:200])
    stop(lambda: export(table, "coco", tmp_path / "out"), str(path), "fetch it again")
    path.unlink()
    stop(lambda: export(table, "csv", tmp_path / "out"), str(path), "the image is gone")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".out.lock", "300w"]


def test_faces_that_no_net_learns_from_are_left_out(tmp_path: Path) -> None:
    table = photos(tmp_path)
    labelled = table.labelled.copy()
    labelled[0] = False
    export(dataclasses.replace(table, labelled=labelled), "csv", tmp_path / "out")
    assert len(reader.read(tmp_path / "out", strict=True)) == len(table) - 1
