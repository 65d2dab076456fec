"""BlazeFace's proposals become boxes and points of the image, whatever its shape; its file is the user's own."""

import numpy as np
import pytest

from flr.data.finders.blazeface import BlazeFaceFinder
from flr.inference import detectors
from flr.landmarks.scheme import IBUG68

POINTS = np.array(
    [[-20, -16], [18, -16], [0, 4], [0, 20], [-34, -10], [34, -10]], np.float64
)  # of a face, from its middle


def propose(raw: np.ndarray, logits: np.ndarray, row: int, middle: tuple[float, float], logit: float) -> None:
    """Write a face of 40 pixels of the network at `middle`, relative to the cell of proposal `row`."""
    count, proposals, first = (16, 2, 0) if row < 512 else (8, 6, 512)
    cell = (row - first) // proposals
    at = (np.array([cell % count, cell // count]) + 0.5) * 128 / count
    places = np.vstack([np.array(middle) - at, [40, 40], np.array(middle) - at + 0.5 * POINTS])
    raw[row], logits[row] = places.ravel(), logit


@pytest.mark.parametrize(("height", "width", "channels"), [(256, 512, 3), (512, 256, 1), (64, 64, 3)])
def test_proposals_become_faces_of_the_image(
    height: int, width: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, logits = np.zeros((896, 16)), np.full(896, -9.0)
    propose(raw, logits, 2 * (7 * 16 + 3), (40.0, 60.0), 3.0)
    propose(raw, logits, 512 + 6 * (4 * 8 + 2), (42.0, 61.0), 2.0)  # the same face, less certain
    propose(raw, logits, 2 * (9 * 16 + 12), (100.0, 70.0), 1.0)
    propose(raw, logits, 5, (20.0, 20.0), -0.1)  # below the least score
    monkeypatch.setattr(BlazeFaceFinder, "_run", lambda self, pixels: (raw, logits))
    image = np.zeros((height, width, 3)[: 2 + (channels == 3)], np.uint8)
    rows = BlazeFaceFinder("none.tflite").rows(image)
    side = max(height, width)
    origin = np.array([(side - width) // 2, (side - height) // 2])

    def to_image(x: float, y: float) -> np.ndarray:
        return np.array([x, y]) * side / 128 - 0.5 - origin

    assert len(rows) == 2
    for row, (x, y), logit in zip(rows, ((40.0, 60.0), (100.0, 70.0)), (3.0, 1.0), strict=True):
        np.testing.assert_allclose(row[:2], to_image(x - 20, y - 20))
        np.testing.assert_allclose(row[2:4], to_image(x + 20, y + 20))
        expected = [to_image(*(np.array([x, y]) + 0.5 * point)) for point in POINTS]
        np.testing.assert_allclose(row[4:16].reshape(6, 2), expected)
        assert row[16] == pytest.approx(1 / (1 + np.exp(-logit)))


def test_no_face_is_an_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlazeFaceFinder, "_run", lambda self, pixels: (np.zeros((896, 16)), np.full(896, -9.0)))
    finder = BlazeFaceFinder("none.tflite")
    assert finder.rows(np.zeros((9, 5), np.uint8)).shape == (0, 17)
    assert finder.detect(np.zeros((9, 5), np.uint8)).shape == (0, 4)


def test_the_tight_box_is_that_of_the_mean_face_on_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = np.random.default_rng(0).uniform(-1, 1, (68, 2))
    placed = mean * 30 + (80, 60)
    five = np.asarray(IBUG68.reduce(placed, "celeba5"))
    points = np.vstack([five[:3], five[3:].mean(0), [[0, 0], [0, 0]]])
    row = np.concatenate([[0, 0, 1, 1], points.ravel(), [0.9]])
    monkeypatch.setattr(detectors, "open_blazeface", lambda *_: None)
    monkeypatch.setattr(BlazeFaceFinder, "rows", lambda self, image: row[None])

    class Model:
        scheme, mean_face = IBUG68, mean

    boxes, scores = detectors.BlazeFace("none.tflite")(np.zeros((9, 9), np.uint8), "", Model())  # type: ignore[arg-type]
    np.testing.assert_allclose(boxes[0], [*placed.min(0), *placed.max(0)])
    assert scores.tolist() == [0.9]
