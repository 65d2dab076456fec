"""Faces as Label Studio and CVAT hold them, written and read back, and read as those tools export them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from flr.data.export import export
from flr.data.readers.table import read
from flr.errors import UserError
from flr.landmarks.scheme import SCHEMES, Scheme
from tests.data.support import Change, changed_file, changes
from tests.fakes import ibug
from tests.fakes import table as fake

SCHEME = "names: [a, b, c]\npairs: [[a, b]]\nnormaliser: box\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV with a hidden point, missing points and boxes."""
    root = tmp_path_factory.mktemp("own")
    fake.write(root, parts={"train": 3, "test": 2})
    lines = (root / "labels.csv").read_text().splitlines()
    rows = [f"{lines[0]},nose_visible,left,top,right,bottom"]
    rows += [f"{line},{i % 2},{4.5 + i},3.25,60.5,70.125" for i, line in enumerate(lines[1:])]
    cells = rows[2].split(",")
    cells[2:4] = "", ""
    (root / "labels.csv").write_text("\n".join([*rows[:2], ",".join(cells), *rows[3:]]) + "\n")
    return root


@pytest.mark.parametrize("form", ["labelstudio", "cvat", "coco"])
def test_what_annotators_are_given_is_read_back(source: Path, tmp_path: Path, form: str) -> None:
    table = read(source)
    export(table, form, tmp_path / "out")  # type: ignore[arg-type]
    back = read(tmp_path / "out")
    order = [back.image.tolist().index(image) for image in table.image.tolist()]
    back = back.take(np.array(order))
    for column in ("labelled", "visible", "split"):
        assert (getattr(back, column) == getattr(table, column)).all()
    assert not table.labelled.all() and not table.visible[table.labelled].all()
    assert np.allclose(back.points[table.labelled], table.points[table.labelled], atol=1e-5)
    assert np.allclose(back.box, table.box, atol=1e-5) and np.isfinite(table.box).all()


def photo(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    ibug.save(root / name, np.zeros((40, 50), np.uint8))


def keypoint(name: str, x: float, y: float, **more: object) -> dict:
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [name]}
    size = {"original_width": 50, "original_height": 40, "image_rotation": 0}
    return {"id": name, "type": "keypointlabels", "value": value, **size, **more}


POINTS = [keypoint("a", 20, 50), keypoint("b", 80, 50), keypoint("c", 50, 100)]


@pytest.mark.parametrize(
    "address", ["/data/local-files/?d=sub%20folder/x.jpg", "/data/upload/3/0a1b2c3d-x.jpg", "x.jpg"]
)
def test_tasks_as_label_studio_exports_them(tmp_path: Path, address: str) -> None:
    (tmp_path / "scheme.yaml").write_text(SCHEME)
    name = "sub folder/x.jpg" if "local" in address else "x.jpg"
    photo(tmp_path, name)
    cancelled = {"was_cancelled": True, "result": []}
    task = {"id": 7, "data": {"image": address}, "annotations": [{"result": []}, {"result": POINTS}, cancelled]}
    (tmp_path / "labels.json").write_text(json.dumps([task, {"data": {"image": address}, "annotations": [cancelled]}]))
    table = read(tmp_path)
    assert table.image.tolist() == [name] and table.points[0].tolist() == [[9.5, 19.5], [39.5, 19.5], [24.5, 39.5]]


def rectangle(name: str, **more: object) -> dict:
    value = {"x": 10, "y": 10, "width": 80, "height": 90, "rectanglelabels": ["face"]}
    return keypoint(name, 0, 0, **more) | {"type": "rectanglelabels", "value": value}


@pytest.mark.parametrize(("results", "message"), [
    ([*POINTS, rectangle("r")], ""),
    ([*POINTS, rectangle("r"), rectangle("s")], "task 7: a point belongs to none of its 2 rectangles"),
    ([keypoint("a", 1, 1, image_rotation=90)], "task 7: its image was rotated in Label Studio"),
])  # fmt: skip
def test_points_belong_to_the_only_rectangle(tmp_path: Path, results: list[dict], message: str) -> None:
    (tmp_path / "scheme.yaml").write_text(SCHEME)
    photo(tmp_path, "x.jpg")
    task = {"id": 7, "data": {"image": "x.jpg"}, "annotations": [{"result": results}]}
    (tmp_path / "labels.json").write_text(json.dumps([task]))
    if message:
        with pytest.raises(UserError, match=message):
            read(tmp_path)
        return
    table = read(tmp_path)
    assert table.labelled.all() and table.box.tolist() == [[4.5, 3.5, 44.5, 39.5]]


def cvat(body: str) -> str:
    return f"<annotations><image id='0' name='x.jpg' width='50' height='40'>{body}</image></annotations>"


SINGLE = "".join(
    f"<points label='{name}' points='{x},{y}'/>" for name, x, y in (("a", 10, 20), ("b", 40, 20), ("c", 25, 40))
)


@pytest.mark.parametrize("body", [
    SINGLE, "<points label='face' points='10,20;40,20;25,40'/>", f"<skeleton label='face'>{SINGLE}</skeleton>",
    f"<box label='face' xtl='5' ytl='5' xbr='45' ybr='40'/><skeleton label='face'>{SINGLE}</skeleton>",
])  # fmt: skip
def test_shapes_as_cvat_exports_them(tmp_path: Path, body: str) -> None:
    (tmp_path / "scheme.yaml").write_text(SCHEME)
    photo(tmp_path, "x.jpg")
    (tmp_path / "labels.xml").write_text(cvat(body))
    table = read(tmp_path)
    assert table.points[0].tolist() == [[9.5, 19.5], [39.5, 19.5], [24.5, 39.5]]
    assert np.isfinite(table.box).all() == ("<box" in body)


def tasks(**spoiled: object) -> str:
    return json.dumps([{"data": {"image": "x.jpg"}, "annotations": [{"result": [keypoint("a", 1, 1) | spoiled]}]}])


@pytest.mark.parametrize(("name", "text", "message"), [
    ("labels.json", json.dumps([{"data": {"image": "x.jpg"}, "annotations": [{"result": [keypoint("d", 1, 1)]}]}]), "no point 'd'"),
    ("labels.json", '[{"data": {"image": 3}}]', "not a task of keypoints"),
    ("labels.json", "[1]", "not a task of keypoints"),
    ("labels.json", json.dumps([{"data": {"image": "x.jpg"}, "annotations": [{"result": [{"type": "keypointlabels"}]}]}]), "not a task"),
    ("labels.json", tasks(original_width=10**400), "its width is 1000"),
    ("labels.json", tasks(original_height=0), "its height 0"),
    ("labels.json", tasks(original_width=float("1e400")).replace("Infinity", "1e400"), "its width is inf"),
    ("labels.json", tasks(value={"x": 10**400, "y": 1, "keypointlabels": ["a"]}), "not finite"),
    ("labels.json", tasks(value={"x": "1", "y": 1, "keypointlabels": ["a"]}), "not a list of 2 numbers"),
    ("labels.xml", cvat("").replace("50", "9" * 30), "its width is '999"),
    ("labels.xml", cvat("<points label='d' points='1,1'/>"), "no point 'd'"),
    ("labels.xml", cvat("<points label='a' points='1'/>"), "not keypoints of CVAT"),
    ("labels.xml", cvat("<box label='a'/>"), "not keypoints of CVAT"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "scheme.yaml").write_text(SCHEME)
    photo(tmp_path, "x.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    "scheme", [SCHEMES[name] for name in ("ibug68", "wflw98", "cofw29", "aflw19", "lapa106")], ids=repr
)
def test_annotations_of_mmpose_are_read_in_the_scheme_s_order(tmp_path: Path, scheme: Scheme) -> None:
    photo(tmp_path, "helen/x.jpg")
    points = np.random.default_rng(0).uniform(2, 38, (len(scheme), 2)).round(3)
    keypoints = np.c_[points, np.ones(len(scheme))]
    keypoints[3] = 0
    face = {"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0, "bbox": [2.0, 2.0, 36.0, 36.0], "scale": 0.18,
            "center": [20.0, 20.0], "keypoints": keypoints.ravel().tolist(), "num_keypoints": len(scheme) - 1, "area": 1.0}  # fmt: skip
    document = {"info": {}, "licenses": [], "annotations": [face], "categories": [{"id": 1, "name": "face", "keypoints": []}],
                "images": [{"id": 5, "file_name": "helen/x.jpg", "width": 50, "height": 40}]}  # fmt: skip
    (tmp_path / "face_landmarks_300w_train.json").write_text(json.dumps(document))
    table = read(tmp_path, labels="face_landmarks_300w_train.json", scheme=scheme.name)
    assert table.labelled[0].tolist() == [k != 3 for k in range(len(scheme))] == table.visible[0].tolist()
    assert np.allclose(table.points[0][table.labelled[0]], points[table.labelled[0]], atol=1e-5)
    assert table.box[0].tolist() == [2, 2, 38, 38]


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {form: tmp_path_factory.mktemp(form) / "out" for form in ("labelstudio", "cvat")}
    for form, folder in folders.items():
        export(read(source), form, folder)  # type: ignore[arg-type]
    return folders


@pytest.mark.parametrize("form", ["labelstudio", "cvat"])
@given(change=changes())
def test_any_bytes_are_read_or_refused_in_one_line(written: dict[str, Path], form: str, change: Change) -> None:
    (path,) = written[form].glob("labels_train.*")
    with changed_file(path, change):
        try:
            assert len(read(written[form]))
        except UserError as error:
            assert "\n" not in str(error)
