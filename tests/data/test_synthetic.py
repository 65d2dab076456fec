"""The synthetic faces: determinism, points, occlusion, and that features are painted under their points."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from flr.data.readers import synthetic as reader
from flr.data.synthetic import Face, render
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import sample_shape
from flr.data.synthetic.skin import TONES, sample_tone
from flr.data.synthetic.view import sample_view
from flr.errors import UserError

MIRROR = np.arange(68)
for _a, _b in (
    [(i, 16 - i) for i in range(8)]
    + [(17 + i, 26 - i) for i in range(5)]
    + [(31, 35), (32, 34), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
    + [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
):
    MIRROR[_a], MIRROR[_b] = _b, _a


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return [render(3, i) for i in range(300)]


@pytest.fixture(scope="module")
def points(faces: list[Face]) -> np.ndarray:
    """(N, 68, 2) points."""
    return np.stack([f.points for f in faces])


def turn(points: np.ndarray) -> np.ndarray:
    """(N,) share of the nose bridge between the outer eye corners: .5 in front, less turned to the left."""
    axis = points[:, 45] - points[:, 36]
    return ((points[:, 28] - points[:, 36]) * axis).sum(-1) / (axis * axis).sum(-1)


def digest(face: Face) -> str:
    return hashlib.sha256(face.image.tobytes() + face.points.tobytes() + face.visible.tobytes()).hexdigest()


def test_same_face_twice_and_in_another_process() -> None:
    code = (
        "import hashlib; from flr.data.synthetic import render; f = render(5, 17);"
        "print(hashlib.sha256(f.image.tobytes() + f.points.tobytes() + f.visible.tobytes()).hexdigest())"
    )
    here = digest(render(5, 17))
    assert digest(render(5, 17)) == here
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_index_and_seed_name_different_faces() -> None:
    assert len({digest(render(seed, index)) for seed in (1, 2) for index in range(8)}) == 16


@pytest.mark.parametrize("face", [0.5, 0.8])
def test_same_face_at_another_size(face: float) -> None:
    for index in range(6):
        small, large = render(9, index, 96, face=face), render(9, index, 240, face=face)
        assert np.abs((small.points + 0.5) * 2.5 - 0.5 - large.points).max() < 0.01


def test_grey_and_colour_show_the_same_face() -> None:
    for index in range(4):
        grey, colour = render(4, index), render(4, index, channels=3)
        assert grey.image.shape == (128, 128) and colour.image.shape == (128, 128, 3)
        assert grey.image.dtype == colour.image.dtype == np.uint8
        assert grey.points.shape == (68, 2) and grey.points.dtype == np.float32
        assert grey.visible.shape == (68,) and grey.visible.dtype == np.bool_
        np.testing.assert_array_equal(grey.points, colour.points)
        assert np.corrcoef(grey.image.ravel(), colour.image.mean(-1).ravel())[0, 1] > 0.9


def test_box_is_the_asked_share_of_the_picture(points: np.ndarray) -> None:
    share = (points.max(1) - points.min(1)).max(-1) / 128
    assert abs(share.mean() - 0.8) < 0.05 and share.min() > 0.7 and share.max() < 0.9


def test_points_are_in_ibug_order(points: np.ndarray) -> None:
    assert np.isfinite(points).all()
    mean = points.mean(0)
    for ids in ((0, 17), (17, 27), (31, 36), (36, 40), (42, 46), (48, 55), (60, 65)):
        assert (np.diff(mean[slice(*ids), 0]) > 0).all()
    assert (np.diff(mean[27:31, 1]) > 0).all() and mean[8, 1] == mean[:, 1].max()
    for column in ((19, 37, 41), (24, 44, 46), (18, 38, 40), (25, 43, 47), (33, 51, 62, 66, 57, 8)):
        assert (np.diff(mean[list(column), 1]) > 0).all()
    # Each lid keeps its side in every face; a closed eye's may touch.
    seen = points[np.abs(turn(points) - 0.5) < 0.25]
    axis = seen[:, 39] - seen[:, 36]
    down = np.stack([-axis[:, 1], axis[:, 0]], -1)
    assert (((seen[:, 41] - seen[:, 37]) * down).sum(-1) > 0).all()


def test_mean_face_is_its_own_mirror(points: np.ndarray) -> None:
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    mean = ((points - (low + high) / 2) / (high - low).max(-1, keepdims=True)).mean(0)
    assert np.abs(mean - mean[MIRROR] * (-1, 1)).max() < 0.05
    assert np.abs(mean - mean * (-1, 1)).max() > 0.5  # without the swap of left and right


def test_faces_turn_to_both_sides(points: np.ndarray) -> None:
    where = turn(points)
    assert np.quantile(where, 0.05) < 0.4 and np.quantile(where, 0.95) > 0.6
    assert 0.4 < (where < 0.5).mean() < 0.6


def test_far_jaw_lies_on_the_visible_outline(faces: list[Face], points: np.ndarray) -> None:
    where = turn(points)
    far_right, far_left = points[where > 0.68], points[where < 0.32]
    assert len(far_right) > 4 and len(far_left) > 4
    # The far cheek's contour stays outside of the far eye and the nose, close to them.
    for some, jaw, eye in ((far_right, 14, 45), (far_left, 2, 36)):
        side = np.sign(some[:, eye, 0] - some[:, 27, 0])
        width = np.abs(some[:, 16, 0] - some[:, 0, 0])
        beyond = (some[:, jaw, 0] - some[:, eye, 0]) * side / width
        assert beyond.min() > -0.12 and beyond.max() < 0.25


def test_points_behind_the_face_are_hidden() -> None:
    far, near = [], []
    for index in range(700):
        d = Draws(6, index)
        sample_shape(d)
        yaw = sample_view(d).yaw
        if abs(yaw) < np.radians(45):
            continue
        left, right = render(6, index).visible[[17, 36]], render(6, index).visible[[26, 45]]
        far.append(right if yaw > 0 else left)
        near.append(left if yaw > 0 else right)
    assert len(far) >= 15
    assert np.mean(far) < 0.4 and np.mean(near) > 0.6


def _level(face: Face, at: np.ndarray) -> float:
    """Mean brightness of the 3 x 3 pixels round a point."""
    x, y = np.clip(np.rint(at).astype(int), 1, 126)
    return float(face.image[y - 1 : y + 2, x - 1 : x + 2].mean())


def test_features_are_painted_under_their_points(faces: list[Face]) -> None:
    """Eyes are darker than the cheeks, brows than the forehead over them."""
    eye, brow = [], []
    for face in faces:
        if not face.visible.all():
            continue
        p = face.points
        down = (p[8] - p[27]) / np.linalg.norm(p[8] - p[27]) * 128 * 0.05
        for lids, arch in ((slice(36, 42), 19), (slice(42, 48), 24)):
            eye.append(_level(face, p[lids].mean(0)) < _level(face, p[lids].mean(0) + 3 * down))
            brow.append(_level(face, p[arch] + 0.2 * down) < _level(face, p[arch] - 1.5 * down))
    assert len(eye) > 100
    assert np.mean(eye) > 0.8 and np.mean(brow) > 0.75


def test_even_tones_draw_dark_skins_as_often_as_light_ones(tmp_path: Path) -> None:
    for even, share in ((False, 0.14), (True, 0.25)):
        tones = np.array([sample_tone(Draws(0, i), even) for i in range(2000)])
        assert (tones.mean(1) < TONES[1].mean()).mean() == pytest.approx(share, abs=0.025)
    usual, even = (reader.read(tmp_path, train=1, val=1, test=1, size=64, even_tones=even) for even in (False, True))
    np.testing.assert_array_equal(even.points, usual.points)
    assert not np.array_equal(even.load(0), usual.load(0))
    assert even.published[0] != usual.published[0] and even.version[0] != usual.version[0]


def test_covered_points_are_not_visible(faces: list[Face]) -> None:
    share = np.mean([f.visible for f in faces])
    assert 0.8 < share < 0.99


def test_the_dataset_is_rendered_by_processes_which_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FACES_OF_A_PROCESS", 1)
    monkeypatch.setattr(reader, "cores", lambda: 2)
    before = set(psutil.Process().children())
    table = reader.read(tmp_path, train=30, val=3, test=3, size=64)
    for i in (0, 17, 35):  # the test part comes first
        expected = render(0, i, 64, 1, 0.5)
        np.testing.assert_array_equal(table.load(i), expected.image)
        np.testing.assert_array_equal(table.points[i], expected.points)
    started = set(psutil.Process().children()) - before
    assert not any("popen_loky" in " ".join(process.cmdline()) for process in started)


RENDER = """
import sys
import time
from pathlib import Path
from pathlib import Path
from flr.data.readers import synthetic
synthetic.read(Path(sys.argv[1]), train=100_000, size=32)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_rendering_that_is_killed_leaves_no_process(tmp_path: Path, victim: str) -> None:
    process = psutil.Popen([sys.executable, "-c", RENDER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert process.poll() is None
        time.sleep(0.1)
        workers = [child for child in process.children() if "popen_loky" in " ".join(child.cmdline())]
    time.sleep(2)
    (process if victim == "parent" else workers[0]).kill()
    _, errors = process.communicate(timeout=60)
    assert victim == "parent" or "UserError: a process that renders faces was killed" in errors
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left


def test_a_stated_box_is_a_square_round_the_points(tmp_path: Path) -> None:
    sizes = {"train": 6, "val": 1, "test": 1, "size": 96}
    without, stated = reader.read(tmp_path, **sizes), reader.read(tmp_path, **sizes, box=1.3)
    assert np.isnan(without.box).all()
    low, high = stated.points.min(1), stated.points.max(1)
    for low_edge, high_edge in ((0, 2), (1, 3)):
        side = stated.box[:, high_edge] - stated.box[:, low_edge]
        np.testing.assert_allclose(side, 1.3 * (high - low).max(1), rtol=1e-5)
        middle = (stated.box[:, high_edge] + stated.box[:, low_edge]) / 2
        np.testing.assert_allclose(middle, (low + high)[:, low_edge] / 2, rtol=1e-5)
    assert stated.fingerprint() != without.fingerprint()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*set paths\.cache_dir=DIR"):
        reader.read(tmp_path / "file/synthetic", train=1, val=1, test=1)
