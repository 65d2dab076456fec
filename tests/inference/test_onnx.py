"""The light predictor: without torch, of files that come from anyone."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flr
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.inference import loading
from flr.inference.onnx import METADATA_KEY, OnnxPredictor
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import IBUG68, KAGGLE15

ROOT = Path(flr.__file__).parent.parent
SIZE = 16
ABOUT = {
    "version": 2,
    "scheme": KAGGLE15.plain(),
    "crop": {
        "size": SIZE,
        "channels": 1,
        "policy": {
            "source": "truth", "scale": 1.25, "shape": "square", "jitter": 0.0,
            "haar": {"step": 1.1, "neighbours": 5, "missed": "truth", "offset": None},
        },
    },
    "pixels": [-1.0, 1.0],
    "offset": [0.163, 0.272, 0.842, 0.869],
    "mean_face": [[float(i), float(i % 4)] for i in range(15)],
    "precision": "fp32",
    "doubt": None,
    "tta": False,
    "run": None,
    "protocol": {},
    "val_nme": 3.5,
}  # fmt: skip


def model(text: str | None = None, size: int = SIZE, points: int = 15, fault: float = 0.0) -> onnx.ModelProto:
    """A graph whose points are the sums of weighted pixels, as anyone may write one."""
    weights = np.random.default_rng(0).normal(0, 1e-4, (size * size, 2 * points)).astype(np.float32) + fault
    nodes = [
        helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["numbers"]),
        helper.make_node("Reshape", ["numbers", "pairs"], ["points"]),
        helper.make_node("ReduceMax", ["points", "last"], ["spread"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["batch", size, size, 1])],
        [
            helper.make_tensor_value_info("points", TensorProto.FLOAT, ["batch", points, 2]),
            helper.make_tensor_value_info("spread", TensorProto.FLOAT, ["batch", points]),
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1, size * size]), "flat"),
            numpy_helper.from_array(np.array([-1, points, 2]), "pairs"),
            numpy_helper.from_array(np.array([2]), "last"),
        ],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if text is not None:
        helper.set_model_props(made, {METADATA_KEY: text})
    return made


def write(path: Path, made: onnx.ModelProto) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "net.onnx", model(json.dumps(ABOUT)))


def test_it_sees_pictures_as_the_crop_says(file: Path) -> None:
    predictor = OnnxPredictor.load(file)
    image = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    boxes = np.array([[10.0, 12, 40, 38], [5, 5, 30, 50]])
    points = predictor([image, image[..., 0]], boxes)
    assert points.shape == (2, 15, 2) and points.std() > 0
    # An image moved, box and all, moves its points by as much.
    moved = predictor([np.pad(image, ((7, 0), (11, 0), (0, 0)))], boxes[:1] + [11, 7, 11, 7])
    np.testing.assert_allclose(moved, points[:1] + [11, 7], atol=0.2)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: predictor([image, image[..., 0]], boxes), range(12)):
            np.testing.assert_allclose(found, points, atol=1e-4)
    assert predictor.detect(image).shape == (0, 4)
    with pytest.raises(UserError, match="one box"):
        predictor([image], boxes)


def changed(**values: object) -> str:
    return json.dumps(ABOUT | values)


def cropped(**values: object) -> str:
    return changed(crop=ABOUT["crop"] | values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "without the metadata"),
        ("[" * 100_000, "metadata"),
        ('{"version": 2}', "metadata scheme: Field required"),
        (changed(version=1), "metadata version"),
        (changed(scheme={}), "metadata scheme: names is missing"),
        (changed(scheme=KAGGLE15.plain() | {"pairs": [[0, 99]]}), "no point 99"),
        (changed(pixels=[0, float("nan")]), "metadata pixels"),
        (changed(tta="yes"), "metadata tta"),
        (changed(precision="fp64"), "metadata precision"),
        (cropped(size=4), "metadata crop.size"),
        (cropped(size=32), "does not have the shapes"),
        (cropped(channels=3), "does not have the shapes"),
        (cropped(policy=ABOUT["crop"]["policy"] | {"scale": 1e9}), "metadata crop.policy.scale"),
        (cropped(policy=ABOUT["crop"]["policy"] | {"haar": {"step": 1.0}}), "metadata crop.policy.haar.step"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(text: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as refused:
        OnnxPredictor.load(write(tmp_path / "net.onnx", model(text)))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700 + len(str(tmp_path))


def test_files_that_are_none_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    for content in (whole[: len(whole) // 2], b"", b"hello", whole[::-1]):
        (tmp_path / "odd.onnx").write_bytes(content)
        with pytest.raises(UserError, match="name an"):
            OnnxPredictor.load(tmp_path / "odd.onnx")
    for name in ("missing", ".", "pipe"):
        with pytest.raises(UserError, match="cannot be read"):
            OnnxPredictor.load(tmp_path / name)
    with pytest.raises(UserError, match="does not have the shapes"):
        OnnxPredictor.load(write(tmp_path / "few", model(json.dumps(ABOUT), points=5)))
    nan = OnnxPredictor.load(write(tmp_path / "nan", model(json.dumps(ABOUT), fault=np.nan)))
    with pytest.raises(UserError, match="gives no points"):
        nan.run(np.zeros((1, SIZE, SIZE, 1), np.uint8))


@pytest.mark.parametrize("place", ["{name}", "../{folder}/{name}"])
def test_nothing_beside_the_file_is_read(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that the file says lie in another one: from its own folder, and from the working folder."""
    monkeypatch.chdir(tmp_path)
    secret, made = tmp_path / "secret.bin", model(json.dumps(ABOUT))
    tensor = made.graph.initializer[0]
    secret.write_bytes(tensor.raw_data)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = place.format(name=secret.name, path=secret, folder=tmp_path.name)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(UserError, match="ONNX Runtime does not load it"):
        OnnxPredictor.load(write(tmp_path / "net.onnx", made))


HIDE = """
import importlib.machinery, sys
finder = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden} else finder(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.fixture
def light(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs Python as it is where only ``pip install flr`` was: what the extras bring cannot be found."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split(r"[<>=\[]", need)[0].lower() for group in extras.values() for need in group} - {"flr"}
    hidden = {module for module, owners in packages_distributions().items() if named & {o.lower() for o in owners}}
    assert {"torch", "pytorch_lightning", "mlflow", "pandas", "albumentations", "scipy", "onnx"} <= hidden
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE.format(hidden=sorted(hidden)))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


def test_nothing_that_trains_is_needed(file: Path, light: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    code = (
        "import sys, numpy as np; from flr.inference.onnx import OnnxPredictor; p = OnnxPredictor.load('net.onnx'); "
        "image = np.arange(3600, dtype=np.uint16).reshape(60, 60).astype(np.uint8); p.detect(image); "
        "print(p([image], np.array([[10., 12, 40, 38]])).tolist())"
    )
    done = light("-c", code)
    assert done.returncode == 0, done.stderr
    image = np.arange(3600, dtype=np.uint16).reshape(60, 60).astype(np.uint8)
    expected = OnnxPredictor.load(file)([image], np.array([[10.0, 12, 40, 38]]))
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


@pytest.mark.parametrize("words", [("flr.train",), ("flr", "export")])
def test_commands_say_what_is_missing(
    words: tuple[str], light: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    done = light("-m", *words)
    assert done.returncode == 2 and done.stdout == ""
    command = words[-1].removeprefix("flr.")
    assert done.stderr == f"flr: torch is not installed, and {command} needs it; pip install 'flr[train]'\n"


def test_the_included_model_needs_only_the_base_packages(
    tmp_path: Path, light: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    face = render(0, 3, 240, 3, 0.5)
    cv2.imwrite(str(tmp_path / "photo.png"), face.image[..., ::-1])
    done = light("-m", "flr", "predict", "source=photo.png", "out=out", "detector=whole")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("finding faces in photo.png with the included model\n")
    box = tight_box(face.points[None].astype(float), np.ones((1, 68), bool))
    (tmp_path / "boxes.csv").write_text("image,left,top,right,bottom\nphoto.png," + ",".join(map(str, box[0])))
    done = light("-m", "flr", "predict", "source=photo.png", "out=boxed", "detector=boxes", "detector.file=boxes.csv")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "boxed" / "points.json").read_text())["annotations"]
    points = np.array(found["keypoints"]).reshape(-1, 3)[:, :2]
    errors = np.linalg.norm(points - face.points, axis=-1)
    assert errors.mean() / IBUG68.distance(face.points[None], np.ones((1, 68), bool))[0] < 0.06
    # Occluded points are found to be so more often than others.
    visible = np.array(found["visible"])
    assert visible.min() >= 0 and visible.max() <= 1


def test_one_call_finds_the_faces_of_a_file_or_an_array() -> None:
    (face,) = flr.find_faces(loading.LANDMARKS.with_name("face.jpg"))
    assert face.points.shape == (68, 2) and face.box[0] < face.points[30, 0] < face.box[2]
    for wrong in (np.zeros((50, 50), np.float32), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5), np.uint8), None, 3):
        with pytest.raises(UserError, match="image 0 is"):
            flr.find_faces(wrong)


def test_the_included_model_names_no_file_of_the_machine_that_exported_it() -> None:
    content = loading.LANDMARKS.read_bytes()
    assert b".py" not in content and len(content) < 1_200_000


def test_a_changed_included_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "landmarks.onnx"
    changed.write_bytes(loading.LANDMARKS.read_bytes())
    monkeypatch.setattr(loading, "LANDMARKS", changed)
    loading.load_file(changed)
    monkeypatch.setattr(loading, "LANDMARKS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the file of this version of flr; install flr again"):
        loading.load_file(changed)


PREDICT = """
import sys
from flr.cli import run_command
from flr.predict import main
sys.argv = ["flr.predict", "run=net.onnx", "source=photo.png", "out=out", "detector=whole"]
run_command(main, "predict")
print(sorted({"torch", "pytorch_lightning", "mlflow", "optuna", "pandas", "scipy", "albumentations"} & sys.modules.keys()))
"""


def test_a_prediction_imports_nothing_that_trains(file: Path) -> None:
    cv2.imwrite(str(file.parent / "photo.png"), np.full((60, 60), 128, np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", PREDICT], cwd=file.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "finding faces in photo.png with net.onnx" and lines[1].startswith("1 face in 1 image ")
    assert lines[2] == "[]"


def test_refinement_of_the_included_model_improves_poor_boxes() -> None:
    model, errors = loading.load_file(loading.LANDMARKS), {0: [], 1: []}
    for index in range(12):
        face = render(5, index, 160, face=0.6)
        box = tight_box(face.points[None], np.ones((1, 68), bool))
        side = np.tile(box[:, 2:] - box[:, :2], 2)  # a box too large and next to the face, as a detector's may be
        poor = box + side * np.array([-0.1, -0.3, 0.3, 0.1])
        for refine, found in errors.items():
            points = model.find([face.image], poor, refine=refine).points[0]
            found.append(np.linalg.norm(points - face.points, axis=1).mean())
    assert np.median(errors[1]) < 0.6 * np.median(errors[0])
