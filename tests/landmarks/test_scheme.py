"""Schemes: the tables of numbers against the data sets' own, and what is derived from them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flr.errors import UserError
from flr.landmarks.scheme import AFLW19, CELEBA5, COFW29, IBUG68, KAGGLE15, MUCT76, SCHEMES, WFLW98, get_scheme
from tests.fakes import cofw, ibug, wflw

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
    points_and_pairs = {
        "ibug68": (68, 29), "muct76": (76, 34), "wflw98": (98, 44), "cofw29": (29, 11), "aflw19": (19, 8), "lapa106": (106, 48),
        "ibug70": (70, 30), "kaggle15": (15, 6), "celeba5": (5, 2),
    }  # fmt: skip
    assert (count, len(scheme.pairs)) == points_and_pairs[scheme.name]
    assert len(set(scheme.names)) == count
    assert sorted(i for group in scheme.regions.values() for i in group) == list(range(count))
    paired = [i for pair in scheme.pairs for i in pair]
    assert len(set(paired)) == len(paired)
    assert scheme.normaliser in scheme.normalisers
    assert {"box", "diagonal"} < set(scheme.normalisers)


@every_scheme
def test_mirror_order_is_an_involution_that_swaps_the_pairs(scheme):
    order = scheme.mirror_order
    np.testing.assert_array_equal(order[order], np.arange(len(scheme)))
    assert {(i, int(k)) for i, k in enumerate(order) if i < k} == {tuple(sorted(pair)) for pair in scheme.pairs}


@pytest.mark.parametrize("scheme", [KAGGLE15, CELEBA5, COFW29, AFLW19], ids=repr)
def test_mirror_pairs_carry_opposite_sides_in_their_names(scheme):
    for i, k in enumerate(scheme.mirror_order):
        swapped = scheme.names[i].replace("left", "L").replace("right", "left").replace("L", "right")
        assert scheme.names[k] == swapped


def test_68_midline_points_are_their_own_mirror():
    fixed = np.flatnonzero(IBUG68.mirror_order == np.arange(68))
    assert fixed.tolist() == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


@pytest.mark.parametrize(("to", "groups"), [("kaggle15", TO_15), ("celeba5", TO_5)])
@given(seed=st.integers(0, 99))
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


@pytest.mark.parametrize(
    ("big", "small"), [(big, SCHEMES[small]) for big in SCHEMES.values() for small in big.reductions], ids=repr
)
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
        (WFLW98, None, (60, 72)),
        (WFLW98, "interpupil", (96, 97)),
        (COFW29, None, (8, 9)),
        (COFW29, "interpupil", (16, 17)),
        (MUCT76, None, (31, 36)),
        (MUCT76, "interocular", (27, 32)),
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


# ---------------------------------------------------------------- the numbered schemes, by the real sets' mean faces


def asymmetry(face: np.ndarray, order: np.ndarray) -> float:
    """How far a face is from its own mirror image, in sides of its box."""
    face = (face - (face.max(0) + face.min(0)) / 2) / np.ptp(face, axis=0).max()
    return float(np.abs(face[order] * [-1, 1] - face).max())


@pytest.mark.parametrize(("scheme", "mean"), [(WFLW98, wflw.MEAN), (COFW29, cofw.MEAN)], ids=["wflw98", "cofw29"])
def test_pairs_of_real_mean_faces(scheme, mean):
    assert asymmetry(mean, scheme.mirror_order) < 0.06
    for small in scheme.reductions:
        assert asymmetry(scheme.reduce(mean, small), SCHEMES[small].mirror_order) < 0.06
    mirrored = (mean - mean.mean(0)) * [-1, 1] + mean.mean(0)
    _, partner = linear_sum_assignment(np.linalg.norm(mirrored[:, None] - mean, axis=-1))
    np.testing.assert_array_equal(partner, scheme.mirror_order)  # no other pairs fit better


@pytest.mark.parametrize(
    ("scheme", "mean"), [(WFLW98, wflw.layout()), (COFW29, cofw.layout())], ids=["wflw98", "cofw29"]
)
def test_regions_lie_where_they_say(scheme, mean):
    """Eyes at y = 0 and y down, x to the viewer's right: what is the subject's left has the larger x."""
    middle = {region: mean[list(group)].mean(0) for region, group in scheme.regions.items()}
    for part in ("brow", "eye"):
        assert middle[f"right_{part}"][0] < -0.1 and middle[f"left_{part}"][0] > 0.1
    chin = "chin" if scheme is COFW29 else "jaw"
    mouth = next(middle[region] for region in ("mouth", "outer_lip") if region in middle)
    assert (
        middle["left_brow"][1]
        < middle["left_eye"][1]
        < middle["nose"][1]
        < mouth[1]
        < mean[scheme.regions[chin], 1].max()
    )


@pytest.mark.parametrize(
    ("scheme", "mean"), [(WFLW98, wflw.layout()), (COFW29, cofw.layout())], ids=["wflw98", "cofw29"]
)
def test_reduced_points_are_those_of_that_name(scheme, mean):
    points = dict(zip(KAGGLE15.names, scheme.reduce(mean, "kaggle15"), strict=True))
    x, y = ({name: point[axis] for name, point in points.items()} for axis in (0, 1))
    order = [
        "right_brow_outer",
        "right_eye_outer",
        "right_eye",
        "right_eye_inner",
        "nose_tip",
        "left_eye_inner",
        "left_eye",
    ]
    assert sorted(order, key=x.get) == order
    assert sorted(["left_brow_outer", "left_eye_outer", "left_brow_inner"], key=x.get)[0] == "left_brow_inner"
    down = ["left_brow_inner", "left_eye", "nose_tip", "mouth_top", "mouth_left", "mouth_bottom"]
    assert sorted(down, key=y.get) == down
    assert x["mouth_right"] < x["mouth_top"] < x["mouth_left"]
    np.testing.assert_array_equal(
        scheme.reduce(mean, "celeba5"), KAGGLE15.reduce(scheme.reduce(mean, "kaggle15"), "celeba5")
    )


def test_wflw_as_68_points():
    """Corners and middles are the same points; a jaw of 33 points has every other one of 17."""
    reduced = WFLW98.reduce(np.arange(98.0)[:, None].repeat(2, 1), "ibug68")[:, 0].astype(int)
    assert reduced[[0, 8, 16]].tolist() == [0, 16, 32]
    assert reduced[[36, 39, 42, 45]].tolist() == [60, 64, 68, 72]
    assert reduced[[48, 51, 54, 57, 60, 64]].tolist() == [76, 79, 82, 85, 88, 92]
    assert len(set(reduced)) == 68 and (np.diff(reduced) > 0).all()
    for region, group in IBUG68.regions.items():
        assert set(reduced[list(group)]) <= set(WFLW98.regions[region])
    face = WFLW98.reduce(wflw.layout(), "ibug68")
    assert np.abs(face - ibug.layout()).max() < 0.12 and WFLW98.reductions["celeba5"] == (
        (96,),
        (97,),
        (54,),
        (76,),
        (82,),
    )


@every_scheme
@pytest.mark.parametrize("name", ["interpupil", "interocular"])
def test_a_normaliser_survives_reduction(scheme, name):
    """So that an error means the same in each; but pupils are none of the 68 points."""
    points, known = random_points(9, scheme), np.ones((3, len(scheme)), bool)
    for small in map(get_scheme, scheme.reductions):
        if (
            name in scheme.distances
            and name in small.distances
            and not (scheme.names[-1] == "left_pupil" and (small, name) == (IBUG68, "interpupil"))
        ):
            reduced = scheme.reduce(points, small.name), scheme.reduce(known, small.name)
            np.testing.assert_allclose(small.distance(*reduced, name), scheme.distance(points, known, name))
