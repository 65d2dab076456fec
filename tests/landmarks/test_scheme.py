"""Schemes: the tables of numbers against the data sets' own, and what is derived from them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flr.errors import UserError
from flr.landmarks.scheme import CELEBA5, IBUG68, KAGGLE15, SCHEMES, get_scheme

RIGHT_EYE, LEFT_EYE = [*range(36, 42)], [*range(42, 48)]
# Each point of the small schemes as the 68-point indices whose mean it is, in the order of the sets' own columns.
TO_15 = [LEFT_EYE, RIGHT_EYE, [42], [45], [39], [36], [22], [26], [21], [17], [30], [54], [48], [51], [57]]
TO_5 = [RIGHT_EYE, LEFT_EYE, [30], [48], [54]]

every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def random_points(seed: int, scheme=IBUG68, faces: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, (faces, len(scheme), 2))


@every_scheme
def test_tables_are_consistent(scheme):
    count = len(scheme)
    assert count == {"ibug68": 68, "kaggle15": 15, "celeba5": 5}[scheme.name]
    assert len(set(scheme.names)) == count
    assert sorted(i for group in scheme.regions.values() for i in group) == list(range(count))
    paired = [i for pair in scheme.pairs for i in pair]
    assert len(set(paired)) == len(paired)
    assert len(scheme.pairs) == {"ibug68": 29, "kaggle15": 6, "celeba5": 2}[scheme.name]
    assert scheme.normaliser in scheme.normalisers
    assert {"box", "diagonal"} < set(scheme.normalisers)


@every_scheme
def test_mirror_order_is_an_involution_that_swaps_the_pairs(scheme):
    order = scheme.mirror_order
    np.testing.assert_array_equal(order[order], np.arange(len(scheme)))
    assert {(i, int(k)) for i, k in enumerate(order) if i < k} == {tuple(sorted(pair)) for pair in scheme.pairs}


@pytest.mark.parametrize("scheme", [KAGGLE15, CELEBA5], ids=repr)
def test_mirror_pairs_carry_opposite_sides_in_their_names(scheme):
    for i, k in enumerate(scheme.mirror_order):
        swapped = scheme.names[i].replace("left", "L").replace("right", "left").replace("L", "right")
        assert scheme.names[k] == swapped


def test_68_midline_points_are_their_own_mirror():
    fixed = np.flatnonzero(IBUG68.mirror_order == np.arange(68))
    assert fixed.tolist() == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


@pytest.mark.parametrize(("to", "groups"), [("kaggle15", TO_15), ("celeba5", TO_5)])
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_68_reduces_by_the_index_maps(to, groups, seed):
    points = random_points(seed)
    expected = np.stack([points[:, group].mean(1) for group in groups], 1)
    np.testing.assert_allclose(IBUG68.reduce(points, to), expected)
    np.testing.assert_allclose(IBUG68.reduce(torch.from_numpy(points), to).numpy(), expected)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_two_reductions_are_the_direct_one(kind):
    points = kind(random_points(1))
    twice = KAGGLE15.reduce(IBUG68.reduce(points, "kaggle15"), "celeba5")
    np.testing.assert_allclose(np.asarray(twice), np.asarray(IBUG68.reduce(points, "celeba5")))


@pytest.mark.parametrize(("big", "small"), [(IBUG68, KAGGLE15), (IBUG68, CELEBA5), (KAGGLE15, CELEBA5)])
def test_mirror_and_reduction_commute(big, small):
    points = random_points(2, big)
    flip = np.array([-1.0, 1.0])
    first = big.reduce(points[:, big.mirror_order] * flip, small.name)
    np.testing.assert_allclose(first, big.reduce(points, small.name)[:, small.mirror_order] * flip)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_flags_reduce_by_all(kind):
    labelled = np.ones((2, 68), bool)
    labelled[0, 40] = False  # one point of the right eye
    labelled[1, 30] = False  # the nose tip
    reduced = IBUG68.reduce(kind(labelled), "celeba5")
    np.testing.assert_array_equal(np.asarray(reduced), [[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]])
    assert "bool" in str(reduced.dtype)


def test_reduction_to_itself_changes_nothing():
    points = random_points(3)
    assert IBUG68.reduce(points, "ibug68") is points


def test_distances_by_hand():
    points = np.zeros((1, 68, 2))
    points[0, 36], points[0, 45] = (10, 20), (40, 60)
    points[0, 37:42], points[0, 42:45], points[0, 46:48] = (10, 20), (40, 20), (40, 20)
    points[0, 8], points[0, 0] = (30, 100), (-20, 0)
    known = np.ones((1, 68), bool)
    assert IBUG68.distance(points, known) == pytest.approx([50.0])
    assert IBUG68.distance(points, known, "interocular") == pytest.approx([50.0])
    assert IBUG68.distance(points, known, "interpupil") == pytest.approx([np.hypot(30, 40 / 6)])
    assert IBUG68.distance(points, known, "box") == pytest.approx([np.sqrt(60 * 100)])
    assert IBUG68.distance(points, known, "diagonal") == pytest.approx([np.hypot(60, 100)])


@pytest.mark.parametrize(
    ("scheme", "name", "at"),
    [
        (KAGGLE15, None, (0, 1)),
        (KAGGLE15, "interpupil", (0, 1)),
        (KAGGLE15, "interocular", (3, 5)),
        (CELEBA5, None, (0, 1)),
    ],
)
def test_distances_of_the_small_schemes(scheme, name, at):
    points = random_points(4, scheme)
    known = np.ones(points.shape[:2], bool)
    expected = np.linalg.norm(points[:, at[0]] - points[:, at[1]], axis=1)
    np.testing.assert_allclose(scheme.distance(points, known, name), expected)


def test_box_distances_see_labelled_points_only():
    points, known = random_points(5, CELEBA5), np.ones((3, 5), bool)
    points[:, 3], known[:, 3] = 1e6, False
    rest = points[:, [0, 1, 2, 4]]
    size = rest.max(1) - rest.min(1)
    np.testing.assert_allclose(CELEBA5.distance(points, known, "box"), np.sqrt(size.prod(1)))
    np.testing.assert_allclose(CELEBA5.distance(points, known, "diagonal"), np.hypot(*size.T))


@every_scheme
def test_distance_is_nan_where_a_needed_point_is_unlabelled(scheme):
    points = random_points(6, scheme, 1)
    for name, groups in scheme.distances.items():
        needed = {i for group in groups for i in group}
        for k in range(len(scheme)):
            known = np.ones((1, len(scheme)), bool)
            known[0, k] = False
            assert np.isnan(scheme.distance(points, known, name)[0]) == (k in needed)


@every_scheme
def test_distance_is_nan_where_it_is_zero_or_no_point_is_known(scheme):
    for name in scheme.normalisers:
        same = np.full((1, len(scheme), 2), 7.0)
        assert np.isnan(scheme.distance(same, np.ones(same.shape[:2], bool), name)).all()
        assert np.isnan(scheme.distance(random_points(7, scheme), np.zeros((3, len(scheme)), bool), name)).all()


def test_unknown_names_are_told_with_the_nearest():
    points, known = random_points(8), np.ones((3, 68), bool)
    with pytest.raises(UserError, match="did you mean 'interocular'"):
        IBUG68.distance(points, known, "interocullar")
    with pytest.raises(UserError, match="did you mean 'kaggle15'"):
        IBUG68.reduce(points, "kagle15")
    with pytest.raises(UserError, match="ibug68"):
        get_scheme("ibug86")
    with pytest.raises(UserError, match="does not reduce"):
        CELEBA5.reduce(points[:, :5], "ibug68")


@every_scheme
def test_get_scheme(scheme):
    assert get_scheme(scheme.name) is scheme
