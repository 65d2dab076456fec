"""Smoothing: calm where a face is still, in time where it moves, the same for every size, place and frame rate."""

import numpy as np
import pytest

from benchmarks.jitter import jitter, lag
from flr.inference.smoothing import MAX_GAP, OneEuro
from flr.landmarks.geometry import similarity, transform
from tests.fakes import ibug

FACE = ibug.faces(1, (200, 200))[0].astype(np.float64)
EYES = float(np.linalg.norm(FACE[36] - FACE[45]))
TIMES = np.arange(90) / 30


def film(still: bool, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(T, K, 2) noisy and true points of three seconds: a still face, or one that swings by half its eyes' distance."""
    shift = 0 if still else EYES * 0.5 * np.sin(2 * np.pi * 0.7 * TIMES)[:, None, None]
    truth = np.repeat(FACE[None], len(TIMES), 0) + shift * np.array([1.0, 0.3])
    return truth + np.random.default_rng(seed).normal(0, noise * EYES, truth.shape), truth


def run(points: np.ndarray, seconds: np.ndarray = TIMES, **settings: float) -> np.ndarray:
    one = OneEuro(**settings)
    return np.stack([one(frame, time) for frame, time in zip(points, seconds, strict=True)])


def test_a_still_face_is_calm_and_a_moving_one_not_late():
    points, _ = film(still=True)
    assert jitter(run(points), EYES) < 0.4 * jitter(points, EYES)
    points, truth = film(still=False)
    smooth = run(points)
    assert lag(smooth, truth, TIMES) < 34  # a frame
    late = np.linalg.norm(smooth - truth, axis=-1)[15:].mean()
    assert late < 1.5 * np.linalg.norm(points - truth, axis=-1)[15:].mean()


def test_head_motion_does_not_loosen_the_grip_on_the_shape():
    """What trembles on a moving head, apart from where the head is, is as calm as on a still one."""
    left = {}
    for still in (True, False):
        points, truth = film(still)
        off = run(points) - truth
        left[still] = np.linalg.norm(np.diff(off - off.mean(1, keepdims=True), axis=0), axis=-1)[30:].mean()
    assert left[False] < 1.3 * left[True]


def test_settings_mean_the_same_at_any_size_place_and_turn():
    points, _ = film(still=False)
    move = similarity(2.9, 0.2, np.zeros(2), np.array([900.0, -40]))
    np.testing.assert_allclose(run(transform(move[None], points)), transform(move[None], run(points)), atol=1e-8)


def test_a_whole_turn_is_no_jump():
    turns = np.stack([transform(similarity(a, 1.0, FACE.mean(0), FACE.mean(0)), FACE) for a in 2 * np.pi * TIMES / 3])
    off = np.linalg.norm(run(turns) - turns, axis=-1).mean(1) / EYES
    assert off.max() < 0.12  # 120 degrees a second


@pytest.mark.parametrize("rate", [15, 30, 120, None])
def test_the_lag_is_of_time_not_of_frames(rate):
    """Behind a ramp, a low-pass filter stays 1 / (2 pi cutoff) seconds, whenever it is asked."""
    times = np.arange(0, 3, 1 / rate) if rate else np.cumsum(np.random.default_rng(0).uniform(0.01, 0.1, 60))
    points = FACE + 40 * times[:, None, None]
    behind = (points - run(points, times, min_cutoff=1.0, beta=0.0))[times > 1.5]
    np.testing.assert_allclose(behind, 40 / (2 * np.pi), rtol=0.02)


def test_constant_points_stay_and_the_first_frame_is_as_it_came():
    np.testing.assert_allclose(
        run(np.repeat(FACE[None], 5, 0), np.array([0, 0.01, 0.3, 0.31, 0.5])), FACE[None].repeat(5, 0)
    )
    points, _ = film(still=True)
    np.testing.assert_array_equal(run(points)[0], points[0])


@pytest.mark.parametrize("time", [0.0, -1.0, 1.0, 1.0 + MAX_GAP * 1.01, np.nan], ids=str)
def test_time_that_stands_or_goes_back_and_a_gap_start_anew(time):
    one = OneEuro()
    one(FACE, 0.98)
    one(FACE + 0.5, 1.0)
    np.testing.assert_array_equal(one(FACE + 7, time), FACE + 7)


def test_points_that_are_none_pass_and_the_face_starts_anew():
    one = OneEuro()
    for k, bad in enumerate((np.full_like(FACE, np.nan), np.full_like(FACE, 3.0), np.where(FACE > 100, np.inf, FACE))):
        one(FACE, 10 * k)
        np.testing.assert_array_equal(one(bad, 10 * k + 0.1), bad)
        np.testing.assert_array_equal(one(FACE + 9, 10 * k + 0.2), FACE + 9)


# -- measures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.04, 0.1])
def test_lag_of_a_known_delay_with_noise_and_bias(late):
    points, truth = film(still=False, noise=0.005)
    _, now = film(still=False, noise=0)
    swing = EYES * 0.5 * np.sin(2 * np.pi * 0.7 * (TIMES - late))[:, None, None] * np.array([1.0, 0.3])
    assert lag(FACE + swing + (points - now) + [90.0, -60.0], truth, TIMES) == pytest.approx(1000 * late, abs=8)
