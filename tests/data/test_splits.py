"""The held-out part: whole groups, the asked share, the same choice every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flr.data.splits import hold_out
from flr.data.table import FaceTable
from flr.errors import UserError
from tests.landmarks.painted import face_table


def grouped(sizes: list[int], tests: int = 2) -> FaceTable:
    groups = [f"person{i}" for i, size in enumerate(sizes) for _ in range(size)]
    return face_table(("train",) * len(groups) + ("test",) * tests, (*groups, *[f"t{i}" for i in range(tests)]))


def held(table: FaceTable) -> set[str]:
    return set(table.group[table.split == "val"].tolist())


@given(st.lists(st.integers(1, 5), min_size=8, max_size=30), st.floats(0.05, 0.5))
def test_groups_stay_whole_and_the_share_is_kept(sizes, fraction):
    table = grouped(sizes)
    split = hold_out(table, fraction).split
    assert not set(table.group[split == "val"]) & set(table.group[split == "train"])
    count = (split == "val").sum()
    assert fraction * sum(sizes) - 1e-6 <= count < fraction * sum(sizes) + max(sizes)
    np.testing.assert_array_equal(split == "test", table.split == "test")
    assert (table.split != "val").all()  # the table that went in is as it was


@given(st.permutations(range(24)))
def test_the_choice_does_not_depend_on_the_order_of_faces(order):
    table = grouped([2] * 12, 0)
    assert held(hold_out(table.take(np.array(order)), 0.25)) == held(hold_out(table, 0.25))


@given(st.sets(st.integers(0, 29), min_size=1, max_size=10))
def test_groups_that_leave_do_not_reshuffle_the_others(gone):
    table = grouped([1] * 30, 0)
    before = held(hold_out(table, 0.2))
    left = table.take(~np.isin(table.group, [f"person{i}" for i in gone]))
    after = held(hold_out(left, 0.2))
    before -= {f"person{i}" for i in gone}
    assert before <= after or after <= before


def test_other_parts_do_not_matter():
    assert held(hold_out(grouped([1] * 20, 9), 0.2)) == held(hold_out(grouped([1] * 20, 0), 0.2))


def test_an_own_validation_part_is_kept():
    table = face_table(("train", "val", "train", "test"))
    assert hold_out(table, 0.5) is table


@pytest.mark.parametrize(
    ("sizes", "fraction"), [([7], 0.1), ([1], 0.5), ([2, 3], 0.9), ([1, 1, 1], 1.0)]
)  # fmt: skip
def test_a_split_that_cannot_be_is_told(sizes, fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        hold_out(grouped(sizes), fraction)
