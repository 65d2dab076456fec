"""Head pose against views of known angles, and what it must not say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flr.data.pose import head_pose, mean_face_3d
from flr.landmarks.definition import parse_scheme
from flr.landmarks.scheme import COFW29, IBUG68, WFLW98, get_scheme


def view(yaw: float, pitch: float, roll: float, distance: float = 900.0) -> np.ndarray:
    """(68, 2) the mean face as a pinhole camera sees it, turned about y, then x, then in the image's plane."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    about_y, about_x = (
        np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]),
        np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]),
    )
    seen = mean_face_3d() @ (np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ about_x @ about_y).T
    return seen[:, :2] * distance / (distance - seen[:, 2:]) * 1.7 + 100


@pytest.mark.parametrize("name", ["ibug68", "kaggle15", "celeba5"])
@given(yaw=st.floats(-50, 50), pitch=st.floats(-30, 30), roll=st.floats(-60, 60))
def test_a_known_view_is_found_again(name: str, yaw: float, pitch: float, roll: float) -> None:
    points = IBUG68.reduce(view(yaw, pitch, roll)[None], name)
    found = head_pose(points, np.ones(points.shape[:2], bool), get_scheme(name))
    assert found is not None
    np.testing.assert_allclose(found, [[yaw, pitch, roll]], atol=3)


def test_signs_mean_what_they_say() -> None:
    """Turned to the viewer's right, the nose tip moves right; looking up, it moves up; roll is clockwise."""
    straight, right, up, clockwise = (view(*angles) for angles in ((0, 0, 0), (20, 0, 0), (0, 20, 0), (0, 0, 20)))
    assert right[30, 0] > straight[30, 0] + 5 and up[30, 1] < straight[30, 1] - 5
    assert clockwise[45, 1] > clockwise[36, 1]  # the viewer's right eye goes down


def test_missing_points_are_not_used() -> None:
    points, labelled = view(25, 5, -10)[None], np.ones((1, 68), bool)
    labelled[0, 40:60] = False
    points = np.where(labelled[..., None], points, np.nan)
    found = head_pose(points, labelled, IBUG68)
    assert found is not None
    np.testing.assert_allclose(found, [[25, 5, -10]], atol=3)
    labelled[:, 20:] = False
    assert np.isnan(head_pose(points, labelled, IBUG68)).all()  # three points of the brow are no pose


def test_other_schemes() -> None:
    alone = parse_scheme({"names": ["a", "b"], "pairs": [["a", "b"]], "normaliser": "box"})
    assert head_pose(np.zeros((1, 2, 2)), np.ones((1, 2), bool), alone) is None
    assert "celeba5" in COFW29.reductions  # through which its pose is found
    few = np.zeros((1, 29, 2))
    for place, group in enumerate(COFW29.reductions["celeba5"]):
        few[0, list(group)] = IBUG68.reduce(view(-20, 10, 5), "celeba5")[place]
    wide = np.zeros((1, 98, 2))
    for place, group in enumerate(WFLW98.reductions["ibug68"]):
        wide[0, list(group)] = view(30, 0, 0)[place]
    for points, scheme, angles in ((wide, WFLW98, [30, 0, 0]), (few, COFW29, [-20, 10, 5])):
        found = head_pose(points, points.any(-1), scheme)
        assert found is not None
        np.testing.assert_allclose(found, [angles], atol=4)
