"""Faces drawn: in their colours, where their points are, at any size, and never a crash."""

from itertools import pairwise

import numpy as np
import pytest

from flr.landmarks.draw import ERROR, PREDICTION, TRUTH, draw_face, draw_landmarks, sheet
from flr.landmarks.outlines import OUTLINES, is_closed, outlines_of, smooth
from flr.landmarks.scheme import CELEBA5, IBUG68, SCHEMES, Scheme
from tests.fakes import ibug

FACE = ibug.faces(1, (200, 200))[0].astype(np.float64)


def at(image: np.ndarray, point: np.ndarray) -> np.ndarray:
    x, y = np.rint(point).astype(int)
    return image[y, x]


def test_truth_is_green_prediction_magenta_and_the_error_between():
    truth, points = np.array([[20.0, 20], [60, 60]]), np.array([[80.0, 20], [60, 90]])
    drawn = draw_face(np.zeros((100, 100, 1), np.uint8), truth, points, np.array([True, False]), 100)
    assert (at(drawn, truth[0]) == TRUTH).all() and (at(drawn, points[0]) == PREDICTION).all()
    np.testing.assert_allclose(drawn[20, 40:60], np.tile(ERROR, (20, 1)), atol=30)
    assert (at(drawn, truth[1]) == 0).all()  # it has no label
    assert (at(drawn, points[1]) == PREDICTION).all() and (drawn[75, 60] == 0).all()


@pytest.mark.parametrize("side", [96, 400, 4000])
def test_dots_grow_with_the_face(side):
    picture, scale = np.zeros((side, side), np.uint8), side / 200
    drawn = draw_landmarks(picture, FACE[None] * scale)
    share = (drawn.max(-1) > 128).mean()
    assert 0.002 < share < 0.06 if side > 96 else share < 0.2
    assert drawn.shape == (side, side, 3)
    for point in FACE * scale:
        assert at(drawn, point)[0] > 80 and at(drawn, point)[1] < 60


def test_lines_indices_boxes_and_captions_each_add_something():
    image = np.full((200, 200, 3), 60, np.uint8)
    bare = draw_landmarks(image, FACE[None])
    box = np.array([[30.0, 40, 170, 180]])
    for more in ({"lines": True, "scheme": IBUG68}, {"indices": True}, {"boxes": box}, {"captions": ["1.00"]}):
        assert (draw_landmarks(image, FACE[None], **more) != bare).any(), more
    assert (image == 60).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -1e6], ids=str)
def test_points_that_are_none_are_not_drawn(bad):
    points = np.full((2, 68, 2), bad)
    points[1, :] = 5.0  # all in one place
    boxes = np.full((2, 4), bad)
    drawn = draw_landmarks(np.zeros((50, 40, 3), np.uint8), points, boxes, ["a", "b"], IBUG68, True, True)
    assert drawn.shape == (50, 40, 3)
    draw_face(np.zeros((32, 32, 1), np.uint8), points[0], points[1], np.ones(68, bool), 64, "x")


def test_no_face_is_the_picture_alone():
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    np.testing.assert_array_equal(draw_landmarks(image, np.zeros((0, 68, 2))), image)


def test_a_sheet_lays_out_row_by_row():
    faces = [np.full((10, 10, 3), i, np.uint8) for i in range(3)]
    out = sheet(faces, 2)
    assert out.shape == (24, 24, 3) and out[5, 19, 0] == 1 and out[19, 5, 0] == 2 and out[19, 19, 0] == 255


# -- outlines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [SCHEMES[name] for name in OUTLINES], ids=str)
def test_a_mirrored_face_has_the_mirrored_outlines(scheme):
    """Each line's pieces from point to point are those of another line's partners, or of its own."""

    def pieces(order: np.ndarray) -> set[frozenset[frozenset[int]]]:
        lines = outlines_of(scheme).values()
        return {frozenset(frozenset(order[list(ends)]) for arc in arcs for ends in pairwise(arc)) for arcs in lines}

    assert pieces(np.arange(len(scheme))) == pieces(scheme.mirror_order) != set()
    for arcs in outlines_of(scheme).values():
        for before, after in pairwise(arcs):
            assert before[-1] == after[0]


@pytest.mark.parametrize("name", ["right_eye", "left_eye", "outer_lip", "inner_lip"])
def test_a_closed_line_is_smooth_passes_its_points_and_does_not_cross_itself(name):
    arcs = OUTLINES["ibug68"][name]
    curve = smooth(FACE, arcs)
    for i in {i for arc in arcs for i in arc}:
        assert np.linalg.norm(curve - FACE[i], axis=1).min() < 1e-9
    middle = curve.mean(0)
    angle = np.unwrap(np.arctan2(*(curve - middle).T))
    assert is_closed(arcs) and abs(abs(angle[-1] - angle[0]) - 2 * np.pi) < 0.6
    assert len(np.unique(curve, axis=0)) == len(curve)


def test_a_scheme_of_ones_own_has_no_outlines_even_under_a_known_name():
    own = Scheme("ibug68", ("a", "b"), (), {}, {}, "box")
    assert not outlines_of(own)
    assert outlines_of(CELEBA5)
