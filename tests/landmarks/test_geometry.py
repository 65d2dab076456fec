"""Geometry by its own laws, by independent solutions, and by where a painted dot ends up."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flr.landmarks.geometry import (
    compose,
    fit_similarity,
    invert,
    mirror,
    resize,
    similarity,
    tight_box,
    transform,
    warp,
    warp_batch,
)  # fmt: skip
from tests.landmarks.painted import dot, paint

angles, scales = st.floats(-3.1, 3.1), st.floats(0.2, 4.0)
shifts = st.tuples(st.floats(-50, 50), st.floats(-50, 50))


def a_map(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    return similarity(angle, scale, np.zeros(2), np.array(shift))


def skewed(seed: int) -> np.ndarray:
    """(4, 2, 3) maps that are no similarities, well away from singular."""
    random = np.random.default_rng(seed)
    return np.concatenate([np.eye(2) * 2 + random.uniform(-0.6, 0.6, (4, 2, 2)), random.uniform(-9, 9, (4, 2, 1))], -1)


def some_points(seed: int, shape: tuple[int, ...] = (4, 6, 2)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-100, 100, shape)


@given(seed=st.integers(0, 10**6))
def test_transform_compose_and_invert_in_numpy_and_torch(seed):
    first, second, points = skewed(seed), skewed(seed + 1), some_points(seed)
    full = np.concatenate([points, np.ones((4, 6, 1))], -1)
    expected = np.einsum("nij,nkj->nki", first, full)
    np.testing.assert_allclose(transform(first, points), expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        transform(compose(second, first), points), transform(second, transform(first, points)), rtol=1e-12, atol=1e-9
    )
    np.testing.assert_allclose(transform(invert(first), transform(first, points)), points, rtol=1e-10, atol=1e-9)
    for function, arguments in ((transform, (first, points)), (compose, (second, first)), (invert, (first,))):
        tensors = [torch.from_numpy(argument) for argument in arguments]
        result = function(*tensors)
        assert result.dtype == torch.float64
        np.testing.assert_allclose(result.numpy(), function(*arguments), rtol=1e-13, atol=1e-12)


def test_one_map_serves_many_faces():
    points = some_points(0)
    np.testing.assert_allclose(
        transform(mirror(50), points), np.stack([transform(mirror(50), face) for face in points])
    )
    np.testing.assert_allclose(compose(mirror(50), skewed(0))[2], compose(mirror(50), skewed(0)[2]))


def test_mirror_by_hand_and_twice():
    np.testing.assert_allclose(transform(mirror(10), np.array([[0.0, 3.0], [9.0, 4.0]])), [[9, 3], [0, 4]])
    np.testing.assert_allclose(compose(mirror(37), mirror(37)), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_resize_keeps_the_picture_edges():
    corners = np.array([[-0.5, -0.5], [9.5, 19.5]])
    np.testing.assert_allclose(transform(resize(3.0, 0.5), corners), [[-0.5, -0.5], [29.5, 9.5]])


def test_similarity_turns_x_towards_y():
    turn = similarity(np.pi / 2, 2.0, np.array([5.0, 5.0]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(transform(turn, np.array([[6.0, 5.0], [5.0, 5.0]])), [[1, 3], [1, 1]], atol=1e-12)


@given(angles, scales, shifts, st.integers(0, 99))
def test_fit_recovers_a_known_similarity(angle, scale, shift, seed):
    source = some_points(seed, (5, 2))
    known = a_map(angle, scale, shift)
    np.testing.assert_allclose(fit_similarity(source, transform(known, source)), known, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_fit_is_the_least_squares_solution(seed):
    source, target = some_points(seed, (7, 2)), some_points(seed + 50, (7, 2))
    rows: list[list[float]] = []
    for x, y in source:
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(fit_similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-9)


def test_tight_box_ignores_unlabelled_points():
    points = np.array([[[1.0, 2], [5, 9], [99, -99]], [[1, 2], [3, 4], [5, 6]]])
    labelled = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(tight_box(points, labelled), [[1, 2, 5, 9], [np.nan] * 4])
    points[0, 2] = np.nan
    np.testing.assert_array_equal(tight_box(points, labelled)[0], [1, 2, 5, 9])


WARPS = {
    "same": (0.0, 1.0), "turned": (0.6, 1.0), "grown": (0.2, 1.9), "shrunk": (-0.4, 0.6), "shrunk by area": (0.0, 0.31),
    "shrunk much": (0.5, 0.17), "upside down": (3.0, 0.45),
}  # fmt: skip


@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize(("angle", "scale"), WARPS.values(), ids=WARPS)
def test_a_dot_stays_under_its_landmark_through_warp(angle, scale, mirrored):
    sigma = max(2.0, 1.5 / scale)
    for at, target in (((140.3, 121.7), (30.2, 24.6)), ((151.0, 98.5), (22.75, 33.0))):
        image = paint(np.array([at]), 307, 253, sigma, (240,))
        affine = similarity(angle, scale, np.array(at), np.array(target))
        if mirrored:
            affine = compose(mirror(61), affine)
        crop = warp(image, affine, (61, 57))
        assert crop.shape == (57, 61)
        landmark = transform(affine, np.array([at]))[0]
        found, mass = dot(crop, landmark, radius=min(round(4.5 * sigma * scale) + 1, 22))
        assert np.linalg.norm(found - landmark) < 0.06
        assert mass == pytest.approx(240 * 2 * np.pi * (sigma * scale) ** 2, rel=0.1)


@pytest.mark.parametrize("stretch", [(0.2, 0.8), (0.3, 0.25)])
def test_a_dot_stays_under_its_landmark_where_the_sides_shrink_differently(stretch):
    at = np.array([[140.3, 121.7]])
    affine = compose(np.array([[1.0, 0, 0], [0, 1, -25]]), resize(*stretch))
    landmark = transform(affine, at)[0]
    found, _ = dot(warp(paint(at, 307, 253, 7.0, (240,)), affine, (90, 140)), landmark, radius=23)
    assert np.linalg.norm(found - landmark) < 0.06


def test_warp_shrinks_by_area_and_repeats_edges():
    checks = (np.indices((240, 240)).sum(0) % 2 * 255).astype(np.uint8)  # bilinear taps alone would alias
    small = warp(checks, resize(0.25, 0.25), (60, 60))
    assert np.abs(small.astype(int) - 128).max() <= 1
    colour = np.full((20, 20, 3), (10, 120, 250), np.uint8)
    np.testing.assert_array_equal(warp(colour, np.array([[1.0, 0, 30], [0, 1, 30]]), (50, 50))[0, 0], (10, 120, 250))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@given(angle=st.floats(-1, 1), scale=st.floats(0.6, 1.8), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_dot_stays_under_its_landmark_through_warp_batch(kind, angle, scale, flip, seed):
    random = np.random.default_rng(seed)
    at, target = random.uniform(40, 60, (2, 1, 2)), random.uniform(20, 28, (2, 1, 2))
    images = torch.from_numpy(np.stack([paint(p, 96, 104, 2.5, (240,)) for p in at]))[:, None].repeat(1, 3, 1, 1)
    affine = np.stack(
        [similarity(angle, scale, at[0, 0], target[0, 0]), similarity(-angle, 1.0, at[1, 0], target[1, 0])]
    )
    if flip:
        affine = compose(mirror(48), affine)
    out = warp_batch(images.to(kind), torch.from_numpy(affine), 48)
    assert out.shape == (2, 3, 48, 48)
    assert out.dtype == torch.float32
    landmarks = transform(affine, at)[:, 0]
    for picture, landmark in zip(out.numpy(), landmarks, strict=True):
        for channel in picture:
            assert np.linalg.norm(dot(channel, landmark, 19)[0] - landmark) < 0.06


def test_transform_stays_exact_under_autocast():
    points = torch.rand(3, 5, 2) * 127
    affine = torch.from_numpy(skewed(0)[:3]).float()
    expected = transform(affine, points)
    with torch.autocast("cpu", torch.bfloat16):
        inside = transform(affine, points)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
