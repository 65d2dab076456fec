"""The check of a scheme's pairs against a mean face."""

import dataclasses

import numpy as np
import pytest

from flr.errors import UserError
from flr.landmarks.scheme import CELEBA5
from flr.landmarks.symmetry import check_mirror

FACE = np.array([[30.0, 40.0], [70.0, 41.0], [50.5, 60.0], [35.0, 80.0], [66.0, 80.0]])


@pytest.mark.parametrize("pairs", [(), ((0, 1),), ((0, 2), (3, 4)), ((0, 4), (1, 3))])
def test_pairs_that_do_not_fit_are_refused_with_the_likely_ones(pairs: tuple[tuple[int, int], ...]) -> None:
    scheme = dataclasses.replace(CELEBA5, name="mine", pairs=pairs)
    with pytest.raises(UserError, match=r"likely \[\[right_eye, left_eye\], \[mouth_right, mouth_left\]\]"):
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
