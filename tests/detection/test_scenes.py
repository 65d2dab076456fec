"""Scenes and training patches: functions of their seeds, with boxes where the faces are."""

from pathlib import Path

import numpy as np
import pytest

from flr.data.finders.votes import LARGEST, STRIDE, UNIT
from flr.detection.patches import PATCH, PatchBatches, cut_patch, targets
from flr.detection.scenes import EMPTY, FACE, IGNORED, NO_FACE, SIDE, Scenes, _mark_hidden, draw_scene, open_scenes
from flr.detection.textures import TexturePool


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    textures = TexturePool(np.random.default_rng(0), SIDE)
    drawn = [draw_scene(5, index, textures) for index in range(8)]
    return Scenes(np.stack([image for image, _ in drawn]), np.stack([boxes for _, boxes in drawn]))


def test_scenes_are_a_function_of_seed_and_index(scenes: Scenes) -> None:
    image, boxes = draw_scene(5, 3, TexturePool(np.random.default_rng(0), SIDE))
    np.testing.assert_array_equal(image, scenes.images[3])
    np.testing.assert_array_equal(boxes, scenes.boxes[3])
    assert not np.array_equal(scenes.images[3], scenes.images[4])
    assert scenes.images.dtype == np.uint8 and scenes.images.shape[1:] == (SIDE, SIDE)
    states = scenes.boxes[..., 3]
    assert set(np.unique(states)) <= {FACE, NO_FACE, IGNORED, EMPTY} and (states == FACE).any()


def test_scenes_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: Scenes) -> None:
    monkeypatch.setattr(
        "flr.detection.scenes._draw_block", lambda seed, start, stop: (scenes.images[:2], scenes.boxes[:2])
    )
    first = open_scenes(1, 2, tmp_path, 1)
    monkeypatch.setattr("flr.detection.scenes._draw_block", None)
    np.testing.assert_array_equal(open_scenes(1, 2, tmp_path, 1).images, first.images)


def test_batches_are_a_function_of_seed_epoch_and_number(scenes: Scenes) -> None:
    images, maps = PatchBatches(scenes, 1, 2, 3, 4)[1]
    again, _ = PatchBatches(scenes, 1, 2, 3, 4)[1]
    other, _ = PatchBatches(scenes, 1, 3, 3, 4)[1]
    assert images.shape == (4, 1, PATCH, PATCH) and maps.shape == (4, 6, PATCH // STRIDE, PATCH // STRIDE)
    assert images.equal(again) and not images.equal(other)


def test_a_patchs_targets_are_where_its_face_is() -> None:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[90:131, 60:101] = 255
    boxes = np.array([[80.0, 110, 41, FACE]])
    off = []
    for seed in range(300):
        patch, (heat, _, _, dx, dy, size) = cut_patch(np.random.default_rng(seed), image, boxes)
        shown = np.argwhere(patch > (int(patch.min()) + int(patch.max())) / 2)
        if heat.max() == 1 and shown.min() > 0 and shown.max() < PATCH - 1 and len(shown) < PATCH**2 / 2:
            row, column = np.argwhere(heat == 1)[0]
            place = np.array([row + 0.5 + dy[row, column], column + 0.5 + dx[row, column]]) * STRIDE
            side = UNIT * 2 ** size[row, column]
            off.append([*(place - shown.mean(0) - 0.5), np.ptp(shown, 0).max() + 1 - side])
    assert len(off) > 50
    assert (np.abs(np.median(off, 0)) < (0.2, 0.2, 1)).all()
    assert np.quantile(np.abs(off), 0.9, 0)[:2].max() < 1


@pytest.mark.parametrize(
    ("rows", "state", "expected"), [(2, FACE, FACE), (9, FACE, IGNORED), (9, NO_FACE, NO_FACE), (36, FACE, EMPTY)]
)
def test_a_face_that_is_painted_over_is_not_one_to_find(rows: int, state: int, expected: int) -> None:
    before, boxes = np.zeros((100, 100), np.uint8), np.array([[50.0, 50, 40, state], [20, 20, 10, FACE]], np.float32)
    after = before.copy()
    after[32 : 32 + rows, 30:70] = 1
    _mark_hidden(boxes, before, after)
    assert boxes[:, 3].tolist() == [expected, FACE]


def test_targets_code_the_box_and_leave_out_what_is_neither() -> None:
    whole = np.array([-500.0, -500, 500, 500])
    heat, weight, inside, dx, dy, size = targets(np.array([[50.0, 34, 40, FACE]]), whole)
    assert heat.max() == heat[4, 6] == 1 and weight.all()
    assert (6.5 + dx[4, 6]) * STRIDE == 50 and (4.5 + dy[4, 6]) * STRIDE == 34
    assert UNIT * 2 ** size[inside > 0] == pytest.approx(40)
    for box in ([50, 34, 40, IGNORED], [50, 34, LARGEST + 5, FACE]):
        heat, weight, inside, *_ = targets(np.array([box], float), whole)
        assert not heat.any() and not inside.any() and not weight[4, 6]
    heat, weight, *_ = targets(np.array([[50.0, 34, 40, NO_FACE]]), whole)
    assert not heat.any() and weight.all()
    cut_off = np.array([45.0, 0, 96, 96])  # the scene ends in the face
    assert not targets(np.array([[50.0, 34, 40, FACE]]), cut_off)[0].any()
