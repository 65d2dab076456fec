"""Faces over frames: each keeps its number, is followed without the detector, and is lost and found again."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flr.inference.faces import Face, FaceTracker
from flr.inference.landmarker import Located
from flr.inference.smoothing import OneEuro
from flr.landmarks.scheme import CELEBA5

FACE = np.array([[20.0, 30], [60, 30], [40, 55], [25, 75], [55, 75]])  # in an 80 px square
IMAGE = np.zeros((400, 600, 3), np.uint8)


class Net:
    """A net that finds the face whose place is nearest to a box."""

    def __init__(self, source: str = "truth") -> None:
        self.scheme, self.mean_face, self.refines = CELEBA5, FACE, source == "truth"
        self.crop = SimpleNamespace(policy=SimpleNamespace(source=source))
        self.places = np.zeros((0, 2))
        self.noise = 0.0

    def find(self, images: Any, boxes: np.ndarray, *, refine: int = 0) -> Located:
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        faces = self.places[:, None] + FACE - FACE.mean(0)
        nearest = [int(np.linalg.norm(self.places - middle, axis=1).argmin()) for middle in middles]
        found = faces[nearest] if nearest else np.zeros((0, 5, 2))
        spread = np.full(found.shape[:2], self.noise)
        points = found + np.random.default_rng(0).normal(0, self.noise, found.shape)
        return Located(points, spread, np.ones_like(spread), 2 * spread)

    def is_uncertain(self, points: np.ndarray, spread: np.ndarray) -> np.ndarray:
        return spread.mean(-1) > 0.5


class Finder:
    """A detector that finds the faces of its list, and counts how often it is asked."""

    def __init__(self, net: Net) -> None:
        self.net, self.asked, self.hidden = net, 0, set[int]()

    def __call__(self, image: np.ndarray, name: str, net: Any) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        shown = [i for i in range(len(self.net.places)) if i not in self.hidden]
        places = self.net.places[shown]
        low, high = FACE.min(0) - FACE.mean(0), FACE.max(0) - FACE.mean(0)
        return np.concatenate([places + low, places + high], 1), np.ones(len(shown))


@pytest.fixture
def net() -> Net:
    return Net()


def tracker(net: Net, every: int = 10, **more: Any) -> tuple[FaceTracker, Finder]:
    finder = Finder(net)
    return FaceTracker(net, finder, every, **more), finder  # type: ignore[arg-type]


def follow(track: FaceTracker, net: Net, frames: range, *paths: Any) -> list[list[Face]]:
    """The faces of frames, 30 a second, in which face i is at ``paths[i](frame)``."""
    found = []
    for frame in frames:
        net.places = np.array([path(frame) for path in paths], np.float64).reshape(-1, 2)
        found.append(track(IMAGE, f"film#{frame}", frame / 30))
    return found


def test_a_moving_face_is_followed_and_seldom_sought(net: Net) -> None:
    track, finder = tracker(net)
    found = follow(track, net, range(60), lambda t: (100 + 5 * t, 200))
    assert finder.asked == 6 and [[face.identity for face in faces] for faces in found] == [[0]] * 60
    np.testing.assert_allclose([faces[0].points.mean(0) for faces in found], [(100 + 5 * t, 200) for t in range(60)])


def test_two_faces_keep_their_numbers_when_they_change_order(net: Net) -> None:
    track, _ = tracker(net, every=5)
    found = follow(track, net, range(60), lambda t: (100 + 6 * t, 100), lambda t: (460 - 6 * t, 300))
    for t, faces in enumerate(found):
        places = {face.identity: face.points.mean(0) for face in faces}
        assert set(places) == {0, 1}
        np.testing.assert_allclose([places[0], places[1]], [(100 + 6 * t, 100), (460 - 6 * t, 300)])


def test_a_face_that_leaves_is_lost_and_a_new_one_gets_a_new_number(net: Net) -> None:
    track, _ = tracker(net)
    assert follow(track, net, range(40), lambda t: (500 + 10 * t, 200))[-1] == []
    found = follow(track, net, range(200, 220), lambda t: (100, 100))
    assert [face.identity for face in found[-1]] == [1]


def test_a_face_that_is_not_detected_for_a_while_stays_and_then_goes(net: Net) -> None:
    track, finder = tracker(net, patience=1.0)
    follow(track, net, range(5), lambda t: (100, 100))
    finder.hidden = {0}
    found = follow(track, net, range(5, 60), lambda t: (100, 100))
    assert [len(faces) for faces in found[:25]] == [1] * 25 and found[-1] == []
    finder.hidden = set()
    assert [face.identity for face in follow(track, net, range(60, 62), lambda t: (100, 100))[-1]] == [0]  # found again


def test_a_slow_camera_keeps_its_face(net: Net) -> None:
    track, _ = tracker(net, patience=1.0)
    found = follow(track, net, range(0, 300, 12), lambda t: (100, 100))  # 2.5 frames a second
    assert [[face.identity for face in faces] for faces in found] == [[0]] * 25


def test_a_face_is_uncertain_while_its_points_are(net: Net) -> None:
    track, _ = tracker(net)
    assert [face.uncertain for face in follow(track, net, range(3), lambda t: (100, 100))[-1]] == [False]
    net.noise = 0.6
    (face,) = follow(track, net, range(3, 6), lambda t: (100, 100))[-1]
    assert face.uncertain and face.spread.tolist() == [0.6] * 5


def test_points_of_no_face_are_dropped(net: Net) -> None:
    net.noise = 40
    track, _ = tracker(net)
    assert follow(track, net, range(3), lambda t: (100, 100)) == [[]] * 3


def test_two_tracks_of_one_face_become_one(net: Net) -> None:
    track, _ = tracker(net)
    follow(track, net, range(5), lambda t: (100, 100), lambda t: (300, 100))
    found = follow(track, net, range(5, 10), lambda t: (100, 100))  # the net of both now finds the first
    assert [face.identity for face in found[-1]] == [0]


def test_where_points_tell_no_box_the_detector_looks_at_each_frame() -> None:
    net = Net("file")
    track, finder = tracker(net)
    follow(track, net, range(7), lambda t: (100 + t, 100))
    assert finder.asked == 7


def test_smoothing_calms_a_still_face(net: Net) -> None:
    rng = np.random.default_rng(1)
    spread = {}
    for smooth in (None, OneEuro):
        track, _ = tracker(net, smooth=smooth)
        found = follow(track, net, range(90), lambda t: (200, 200) + rng.normal(0, 0.5, 2))
        places = np.array([faces[0].points.mean(0) for faces in found])
        spread[smooth] = np.linalg.norm(np.diff(places[10:], axis=0), axis=1).mean()
    assert spread[OneEuro] < 0.5 * spread[None]
