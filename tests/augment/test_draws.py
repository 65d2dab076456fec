"""Random numbers as functions of (seed, epoch, face): repeatable, uniform, independent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flr.augment.draws import order, uniform

FACES = np.arange(4000)


@given(st.integers(0, 2**31), st.integers(0, 10**4), st.permutations(range(9)))
def test_a_face_keeps_its_draw_in_any_company(seed, epoch, faces):
    faces = np.array(faces)
    together = uniform(seed, epoch, np.arange(9), 5)
    np.testing.assert_array_equal(uniform(seed, epoch, faces, 5), together[faces])
    np.testing.assert_array_equal(uniform(seed, epoch, faces[:1], 5), together[faces[:1]])
    np.testing.assert_array_equal(uniform(seed, epoch, faces, 3), together[faces, :3])


@pytest.mark.parametrize("change", ["seed", "epoch", "face", "column"])
def test_draws_differ_and_do_not_correlate(change):
    base = uniform(0, 0, FACES, 2)
    other = {
        "seed": lambda: uniform(1, 0, FACES, 2),
        "epoch": lambda: uniform(0, 1, FACES, 2),
        "face": lambda: np.roll(base, 1, 0),
        "column": lambda: base[:, ::-1],
    }[change]()
    assert (base != other).all()
    assert abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 4 / np.sqrt(len(FACES))
    cells = np.histogram2d(base[:, 0], other[:, 0], 8, [[0, 1], [0, 1]])[0]
    assert ((cells - 62.5) ** 2 / 62.5).sum() < 63 + 5 * np.sqrt(2 * 63)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 7), (2**31, 999)])
def test_uniform_is_uniform(seed, epoch):
    values = uniform(seed, epoch, FACES, 14)
    assert values.shape == (4000, 14)
    assert values.dtype == np.float64
    assert 0 <= values.min() < values.max() < 1
    assert len(np.unique(values)) == values.size
    for column in values.T:
        assert np.abs(np.sort(column) - (FACES + 0.5) / 4000).max() < 2 / np.sqrt(4000)  # Kolmogorov-Smirnov, p < .001


@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(2, 60))
def test_order_is_a_repeatable_permutation(seed, epoch, count):
    first = order(seed, epoch, count)
    assert sorted(first) == list(range(count))
    np.testing.assert_array_equal(order(seed, epoch, count), first)


def test_order_differs_by_epoch_and_seed():
    seen = {tuple(order(seed, epoch, 50)) for seed in range(3) for epoch in range(5)}
    assert len(seen) == 15
