"""The built-in detector on rendered faces, and what its file must be."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import hydra
import numpy as np
import onnx
import pytest
from PIL import Image

from flr.config.compose import CONF
from flr.config.schema import Predict
from flr.config.validate import check
from flr.data.boxes import BoxPolicy, overlap
from flr.data.finders.builtin import Builtin
from flr.data.finders.network import BUILTIN, BUILTIN_SHA256, FaceNetwork
from flr.data.synthetic.renderer import render
from flr.errors import UserError
from flr.inference.detectors import BuiltinDetector
from flr.landmarks.geometry import tight_box
from flr.landmarks.scheme import CELEBA5, IBUG68, WFLW98, Scheme

EXAMPLE = BUILTIN.with_name("face.jpg")  # rendered


def target(scheme: Scheme = IBUG68, source: str = "truth", mean: np.ndarray | None = None) -> Any:
    """What a detector needs to know of a model."""
    policy = BoxPolicy(source)  # type: ignore[arg-type]
    return SimpleNamespace(scheme=scheme, crop=SimpleNamespace(policy=policy), offset=None, mean_face=mean)


def scene(index: int, size: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A rendered face of `size` pixels on 640 x 480, and its points (68, 2)."""
    face = render(7, index, round(2 * size), channels, face=0.5)
    image = np.full((480, 640, channels)[: 2 + (channels > 1)], 128, np.uint8)
    y, x = 20 + 3 * index, 30 + 5 * index
    image[y : y + 2 * size, x : x + 2 * size] = face.image
    return image, face.points.astype(np.float64) + (x, y)


def test_the_file_is_the_one_that_was_tested() -> None:
    content = BUILTIN.read_bytes()
    assert hashlib.sha256(content).hexdigest() == BUILTIN_SHA256 and len(content) < 400_000
    assert b"/home/" not in content


@pytest.mark.parametrize(("size", "work", "least"), [(150, 320, 11), (60, 320, 8), (20, 640, 6)])
def test_rendered_faces_are_found_with_their_tight_boxes(size: int, work: int, least: int) -> None:
    detector, found, false = BuiltinDetector(work=work), 0, 0
    for index in range(12):
        image, points = scene(index, size, channels=3)
        boxes, scores = detector(image, "", target())
        truth = tight_box(points[None], np.ones((1, 68), bool))[0]
        shares = overlap(boxes, truth)
        found += bool(len(boxes) and shares.max() > 0.5)
        false += int((shares < 0.1).sum())
        assert (np.diff(scores) <= 0).all()
    assert found >= least and false <= 2


def test_the_box_follows_the_scheme() -> None:
    image, points = scene(1, 150)
    detector = BuiltinDetector()
    five = CELEBA5, IBUG68.reduce(points, "celeba5")
    mean = np.concatenate([points, points[:30] * 0 + points.mean(0)])  # 98 points of the same extent
    for scheme, of_scheme, mean_face in ((*five, None), (WFLW98, points, mean)):
        (box, *_), _ = detector(image, "", target(scheme, mean=mean_face))
        truth = tight_box(of_scheme[None], np.ones((1, len(of_scheme)), bool))[0]
        assert overlap(box[None], truth)[0] > 0.5
    with pytest.raises(UserError, match="no detector is known to find the boxes of policy file"):
        detector(image, "", target(source="file"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (480, 640, 3), (2000, 31)])
def test_an_image_without_a_face_has_no_box(shape: tuple[int, ...]) -> None:
    boxes, scores = Builtin().find(np.full(shape, 90, np.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_a_file_that_is_no_detector_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    model = onnx.load_from_string(BUILTIN.read_bytes())
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    onnx.helper.set_model_props(
        model, {"flr_detector": '{"version": 1, "threshold": -1, "offsets": {}, "trained": {}}'}
    )
    onnx.save(model, tmp_path / "wrong.onnx")
    for name, words in {
        "gone.onnx": "cannot be read", "text.onnx": "ONNX Runtime does not load it", "bare.onnx": "without the metadata",
        "wrong.onnx": "metadata: Input should be greater",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            FaceNetwork(tmp_path / name)


def test_a_score_that_no_face_reaches_is_refused() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("predict", ["source=photo.jpg", "detector=builtin", "detector.score=3"])
    with pytest.raises(UserError, match=r"detector\.score=3: expected number >= 0 and <= 2"):
        check(cfg, Predict)


def crowd(side: int, face: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of `side` pixels with six copies of the example's face of `face` pixels, and their centres (6, 2)."""
    example = np.array(Image.open(EXAMPLE).convert("RGB"))
    (box,) = BuiltinDetector(work=320).search(example)[0]
    factor = face / (box[2] - box[0])
    small = cv2.resize(example, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    image, centres = np.full((side * 3 // 4, side, 3), 120, np.uint8), []
    for column in range(3):
        for row in range(2):
            x, y = side * (column * 2 + 1) // 6, side * (row * 2 + 1) // 6
            image[y : y + len(small), x : x + small.shape[1]] = small
            centres.append((x, y) + (box[:2] + box[2:]) / 2 * factor)
    return image, np.array(centres)


@pytest.mark.parametrize(("side", "face"), [(640, 26), (4000, 75), (6000, 75)])
def test_small_faces_are_searched_in_larger_sizes(side: int, face: int) -> None:
    image, centres = crowd(side, face)
    found = [
        (boxes[:, :2] + boxes[:, 2:]) / 2
        for boxes in (BuiltinDetector(work=320).search(image)[0], BuiltinDetector().search(image)[0])
    ]
    hits = [
        sum(bool((np.abs(there - centre).max(1) < face / 3).any()) for centre in centres) if len(there) else 0
        for there in found
    ]
    assert hits[0] < 6 and hits[1] == 6


def test_a_portrait_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    find = Builtin.find
    monkeypatch.setattr(Builtin, "find", lambda self, *image: searched.append(self.work) or find(self, *image))
    BuiltinDetector().search(np.array(Image.open(EXAMPLE)))
    BuiltinDetector().search(np.zeros((900, 1200), np.uint8))
    assert searched == [320, 320, 640]  # a portrait once; an image without a face twice
