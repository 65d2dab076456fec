"""The check of a scheme's pairs against a mean face."""

import dataclasses
import re

import numpy as np
import pytest

from flr.errors import UserError
from flr.landmarks.scheme import CELEBA5
from flr.landmarks.symmetry import check_mirror

FACE = np.array([[30.0, 40.0], [70.0, 41.0], [50.5, 60.0], [35.0, 80.0], [66.0, 80.0]])


LACKS = "the scheme lacks pairs; by the labels they are likely [[right_eye, left_eye], [mouth_right, mouth_left]]"


@pytest.mark.parametrize(("pairs", "message"), [
    ((), LACKS), (((0, 1),), LACKS),
    (((0, 2), (3, 4)), "the scheme pairs [right_eye, nose], but by the labels the pairs are likely [right_eye, left_eye];"),
    (((0, 4), (1, 3)), "the scheme pairs [right_eye, mouth_left], [left_eye, mouth_right], but by the labels the pairs are "
     "likely [right_eye, left_eye], [mouth_right, mouth_left];"),
])  # fmt: skip
def test_pairs_that_do_not_fit_are_refused_with_the_likely_ones(
    pairs: tuple[tuple[int, int], ...], message: str
) -> None:
    scheme = dataclasses.replace(CELEBA5, name="mine", pairs=pairs)
    with pytest.raises(UserError, match=re.escape(message)):
        check_mirror(FACE, scheme, "augment.mirror=0.5", "augment.mirror=0")


@pytest.mark.parametrize(
    "face",
    [
        FACE,
        FACE + [[12.0, 0], [-18.0, 0], [25.0, 0], [12.0, 0], [-10.0, 0]],  # heads that all turn to one side
        np.full((5, 2), np.nan),
        np.where(np.arange(5)[:, None] == 1, np.nan, FACE),
    ],
)
def test_faces_that_no_other_pairs_fit_pass(face: np.ndarray) -> None:
    check_mirror(face, CELEBA5, "tta=true", "tta=false")
