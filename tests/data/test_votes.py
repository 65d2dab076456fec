"""Votes over a pyramid: where a face is, that a face seen by several levels scores more, and that none is found twice."""

import numpy as np
import pytest

from flr.data.finders.votes import LARGEST, PAD, SMALLEST, STRIDE, UNIT, find_votes, merge


class Answering:
    """A network that knows the faces (x, y, size) of an image, and sees those in its range of sizes."""

    def __init__(self, faces: list[tuple[float, float, float]], width: int) -> None:
        self.faces, self.width, self.levels = faces, width, 0

    def __call__(self, level: np.ndarray) -> np.ndarray:
        self.levels += 1
        scale = (level.shape[1] - 2 * PAD) / self.width
        maps = np.zeros((4, -(-level.shape[0] // STRIDE), -(-level.shape[1] // STRIDE)), np.float32)
        maps[0] = -8
        for x, y, size in self.faces:
            if SMALLEST <= size * scale <= LARGEST:
                at = (np.array([x, y]) + 0.5) * scale + PAD
                column, row = (at / STRIDE).astype(int)
                maps[:, row, column] = (3, *(at / STRIDE - (column + 0.5, row + 0.5)), np.log2(size * scale / UNIT))
        return maps


@pytest.mark.parametrize("face", [(150, 110, 30), (160, 120, 100), (200, 100, 200), (3, 5, 40)])
def test_a_face_is_found_where_it_is(face: tuple[float, float, float]) -> None:
    network = Answering([face], 320)
    found = merge(find_votes(np.zeros((240, 320), np.uint8), network))
    assert len(found) == 1
    np.testing.assert_allclose(found[0, :3], face, atol=2)
    assert found[0, 0] == pytest.approx(face[0], abs=0.2)  # heights are rounded otherwise than widths


def test_a_small_face_scores_almost_as_a_large_one_though_fewer_levels_see_it() -> None:
    few, many = (60, 60, 16), (220, 140, 64)  # only the first level is fine enough for the small one
    found = merge(find_votes(np.zeros((240, 320), np.uint8), Answering([few, many], 320)))
    assert sorted(np.rint(found[:, 2])) == [16, 64]
    assert 0.6 < found[1, 3] / found[0, 3] <= 1  # without the division by levels it would be 0.25


def test_a_vote_of_one_level_alone_scores_less() -> None:
    network = Answering([(160, 120, 100)], 320)
    votes = find_votes(np.zeros((240, 320), np.uint8), network)
    assert merge(votes[:1])[0, 3] < 0.5 * merge(votes)[0, 3]


def test_a_face_that_fills_the_image_scores_as_any_other() -> None:
    faces = [(160, 120, 230), (160, 120, 100)]
    scores = [merge(find_votes(np.zeros((240, 320), np.uint8), Answering([face], 320)))[0, 3] for face in faces]
    assert scores[0] > 0.7 * scores[1]  # 0.5 if the pyramid ended where the image has 22 pixels


def test_merging_as_far_as_a_score_gives_the_faces_above_it() -> None:
    pair = [(60.0, 60.0, 16.0), (220.0, 140.0, 64.0)]
    votes = find_votes(np.zeros((240, 320), np.uint8), Answering(pair, 320))
    every = merge(votes)
    np.testing.assert_allclose(merge(votes, 1.0), every[every[:, 3] >= 1])
    assert len(merge(votes, 1.0)) == 1


def test_neighbours_stay_two_faces_and_an_empty_image_has_none() -> None:
    pair = [(100.0, 100.0, 50.0), (145.0, 100.0, 50.0)]
    assert len(merge(find_votes(np.zeros((240, 320), np.uint8), Answering(pair, 320)))) == 2
    nested = [(160.0, 120.0, 100.0), (150.0, 110.0, 45.0)]
    assert len(merge(find_votes(np.zeros((240, 320), np.uint8), Answering(nested, 320)))) == 1
    assert merge(find_votes(np.zeros((240, 320), np.uint8), Answering([], 320))).shape == (0, 4)


@pytest.mark.parametrize(("shape", "levels"), [((1, 320), 1), ((320, 1), 1), ((20, 20), 2), ((240, 320), 10)])
def test_images_of_any_shape_have_a_pyramid(shape: tuple[int, int], levels: int) -> None:
    network = Answering([], shape[1])
    assert merge(find_votes(np.zeros(shape, np.uint8), network)).shape == (0, 4)
    assert network.levels == levels


def vote(x: float, y: float, side: float, probability: float, level: int) -> list[float]:
    return [x, y, side, probability, level, np.log2(side / UNIT) - level / 2]


def test_the_box_lies_on_a_face_and_not_between_two() -> None:
    """Votes for the box between two faces overlap those for both, so that its score is the highest."""
    faces = [vote(x, 100, 100, 0.9, level) for x, level in ((100, 3), (100, 4), (170, 4), (170, 5))]
    between = vote(135, 100, 110, 0.4, 6)
    found = merge(np.array([*faces, between]))
    assert min(abs(found[0, 0] - 100), abs(found[0, 0] - 170)) < 12


def test_the_box_of_a_face_is_not_pulled_to_what_is_around_it() -> None:
    face = [vote(100, 100, 100, 0.8, level) for level in (3, 4)]
    around = [vote(110, 110, 170, 0.35, level) for level in (5, 6)]
    found = merge(np.array([*face, *around]))
    np.testing.assert_allclose(found[0, :3], (100, 100, 100), atol=8)
