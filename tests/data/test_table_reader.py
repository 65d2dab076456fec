"""The user's own points: a scheme in YAML, and CSV, COCO, dlib XML and .pts, sound and spoiled."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from flr.data.boxes import BoxPolicy, face_boxes
from flr.data.readers import table as reader
from flr.data.table import FaceTable
from flr.landmarks.definition import parse_scheme
from flr.landmarks.scheme import CELEBA5, SCHEMES, Scheme
from tests.data import support
from tests.fakes import ibug
from tests.fakes import table as fake

stop = partial(support.stop, longest=900)


def change(path: Path, old: str, new: str, count: int = -1) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    assert old in text, text[:500]
    path.write_bytes(text.replace(old, new, count).encode("utf-8", "surrogateescape"))


# ---------------------------------------------------------------- schemes

MINIMAL = {"names": ["a", "b", "c"], "pairs": [["a", "b"]], "normaliser": "box"}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_scheme_comes_back_from_plain_values(scheme: Scheme, tmp_path: Path) -> None:
    values = json.loads(json.dumps(scheme.plain()))
    again = parse_scheme(values)
    for each in fields(Scheme):
        assert getattr(again, each.name) == getattr(scheme, each.name), each.name
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    assert reader.read_scheme(tmp_path / "s.yaml") is scheme  # not a twin of it


def test_the_scheme_of_the_fake() -> None:
    scheme = parse_scheme(yaml.load(fake.SCHEME, yaml.BaseLoader))
    assert scheme.name == "mine" and scheme.names == fake.NAMES and scheme.pairs == ((0, 1), (3, 4))
    assert scheme.distances == {"eyes": ((0,), (1,))} and scheme.normaliser == "eyes"
    assert scheme.regions == {"mouth": (3, 4)} and scheme.reductions == {"celeba5": ((0,), (1,), (2,), (3,), (4,))}
    assert scheme.mirror_order.tolist() == [1, 0, 2, 4, 3]


def test_the_scheme_that_the_module_shows(tmp_path: Path) -> None:
    shown = (reader.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    (tmp_path / "scheme.yaml").write_text("\n".join(line[4:] for line in shown.splitlines()))
    scheme = reader.read_scheme(tmp_path / "scheme.yaml")
    assert len(scheme) == 4 and scheme.normaliser == "interpupil" and scheme.pairs == ((0, 1),)


def test_the_least_scheme() -> None:
    scheme = parse_scheme(MINIMAL)
    assert len(scheme) == 3 and not scheme.regions and not scheme.distances and not scheme.reductions
    assert scheme.name.startswith("points3-") and scheme.name == parse_scheme(MINIMAL).name
    assert scheme.name != parse_scheme(MINIMAL | {"pairs": []}).name, "two that differ share no name"
    alone = parse_scheme({"names": ["a"], "pairs": [], "normaliser": "box"})
    assert alone.mirror_order.tolist() == [0]


BAD_SCHEMES = {
    "no_mapping": (["a"], "a scheme is a mapping"),
    "unknown_key": (MINIMAL | {"pair": []}, "a scheme has no key 'pair' (did you mean 'pairs'?)"),
    "no_pairs": ({"names": ["a"], "normaliser": "box"}, "pairs is missing"),
    "names_no_list": (MINIMAL | {"names": "a b c"}, "names is not a list"),
    "no_names": (MINIMAL | {"names": []}, "names is empty"),
    "twice": (MINIMAL | {"names": ["a", "b", "a"]}, "'a' is repeated"),
    "no_text": (MINIMAL | {"names": ["a", "b", 3]}, "names: 3 is not a name"),
    "number": (MINIMAL | {"names": ["a", "b", "3"]}, "'3' cannot name a point; write p3"),
    "comma": (MINIMAL | {"names": ["a", "b", "c,d"]}, "'c,d' is not a name"),
    "long": (MINIMAL | {"names": ["a", "b", "c" * 101]}, "is not a name"),
    "subset": (MINIMAL | {"names": ["a", "b", "subset_c"]}, "cannot name a point"),
    "unknown_point": (MINIMAL | {"pairs": [["a", "d"]]}, "pairs[0]: no point 'd'"),
    "near_point": ({**MINIMAL, "names": ["nose_tip", "b"], "pairs": [["b", "nosetip"]]}, "did you mean 'nose_tip'?"),
    "place": (MINIMAL | {"pairs": [[0, 3]]}, "pairs[0]: no point 3; they are counted from 0 to 2"),
    "truth": (MINIMAL | {"pairs": [[0, True]]}, "no point True"),
    "huge": (MINIMAL | {"pairs": [[0, "9" * 5000]]}, "no point '999"),
    "three": (MINIMAL | {"pairs": [["a", "b", "c"]]}, "pairs[0]: a pair has two points, not 3"),
    "itself": (MINIMAL | {"pairs": [["a", 0]]}, "pairs[0]: a point is repeated"),
    "two_pairs": (MINIMAL | {"pairs": [["a", "b"], ["c", "b"]]}, "pairs[1]: 'b' is in another pair too"),
    "region_list": (MINIMAL | {"regions": [["a"]]}, "regions is not a mapping"),
    "region_empty": (MINIMAL | {"regions": {"r": []}}, "regions.r: no point is named"),
    "region_name": (MINIMAL | {"regions": {"r/s": ["a"]}}, "regions: 'r/s' is not a name"),
    "one_end": (MINIMAL | {"distances": {"d": ["a"]}}, "distances.d: a distance has two different ends"),
    "same_ends": (MINIMAL | {"distances": {"d": [["a", "b"], ["b", "a"]]}}, "two different ends"),
    "box": (MINIMAL | {"distances": {"box": ["a", "b"]}}, "box and diagonal are normalisers of every scheme"),
    "normaliser": (MINIMAL | {"normaliser": "bux"}, "normaliser: 'bux' is not a normaliser (did you mean 'box'?)"),
    "normaliser_list": (MINIMAL | {"normaliser": ["a", "b"]}, "is not a normaliser (known: box, diagonal)"),
    "reduction": (MINIMAL | {"reductions": {"celeba4": ["a"]}}, "no landmark scheme 'celeba4'"),
    "reduction_count": (MINIMAL | {"reductions": {"celeba5": ["a", "b"]}}, "2 groups, while celeba5 has 5 points"),
    "name": (MINIMAL | {"name": "my own"}, "'my own' has a blank"),
    "name_kind": (MINIMAL | {"name": 5}, "name: 5 is not a name"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "words"), BAD_SCHEMES.values(), ids=BAD_SCHEMES)
def test_schemes_that_do_not_hold(values: object, words: str) -> None:
    stop(lambda: parse_scheme(values), words)


def test_a_built_in_name_is_not_taken_by_another_scheme(tmp_path: Path) -> None:
    path = tmp_path / "scheme.yaml"
    path.write_text(yaml.safe_dump(CELEBA5.plain() | {"pairs": [["right_eye", "left_eye"]]}))
    stop(lambda: reader.read_scheme(path), f"{path}: name: celeba5 is a built-in", "data.reader.scheme=celeba5")


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(10))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


ODD_YAML = {
    "laughs": (_laughs(), "line 2: an alias"),
    "deep": ("[" * 20_000, "nested too deep"),
    "object": ("!!python/object/apply:os.system ['touch ran']", "a scheme is a mapping"),
    "object_in": (fake.SCHEME.replace("mine", "!!python/name:os.system mine"), ""),
    "twice": (fake.SCHEME + "pairs: []\n", "line 1: a key occurs twice"),
    "two_documents": (fake.SCHEME + "---\n" + fake.SCHEME, "no sound YAML"),
    "cut": (fake.SCHEME[:-10], "no sound YAML"),
    "tab": (fake.SCHEME.replace("name:", "\tname:"), "no sound YAML"),
    "list_as_key": ("? [a, b]\n: c", "no sound YAML"),
    "empty": ("", "a scheme is a mapping"),
    "large": ("# " + "x" * 300_000, "characters are no scheme"),
    "words": (fake.SCHEME.replace("nose", "no").replace(", 2,", ", no,"), ""),  # YAML's own False
}


@pytest.mark.parametrize(("text", "words"), ODD_YAML.values(), ids=ODD_YAML)
def test_odd_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    """Nothing is built or run, nothing hangs, and a scheme is text as it stands."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "scheme.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    start = time.process_time()
    if words:
        stop(lambda: reader.read_scheme(path), str(path), words)
    else:
        assert reader.read_scheme(path).name == "mine"
    assert time.process_time() - start < 5 and not (tmp_path / "ran").exists()


def test_where_a_scheme_is_looked_for(tmp_path: Path) -> None:
    fake.write(tmp_path)
    (tmp_path / "scheme.yaml").rename(tmp_path / "other.yml")
    text = stop(
        lambda: reader.read(tmp_path), f"{tmp_path / 'scheme.yaml'}: there is no such file", "data.reader.scheme="
    )
    assert "(5: eye r, eye l, nose, mouth-r, mouth-l)" in text, "the points that wait for a scheme"
    assert len(reader.read(tmp_path, scheme="other.yml")) == 10
    assert len(reader.read(tmp_path, scheme=str(tmp_path / "other.yml"))) == 10
    stop(lambda: reader.read(tmp_path, scheme="celeba"), "nor a built-in scheme 'celeba' (did you mean 'celeba5'?)")
    stop(lambda: reader.read(tmp_path, scheme="celeba5"), "unknown column 'eye r_x'")
    fake.write(tmp_path / "b", "coco")
    (tmp_path / "b/scheme.yaml").unlink()
    stop(lambda: reader.read(tmp_path / "b"), "(5: mouth-l, mouth-r, nose, eye l, eye r)")


# ---------------------------------------------------------------- the four forms


@pytest.mark.parametrize("form", ["csv", "coco", "xml", "pts"])
def test_each_form_reads_the_same_faces(tmp_path: Path, form: str) -> None:
    points = fake.write(tmp_path, form)
    table = reader.read(tmp_path, strict=True)
    assert table.form == "table" and table.scheme.name == "mine" and not table.subsets
    np.testing.assert_allclose(table.points, points, atol=1e-4)  # .pts says three decimals of x + 1
    assert table.points.dtype == table.box.dtype == np.float32
    assert table.labelled.all() and table.visible.all()
    assert table.split.tolist() == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert table.name[:2].tolist() == ["train/000.jpg", "train/001.jpg"]
    assert (table.group == table.name).all() and (table.image == table.name).all()
    boxes = {"coco": [1, 2, 31, 42], "xml": [0.5, 1.5, 30.5, 41.5]}  # as it stands; the pixels 1 to 30 and 2 to 41
    np.testing.assert_array_equal(table.box, np.tile(boxes.get(form, [np.nan] * 4), (10, 1)))
    assert {i for i in range(10) if table.load(i).ndim == 2} == {4, 9}
    box, order = table.tight, table.scheme.mirror_order
    mean = ((table.points - box[:, None, :2]) / (box[:, None, 2:] - box[:, None, :2])).mean(0) - 0.5
    assert np.abs(mean[order] * [-1, 1] - mean).max() < 0.1, "its pairs are mirror pairs"


def test_files_by_split(tmp_path: Path) -> None:
    for form in ("csv", "coco", "xml", "pts"):
        fake.write(tmp_path / form, form)
    assert set(reader.read(tmp_path / "csv", labels="labels.csv").split) == {"train", "val", "test"}
    for form, kind in (("coco", "json"), ("xml", "xml")):
        root = tmp_path / form
        alone = reader.read(root, labels=f"labels_test.{kind}")
        assert len(alone) == 3 and set(alone.split) == {"train"}, "one file of no known split trains"
        turned = reader.read(root, labels={"train": f"labels_test.{kind}", "test": f"labels_val.{kind}"})
        assert turned.split.tolist() == ["train"] * 3 + ["test"] * 2
        (root / f"labels_val.{kind}").unlink()
        assert len(reader.read(root)) == 8
    turned = reader.read(tmp_path / "pts", labels={"val": "test", "train": "val"})
    assert turned.split.tolist() == ["val"] * 3 + ["train"] * 2
    assert len(reader.read(tmp_path, labels="pts", scheme="pts/scheme.yaml")) == 10
    stop(lambda: reader.read(tmp_path / "csv", labels={"test": "labels.csv"}), "line 2: its split is 'train', not test")
    stop(
        lambda: reader.read(tmp_path / "csv", labels={"tests": "labels.csv"}), "no split 'tests' (did you mean 'test'?)"
    )
    stop(lambda: reader.read(tmp_path / "csv", labels="label.csv"), "label.csv: there is no such file")
    stop(lambda: reader.read(tmp_path / "csv", labels="train/000.jpg"), "no .csv, .json, .xml and no folder")
    stop(lambda: reader.read(tmp_path / "pts", labels="train"), "none of the folders train, val, test, unlabelled")


def test_nothing_or_too_much_there(tmp_path: Path) -> None:
    for root, words in ((tmp_path / "no", "no such folder"), (tmp_path, "no labels in it")):
        text = stop(lambda root=root: reader.read(root), f"{root}: ", words, "labels.csv", "labels_train.csv")
        assert "set data.root=DIR to the folder" in text
    fake.write(tmp_path)
    fake.write(tmp_path, "xml")
    stop(lambda: reader.read(tmp_path), "holds labels.csv and labels_train.xml", "data.reader.labels=FILE")
    assert len(reader.read(tmp_path, labels="labels.csv")) == 10


# ---------------------------------------------------------------- CSV


def rows(*lines: str, header: str = "image,split,eye r_x,eye r_y,eye l_x,eye l_y,nose_x,nose_y") -> str:
    """A small sheet of three points."""
    return "\n".join([header, *lines]) + "\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A set of three points with five images and no labels yet."""
    (tmp_path / "p").mkdir()
    for i, name in enumerate(("a.jpg", "b.JPG", "c d.png", "ë,顔.jpg", "e.jpg")):
        ibug.save(tmp_path / "p" / name, ibug.picture(ibug.faces(1)[0], seed=i))
    (tmp_path / "scheme.yaml").write_text("names: [eye r, eye l, nose]\npairs: [[0, 1]]\nnormaliser: box\n")
    return tmp_path


def read_csv(root: Path, text: str | bytes, strict: bool = True) -> FaceTable:
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return reader.read(root, strict)


FACE = "p/a.jpg,train,1,2,3,4,5,6"


def test_csv_columns(small: Path) -> None:
    header = "nose_y,nose_x,image,eye r_x,eye r_y,eye l_x,eye l_y,nose_visible,right,left,top,bottom,group,name,subset_a/b,split"
    table = read_csv(
        small,
        rows(
            "6,5,p/a.jpg,1,2,3,4,0,9,-.5,1.25,8,who,me,1,test",
            ",,p/b.JPG,1,2,3,4,1,,,,,,,0,",
            "6,5,p\\c d.png,1,2,3,4,,,,,,,you,,val",
            ',,"p/ë,顔.jpg",,,,,,9,0,0,9,,,,unlabelled',
            header=header,
        ),
    )
    assert table.name.tolist() == ["me", "p/b.JPG", "you", "p/ë,顔.jpg"]
    assert table.image.tolist() == ["p/a.jpg", "p/b.JPG", "p/c d.png", "p/ë,顔.jpg"]
    assert table.group.tolist() == ["who", "p/b.JPG", "p/c d.png", "p/ë,顔.jpg"]
    assert table.split.tolist() == ["test", "train", "val", "unlabelled"]
    np.testing.assert_array_equal(table.points[0], [[1, 2], [3, 4], [5, 6]])
    assert table.labelled.tolist() == [[True] * 3, [True, True, False], [True] * 3, [False] * 3]
    assert table.visible.tolist() == [[True, True, False], [True, True, False], [True] * 3, [False] * 3]
    np.testing.assert_array_equal(table.box[[0, 3]], [[-0.5, 1.25, 9, 8], [0, 0, 9, 9]])
    assert np.isnan(table.box[1:3]).all()
    assert table.subsets.keys() == {"a/b"} and table.subsets["a/b"].tolist() == [True, False, False, False]
    assert all(table.load(i).size for i in range(4))


CSV_FORMS: dict[str, Callable[[str], str | bytes]] = {
    "semicolon": lambda text: text.replace(",", ";"),
    "tab": lambda text: text.replace(",", "\t"),
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "mac": lambda text: text.replace("\n", "\r"),
    "mark": lambda text: "\ufeff" + text,
    "no_end": lambda text: text.rstrip("\n"),
    "blank_lines": lambda text: text.replace("\n", "\n\n"),
    "blanks": lambda text: text.replace(",", " , "),
    "quotes": lambda text: text.replace("p/a.jpg", '"p/a.jpg"').replace("eye r_x", '"eye r_x"'),
    "numbers": lambda text: text.replace(",1,2,", ",+1.0,2e0,"),
    "no_split": lambda text: text.replace(",split", "").replace(",train", ""),
    "dot": lambda text: text.replace("p/a.jpg", "p\\a.jpg"),
}


@pytest.mark.parametrize("change_", CSV_FORMS.values(), ids=CSV_FORMS)
def test_csv_forms(small: Path, change_: Callable[[str], str | bytes]) -> None:
    table = read_csv(small, change_(rows(FACE, FACE.replace("/a.jpg", "/b.JPG"))))
    assert table.image.tolist() == ["p/a.jpg", "p/b.JPG"] and set(table.split) == {"train"}
    np.testing.assert_array_equal(table.points, [[[1, 2], [3, 4], [5, 6]]] * 2)


def test_faces_of_one_picture(small: Path) -> None:
    second = FACE.replace("5,6", "7,8")
    table = read_csv(small, rows(FACE, second, FACE.replace("a.jpg", "e.jpg")))
    assert table.name.tolist() == ["p/a.jpg#1", "p/a.jpg#2", "p/e.jpg"]
    assert table.group.tolist() == ["p/a.jpg", "p/a.jpg", "p/e.jpg"]  # never on both sides of a split
    table = read_csv(small, rows(FACE, second, FACE), strict=False)
    assert table.name.tolist() == ["p/a.jpg#1", "p/a.jpg#2"]
    assert [str(fault) for fault in table.faults] == ["p/a.jpg#3: it is listed twice"]


def test_csv_with_points_beside(small: Path) -> None:
    """Without point columns, each image's .pts has them."""
    header = "image,split,left,top,right,bottom"
    lines = ["p/a.jpg,train,0,0,9,9", "p/b.JPG,test,,,,", "p/c d.png,unlabelled,,,,"]
    for i, stem in enumerate(("a", "b")):
        ibug.write_pts(small / f"p/{stem}.pts", np.array([[i, 2], [3, 4], [5, 6.0]]))
    (small / "p/b.pts").rename(small / "p/b.PTS")
    table = read_csv(small, rows(*lines, header=header))
    assert table.points[:2, 0].tolist() == [[0, 2], [1, 2]] and table.labelled.sum(1).tolist() == [3, 3, 0]
    (small / "p/a.pts").write_text("1 2\n")
    table = read_csv(small, rows(*lines, header=header), strict=False)
    assert "labels.csv line 2 has no points, and its .pts: 1 points, not 3" in table.faults[0].reason
    (small / "p/b.PTS").unlink()
    stop(lambda: reader.read(small), "p/b.JPG", "no .pts next to it", "test face")


@pytest.mark.parametrize("image", [".", "..", "p/..", "../out.jpg", "/out.jpg", "p"])
def test_points_beside_no_picture(small: Path, image: str) -> None:
    """What lies outside the root is not even looked at."""
    (small.parent / "out.pts").write_text("not to be read")
    try:
        header = "image,split"
        table = read_csv(small, rows("p/a.jpg,unlabelled", f"{image},train", header=header), strict=False)
    finally:
        (small.parent / "out.pts").unlink()
    assert len(table) == 1 and ".pts: " not in table.faults[0].reason
    stop(lambda: read_csv(small, rows("p/a.jpg,unlabelled", ",train", header=header)), "line 3: image '' is not a name")


COLUMN_FAULTS = {
    "unknown": ("image,spilt", "unknown column 'spilt' (did you mean 'split'?)"),
    "unnamed": (",image,split", "a column has no name"),
    "no_image": ("picture,split", "unknown column 'picture'"),
    "case": ("Image,split", "unknown column 'Image' (did you mean 'image'?)"),
    "twice": ("image,image", "two columns named 'image'"),
}


@pytest.mark.parametrize(("start", "words"), COLUMN_FAULTS.values(), ids=COLUMN_FAULTS)
def test_csv_columns_that_stop(small: Path, start: str, words: str) -> None:
    header = start + ",eye r_x,eye r_y,eye l_x,eye l_y,nose_x,nose_y"
    line = ",".join(["p/a.jpg", "train"] if start.count(",") == 1 else ["0", "p/a.jpg", "train"]) + ",1,2,3,4,5,6"
    stop(lambda: read_csv(small, rows(line, header=header)), f"{small / 'labels.csv'}: {words}")


CSV_STOPS: dict[str, tuple[str | bytes, str]] = {
    "no_nose": (rows(FACE[:-4], header="image,split,eye r_x,eye r_y,eye l_x,eye l_y"), "no column 'nose_x'"),
    "one_edge": (rows(FACE + ",1", header=rows()[:-1] + ",left"), "no column 'top'"),
    "ragged": (rows(FACE, FACE[:-2]), "labels.csv line 3: 7 cells, not 8"),
    "decimal_commas": (rows("p/a.jpg,train,1,5,2,5,3,5,4,5,5,5,6,5"), "line 2: 14 cells, not 8"),
    "decimal_comma": (rows(FACE.replace(",1,", ",1,5,")), "a column has no name"),
    "quote": (rows('"' + FACE), "labels.csv line 2: unexpected end of data; fix its quotes"),
    "split": (rows(FACE.replace("train", "trian")), "line 2: its split is 'trian', not train, val, test, unlabelled"),
    "page": ("<!DOCTYPE html>\n<html>", "a web page"),
    "empty": ("", "no row in it"),
    "header_alone": (rows(), "no row in it"),
    "binary": (bytes(999), "a binary file"),
    "wide": ("image".encode("utf-16"), "UTF-16"),
    "long_name": (rows(FACE.replace("p/a", "p/" + "a" * 400)), "line 2: image 'p/aaa"),
    "no_picture": (rows(FACE.replace("p/a.jpg", "")), "line 2: image '' is not a name"),
    "bell": (rows(FACE.replace("p/a", "p/\a")), r"line 2: image 'p/\x07.jpg' is not a name"),
    "long_subset": (rows(FACE + ",1", header=f"{rows()[:-1]},subset_{'x' * 121}"), "write at most 120 letters"),
    **{
        f"subset_{i}": (rows(FACE + ",1", header=f"{rows()[:-1]},subset_{name}"), f"line 2: subset '{name[:9]}")
        for i, name in enumerate(("a@b", "night/", "a//b", "./a", "a/.."))
    },
}


@pytest.mark.parametrize(("text", "words"), CSV_STOPS.values(), ids=CSV_STOPS)
def test_csv_that_stops(small: Path, text: str | bytes, words: str) -> None:
    stop(lambda: read_csv(small, text, strict=False), str(small), words)


CSV_FAULTS = {
    "truth": (FACE.replace(",3,", ",True,"), "labels.csv line 3: 'True' is not a number"),
    "word": (FACE.replace(",3,", ",x,"), "labels.csv line 3: 'x' is not a number"),
    "comma": (FACE.replace(",3,", ',"3,5",'), "line 3: '3,5' is not a number; write a decimal point, no comma"),
    "too_large": (FACE.replace(",3,", ",-3e38,"), "not a finite number below 1e+09"),
    "nan": (FACE.replace(",3,", ",nan,"), "'nan' is not a finite number"),
    "half": (FACE.replace(",3,", ",,"), "line 3: a point has x or y alone"),
    "no_label": ("p/a.jpg,train,,,,,,", "no point has a label"),
    "no_area": ("p/a.jpg,train,1,1,1,1,1,1", "span no area"),
    "missing": (FACE.replace("a.jpg", "z.jpg"), "its image cannot be read (No such file"),
    "absolute": (FACE.replace("p/a.jpg", "/etc/passwd"), "'/etc/passwd' is outside the dataset's folder"),
    "climbing": (FACE.replace("p/a.jpg", "p/../../a.jpg"), "is outside the dataset's folder"),
    "windows": (FACE.replace("p/a.jpg", "..\\a.jpg"), "is outside the dataset's folder"),
    "folder": (FACE.replace("p/a.jpg", "p"), "its image is not a file"),
}


@pytest.mark.parametrize(("line", "reason"), CSV_FAULTS.values(), ids=CSV_FAULTS)
def test_csv_faults(small: Path, line: str, reason: str) -> None:
    """A fault of one face is skipped and counted in training, and stops a strict reading and a test part."""
    good = FACE.replace("a.jpg", "b.JPG")
    table = read_csv(small, rows(good, line), strict=False)
    assert table.name.tolist() == ["p/b.JPG"] and len(table.faults) == 1
    assert reason in table.faults[0].reason
    stop(lambda: read_csv(small, rows(good, line)), str(small), reason, "data.strict=false")
    stop(lambda: read_csv(small, rows(good, line.replace("train", "test")), strict=False), reason, "test face")


FLAG_FAULTS = {
    "visible": (",2,,,,,", "visible and subset columns hold 0 or 1"),
    "subset": (",,,,,,yes", "'yes' is not a number"),
    "subset_number": (",,,,,,.5", "hold 0 or 1"),
    "one_edge": (",,1,2,3,,", "its box lacks one of left, top, right, bottom"),
    "negative_box": (",,9,2,3,4,", "its box has no size"),
    "endless_box": (",,0,0,inf,4,", "'inf' is not a finite number"),
}


@pytest.mark.parametrize(("cells", "reason"), FLAG_FAULTS.values(), ids=FLAG_FAULTS)
def test_csv_faults_beside_the_points(small: Path, cells: str, reason: str) -> None:
    header = rows()[:-1] + ",nose_visible,left,top,right,bottom,subset_s"
    table = read_csv(small, rows(FACE.replace("a.jpg", "b.JPG") + ",,,,,,", FACE + cells, header=header), strict=False)
    assert len(table) == 1 and reason in table.faults[0].reason


def test_pictures_that_are_none(small: Path) -> None:
    """An empty file is reported when the table is read, other bytes that are no image when it is loaded."""
    (small / "p/a.jpg").write_bytes(b"<html>")
    data = (small / "p/b.JPG").read_bytes()
    (small / "p/b.JPG").write_bytes(data[: len(data) // 2])
    (small / "p/e.jpg").write_bytes(b"")
    (small / "link.jpg").symlink_to("p/c d.png")
    lines = [FACE.replace("p/a.jpg", name) for name in ("p/a.jpg", "p/b.JPG", "p/e.jpg", "link.jpg")]
    table = read_csv(small, rows(*lines), strict=False)
    assert [fault.reason for fault in table.faults] == ["its image is an empty file"]
    stop(lambda: table.load(0), "an HTML or XML page")
    stop(lambda: table.load(1), "a truncated JPEG")
    assert table.load(2).shape == (128, 144, 3)


def test_a_name_that_is_no_unicode(small: Path) -> None:
    try:
        os.rename(small / "p/a.jpg", os.fsencode(small / "p") + b"/\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    table = read_csv(small, rows(FACE).encode().replace(b"a.jpg", b"\xe9.jpg"))
    assert table.name.tolist() == table.group.tolist() == ["p/\\xe9.jpg"]
    assert table.load(0).size and table.fingerprint()


# ---------------------------------------------------------------- COCO


def coco(root: Path) -> dict:
    """The training part of the fake as COCO, and nothing else."""
    fake.write(root, "coco", {"train": 3})
    return json.loads((root / "labels_train.json").read_text())


def read_coco(root: Path, document: object, split: str = "train", strict: bool = True) -> FaceTable:
    (root / "labels_train.json").unlink(missing_ok=True)
    (root / f"labels_{split}.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return reader.read(root, strict)


def test_coco_says_what_is_hidden_and_what_is_not_labelled(tmp_path: Path) -> None:
    document = coco(tmp_path)
    face = document["annotations"][0]
    face["keypoints"][0:3] = [0, 0, 0]  # mouth-l
    face["keypoints"][6:9] = [10, 11, 1]  # nose
    face |= {"name": "é & <b>", "group": 17, "subsets": ["a", "b c"]}
    document["annotations"][1] |= {"image_id": 100, "bbox": None, "group": None}
    document["annotations"][2] |= {"tight": True, "subsets": []}
    document["annotations"].append({"id": 1, "image_id": 102, "category_id": 1, "bbox": [0, 0, 0, 0]})  # a hat
    table = read_coco(tmp_path, document)
    assert table.labelled[0].tolist() == [True] * 4 + [False] and table.labelled[1:].all()
    assert table.visible[0].tolist() == [True, True, False, True, False] and table.visible[1:].all()
    assert table.points[0, 2].tolist() == [10, 11]
    assert table.name.tolist() == ["é & <b>", "train/000.jpg#1", "train/002.jpg"]
    assert table.group.tolist() == ["17", "train/000.jpg", "train/002.jpg"]
    assert table.subsets["a"].tolist() == table.subsets["b c"].tolist() == [True, False, False]
    assert table.box[0].tolist() == [1, 2, 31, 42] and np.isnan(table.box[1:]).all()


def test_coco_pictures_without_labels(tmp_path: Path) -> None:
    document = coco(tmp_path)
    table = read_coco(tmp_path, {"images": document["images"]}, "unlabelled")
    assert len(table) == 3 and not table.labelled.any() and set(table.split) == {"unlabelled"}


def _spoil(*path: str | int, value: object = None, drop: bool = False) -> Callable[[dict], object]:
    def spoil(document: dict) -> object:
        at = document
        for key in path[:-1]:
            at = at[key]
        if drop:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return document

    return spoil


NAMES = list(fake.NAMES)
COCO_STOPS: dict[str, tuple[Callable[[dict], object], str]] = {
    "list": (lambda d: [d], "not a task of keypoints that Label Studio exports"),
    "number": (lambda d: 5, "not a COCO file"),
    "nan": (lambda d: json.dumps(d).replace("2]", "NaN]"), "invalid JSON (NaN is not a JSON number)"),
    "deep": (lambda d: "[" * 200_000, "nested too deep"),
    "deep_inside": (lambda d: json.dumps(d)[:-1] + ',"x":' + '{"a":' * 50_000, "nested too deep"),
    "digits": (lambda d: json.dumps(d).replace("30, 40", "9" * 5000 + ", 40"), "invalid JSON"),
    "no_images": (_spoil("images", drop=True), "images is missing"),
    "images": (_spoil("images", value={}), "images is not a list"),
    "image": (_spoil("images", 1, value=7), "images[1] is not an object"),
    "no_file": (_spoil("images", 1, "file_name", drop=True), "images[1]: file_name is missing"),
    "file": (_spoil("images", 1, "file_name", value=["a"]), "images[1]: file_name is ['a'], not str"),
    "file_surrogate": (_spoil("images", 1, "file_name", value="\ud800"), "is not a name"),
    "file_zero": (_spoil("images", 1, "file_name", value="a\0b"), "is not a name"),
    "image_twice": (_spoil("images", 1, "id", value=100), "images[1]: id 100 is there twice"),
    "image_id": (_spoil("images", 1, "id", value=1.5), "images[1]: id is 1.5, not int or str"),
    "image_truth": (_spoil("images", 1, "id", value=True), "images[1]: id is True"),
    "none": (_spoil("annotations", value=[]), "no face is listed"),
    "no_image_of_it": (_spoil("annotations", 1, "image_id", value=5), "no image has the id 5"),
    "no_category_of_it": (_spoil("annotations", 1, "category_id", value=9), "no category has the id 9"),
    "no_keypoints": (_spoil("categories", 1, "keypoints", drop=True), "no category names its keypoints"),
    "keypoints": (_spoil("categories", 1, "keypoints", value="nose"), "keypoints is 'nose', not list"),
    "keypoint": (_spoil("categories", 1, "keypoints", 0, value=1), "keypoint is 1, not str"),
    "other_points": (_spoil("categories", 1, "keypoints", 2, value="noes"), "lack 'nose' (did you mean 'noes'?)"),
    "fewer": (_spoil("categories", 1, "keypoints", value=NAMES[:4]), "4 keypoints are not the 5 of mine"),
    "more": (_spoil("categories", 1, "keypoints", value=[*NAMES, "ear"]), "have also ear"),
    "twin": (_spoil("categories", 1, "keypoints", value=[*NAMES, "nose"]), "one of them twice"),
    "group": (_spoil("annotations", 0, "group", value=["g"]), "group is ['g']"),
    "name": (_spoil("annotations", 0, "name", value=" a"), "name ' a' is not a name"),
    "subsets": (_spoil("annotations", 0, "subsets", value="full"), "subsets is 'full', not list"),
    "subset": (_spoil("annotations", 0, "subsets", value=[1]), "subsets is 1, not str"),
    "subset_name": (_spoil("annotations", 0, "subsets", value=["a,b"]), "subset 'a,b' is not a name"),
}


@pytest.mark.parametrize(("spoil", "words"), COCO_STOPS.values(), ids=COCO_STOPS)
def test_coco_that_stops(tmp_path: Path, spoil: Callable[[dict], object], words: str) -> None:
    document = spoil(coco(tmp_path))
    stop(lambda: read_coco(tmp_path, document, strict=False), str(tmp_path / "labels_train.json"), words)


MARKS = ("annotations", 0, "keypoints")
COCO_FAULTS = {
    "fewer": (
        _spoil(*MARKS, value=[1, 2, 2] * 4),
        "annotation 7: its keypoints is not a list of 15 numbers",
    ),
    "truth": (_spoil(*MARKS, 3, value=True), "not a list of 15 numbers"),
    "mapping": (_spoil(*MARKS, value={"nose": [1, 2]}), "not a list of 15 numbers"),
    "inside": (_spoil(*MARKS, 3, value=[1]), "not a list of 15 numbers"),
    "huge": (_spoil(*MARKS, 3, value=10**400), "a number that is not finite"),
    "too_large_box": (_spoil("annotations", 0, "bbox", 2, value=3e38), "not below 1e+09"),
    "v": (_spoil(*MARKS, 2, value=3), "a keypoint's v is not 0, 1 or 2"),
    "no_label": (_spoil(*MARKS, value=[0] * 15), "no point has a label"),
    "no_keypoints": (_spoil(*MARKS, drop=True), "no point has a label"),
    "bbox": (_spoil("annotations", 0, "bbox", value=[1, 2, -3, 4]), "its bbox has no size"),
    "bbox_three": (_spoil("annotations", 0, "bbox", value=[1, 2, 3]), "its bbox is not a list of 4 numbers"),
}


@pytest.mark.parametrize(("spoil", "reason"), COCO_FAULTS.values(), ids=COCO_FAULTS)
def test_coco_faults(tmp_path: Path, spoil: Callable[[dict], object], reason: str) -> None:
    document = spoil(coco(tmp_path))
    table = read_coco(tmp_path, document, strict=False)
    assert len(table) == 2 and len(table.faults) == 1 and reason in table.faults[0].reason
    stop(lambda: read_coco(tmp_path, document), reason, "data.strict=false")
    stop(lambda: read_coco(tmp_path, document, "test", strict=False), reason, "test face")


# ---------------------------------------------------------------- XML


def test_xml_says_what_is_hidden_and_what_is_not_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.write(tmp_path, "xml", {"train": 2})
    path = tmp_path / "labels_train.xml"
    change(path, "<part name='04'", "<part name='mouth-l'", 1)
    change(path, "<part name='02'", "<part visible='0' name='2'", 1)
    change(path, "<part name='00'", "<ear name='00'", 1)
    change(path, "<box top='2'", "<box name='é &amp; &lt;b&gt;' group='g' subsets='a,b c' tight='1' top='2'", 1)
    change(path, "<image ", "<image file='gone.jpg'><box ignore='1'/></image><image ", 1)
    table = reader.read(tmp_path, strict=True)
    assert "skipped 1 boxes with ignore='1'" in capsys.readouterr().err
    assert table.labelled[0].tolist() == [False] + [True] * 4 and table.labelled[1].all()
    assert table.visible[0].tolist() == [False, True, False, True, True] and table.visible[1].all()
    assert table.name.tolist() == ["é & <b>", "train/001.jpg"] and table.group.tolist() == ["g", "train/001.jpg"]
    assert table.subsets["a"].tolist() == table.subsets["b c"].tolist() == [True, False]
    assert np.isnan(table.box[0]).all() and table.box[1].tolist() == [0.5, 1.5, 30.5, 41.5]


def test_xml_pictures_without_labels(tmp_path: Path) -> None:
    fake.write(tmp_path, "xml", {"unlabelled": 1})
    path = tmp_path / "labels_unlabelled.xml"
    change(path, path.read_text().split("file=")[1].split("</image>")[0].partition(">")[2], "")
    table = reader.read(tmp_path, strict=True)
    assert table.split.tolist() == ["unlabelled"] and not table.labelled.any()


XML_STOPS = {
    "page": ("<dataset>", "<!doctype html><html>", "malformed XML"),
    "entity": ("<dataset>", '<!DOCTYPE d [<!ENTITY a "b">]><dataset>', "DTD or entities"),
    "root": ("dataset>", "data>", "its root is <data>"),
    "cut": ("</images></dataset>", "", "malformed XML"),
    "no_file": ('file="train/000.jpg"', "", "its <image> number 1 has no file attribute"),
    "outside": ("train/000.jpg", "../000.jpg", "leads out of"),
    "subset": ("<box ", "<box subsets='a,,b' ", "subset '' is not a name"),
    "name": ("<box ", "<box name=' a' ", "name ' a' is not a name"),
}


@pytest.mark.parametrize(("old", "new", "words"), XML_STOPS.values(), ids=XML_STOPS)
def test_xml_that_stops(tmp_path: Path, old: str, new: str, words: str) -> None:
    fake.write(tmp_path, "xml", {"train": 2})
    change(tmp_path / "labels_train.xml", old, new)
    stop(lambda: reader.read(tmp_path), str(tmp_path / "labels_train.xml"), words)


XML_FAULTS = {
    "unknown_part": ("name='02'", "name='05'", "labels_train.xml: a <part> is named '05', not 00 to mouth-l"),
    "twice": ("name='02'", "name='1'", "<part> 1 is given twice"),
    "no_x": ("name='02' x", "name='02' z", "a <part> has no x"),
    "visible": ("name='02'", "name='02' visible='no'", "a <part>'s visible is 'no', not 0 or 1"),
    "box": ("width='30'", "width='-30'", "its <box> has no size"),
    "no_parts": ("part ", "port ", "no point has a label"),
}


@pytest.mark.parametrize(("old", "new", "reason"), XML_FAULTS.values(), ids=XML_FAULTS)
def test_xml_faults(tmp_path: Path, old: str, new: str, reason: str) -> None:
    fake.write(tmp_path, "xml", {"train": 2})
    change(tmp_path / "labels_train.xml", old, new, 5 if reason.startswith("no point") else 1)
    table = reader.read(tmp_path)
    assert len(table) == 1 and reason in table.faults[0].reason
    stop(lambda: reader.read(tmp_path, strict=True), reason)


# ---------------------------------------------------------------- as other people's tools write them


@pytest.mark.parametrize("form", ["csv", "coco", "xml"])
def test_absolute_paths_inside_the_root(tmp_path: Path, form: str) -> None:
    fake.write(tmp_path, form)
    relative = reader.read(tmp_path, strict=True)
    for path in tmp_path.glob("labels*"):
        path.write_text(re.sub(r"(train|val|test)/0", rf"{tmp_path}/\1/0", path.read_text()))
    table = reader.read(tmp_path, strict=True)
    assert table.image.tolist() == relative.image.tolist() and table.fingerprint() == relative.fingerprint()


def test_coco_whose_category_names_no_keypoints(tmp_path: Path) -> None:
    """As in mmpose's files: the points are in the scheme's order."""
    document = coco(tmp_path)
    expected = read_coco(tmp_path, document)
    document["categories"][1]["keypoints"] = []
    for face in document["annotations"]:
        face["keypoints"] = np.reshape(face["keypoints"], (5, 3))[::-1].ravel().tolist()
    np.testing.assert_array_equal(read_coco(tmp_path, document).points, expected.points)
    document["annotations"][0]["keypoints"] *= 2
    stop(lambda: read_coco(tmp_path, document), "its keypoints is not a list of 15 numbers")


def test_coco_skips_what_has_no_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = coco(tmp_path)
    face, empty = document["annotations"][0], {"keypoints": [0] * 15, "num_keypoints": 0}
    document["annotations"] += [face | {"id": 90, "iscrowd": 1}, face | {"id": 91} | empty]
    table = read_coco(tmp_path, document, "test")
    assert len(table) == 3 and not table.faults
    assert "labels_test.json: skipped 2 annotations with iscrowd=1 or num_keypoints=0" in capsys.readouterr().err
    document["annotations"][-1]["keypoints"] = [9, 9, 2] + [0] * 12  # it has a point after all
    assert len(read_coco(tmp_path, document, "test")) == 4


@pytest.mark.parametrize("names", ["[nose]", "[eye r, eye l]"])
def test_points_of_no_area_with_a_box(small: Path, tmp_path: Path, names: str) -> None:
    """The box of the file is enough; without one there is nothing to crop by."""
    (small / "scheme.yaml").write_text(f"names: {names}\npairs: []\nnormaliser: box\n")
    points = [name.strip() for name in names[1:-1].split(",")]
    header = ",".join(["image", *(f"{name}_{axis}" for name in points for axis in "xy"), "left,top,right,bottom"])
    line = ",".join(["p/a.jpg", *(f"{k},5" for k in range(len(points))), "0,0,9,9"])
    table = read_csv(small, rows(line, header=header))
    boxes = face_boxes(table, BoxPolicy(source="file"), tmp_path, 1)
    assert boxes.box.tolist() == [[0, 0, 9, 9]]
    stop(lambda: face_boxes(table, BoxPolicy(shape="stretch"), tmp_path, 1), "set data.crop.policy.source=file")
    normaliser = 9.0 if len(points) == 1 else np.nan  # in the place of the box of one point
    np.testing.assert_array_equal(table.normaliser(), [normaliser])


def test_one_point_without_a_box_names_the_columns_to_add(small: Path, tmp_path: Path) -> None:
    (small / "scheme.yaml").write_text("names: [nose]\npairs: []\nnormaliser: box\n")
    table = read_csv(small, rows("p/a.jpg,1,2", "p/b.JPG,3,4", header="image,nose_x,nose_y"))
    fix = "such as 'p/a.jpg'; add their boxes to the labels (columns left, top, right and bottom"
    stop(
        lambda: face_boxes(table, BoxPolicy(), tmp_path, 1),
        "2 of 2 faces have one labelled point, which spans no box", fix, "and set data.crop.policy.source=file",
    )  # fmt: skip
    text = stop(
        lambda: face_boxes(table, BoxPolicy("file"), tmp_path, 1), "2 of 2 faces have no box in the labels", fix
    )
    assert "source=" not in text, "neither of the others would do"


# ---------------------------------------------------------------- folders of .pts


def test_pts_folders(tmp_path: Path) -> None:
    fake.write(tmp_path, "pts", {"train": 3, "unlabelled": 2})
    deep = tmp_path / "train/deep er"
    deep.mkdir()
    for kind in (".jpg", ".pts"):
        (tmp_path / f"train/001{kind}").rename(deep / f"001{kind.upper()}")
        (tmp_path / f"train/._002{kind}").write_bytes(b"macOS's twin")
    (deep / "again").symlink_to(tmp_path / "train", target_is_directory=True)  # a ring
    (tmp_path / "unlabelled/003.pts").unlink()
    table = reader.read(tmp_path, strict=True)
    assert table.name.tolist() == [
        "train/000.jpg", "train/002.jpg", "train/deep er/001.JPG", "unlabelled/003.jpg", "unlabelled/004.jpg",
    ]  # fmt: skip
    assert table.labelled.all(1).tolist() == [True, True, True, False, True]


PTS_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_pts": (lambda p: p.with_suffix(".pts").unlink(), "no .pts next to it"),
    "no_picture": (lambda p: p.unlink(), "no image"),
    "short": (lambda p: p.with_suffix(".pts").write_text("1 2\n"), "its .pts: 1 points, not 5"),
    "word": (lambda p: p.with_suffix(".pts").write_text("1 x\n" * 5), "line 1: 'x' is not a number"),
    "twins": (lambda p: p.with_suffix(".png").write_bytes(b"x"), "have the same stem"),
}


@pytest.mark.parametrize(("spoil", "reason"), PTS_FAULTS.values(), ids=PTS_FAULTS)
def test_pts_faults(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    fake.write(tmp_path, "pts", {"train": 3})
    spoil(tmp_path / "train/001.jpg")
    table = reader.read(tmp_path)
    assert len(table) == 2 and reason in table.faults[0].reason
    stop(lambda: reader.read(tmp_path, strict=True), reason)


def test_what_may_not_be_read(tmp_path: Path) -> None:
    fake.write(tmp_path / "a")
    (tmp_path / "a/labels.csv").unlink()
    (tmp_path / "a/labels.csv").mkdir()
    stop(lambda: reader.read(tmp_path / "a"), "none of the folders train, val, test, unlabelled is in it")
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to the superuser")
    for form, file in (
        ("csv", "labels.csv"),
        ("coco", "labels_train.json"),
        ("xml", "labels_train.xml"),
        ("pts", "train"),
    ):
        fake.write(tmp_path / form, form)
        (tmp_path / form / file).chmod(0)
        stop(lambda form=form: reader.read(tmp_path / form), file, "cannot be read")
        (tmp_path / form / file).chmod(0o755)


def test_an_edited_scheme_is_other_data(tmp_path: Path) -> None:
    """Pairs change what a mirror does, so that results under another scheme of the same name must not be mixed."""
    import dataclasses

    from tests.landmarks.painted import face_table

    table = face_table(("train",) * 2)
    mine = parse_scheme({**table.scheme.plain(), "name": "mine", "reductions": {}})
    other = dataclasses.replace(mine, pairs=mine.pairs[:1])
    prints = {dataclasses.replace(table, scheme=scheme).fingerprint() for scheme in (table.scheme, mine, other)}
    assert len(prints) == 3
