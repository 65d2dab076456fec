"""The paired bootstrap against scipy's own tests, and by how often it is right on numbers whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flr.errors import UserError
from flr.evaluation import comparison
from flr.evaluation.comparison import METRICS, better, differences, face_scores, holm
from flr.metrics.functional import auc, failure_rate, percent_mean


def draw(rng: np.random.Generator, runs: tuple[int, ...], faces: int, seeds: float) -> dict[str, np.ndarray]:
    """Groups of no difference: errors, percent, of hard and easy faces that all find hard or easy, and of seeds."""
    hard = 3 + rng.gamma(4, 1, faces)
    return {
        f"group {i}": hard + rng.gamma(2, 0.4, faces) + rng.normal(0, seeds, (count, 1)) + rng.gamma(1, 0.7, (count, faces))
        for i, count in enumerate(runs)
    }  # fmt: skip


PAIR = [("group 0", "group 1")]


def test_one_run_each_is_the_paired_bootstrap_of_the_faces() -> None:
    rng = np.random.default_rng(0)
    groups = draw(rng, (1, 1), 200, 0.0)
    groups["group 0"] += 0.1
    (one,) = differences(groups, PAIR, 20_000)
    gap = (groups["group 0"] - groups["group 1"])[0]
    expected = stats.bootstrap((gap,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    width = expected.high - expected.low
    assert one.mean == pytest.approx(gap.mean())
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=0.04 * width)
    assert one.p == pytest.approx(stats.ttest_1samp(gap, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("runs", [(3, 3), (2, 5), (8, 6)])
def test_where_seeds_decide_it_is_welch_s_test_of_the_runs(runs: tuple[int, int]) -> None:
    groups = draw(np.random.default_rng(1), runs, 400, 5.0)
    (one,) = differences(groups, PAIR, 50_000)
    expected = stats.ttest_ind(*(values.mean(1) for values in groups.values()), equal_var=False)
    interval = expected.confidence_interval()
    assert one.high - one.low == pytest.approx(interval.high - interval.low, rel=0.15)
    assert one.p == pytest.approx(expected.pvalue, abs=0.05)


@pytest.mark.parametrize(("runs", "seeds"), [((1, 1), 0.0), ((3, 3), 0.05), ((2, 5), 0.3)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(runs: tuple[int, int], seeds: float) -> None:
    rng = np.random.default_rng(2)
    cases = 500
    found = [differences(draw(rng, runs, 80, seeds), PAIR, 1000, seed)[0] for seed in range(cases)]
    assert 0.92 <= sum(one.low <= 0 <= one.high for one in found) / cases <= 0.985
    assert 0.01 <= sum(one.p < 0.05 for one in found) / cases <= 0.08


def test_four_equal_groups_are_rarely_called_different() -> None:
    rng = np.random.default_rng(3)
    names = [f"group {i}" for i in range(4)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    cases, alarms, uncorrected = 400, 0, 0
    for seed in range(cases):
        p = [one.p for one in differences(draw(rng, (3, 3, 3, 3), 80, 0.1), pairs, 2000, seed)]
        alarms += min(holm(p)) < 0.05
        uncorrected += min(p) < 0.05
    assert alarms / cases <= 0.07
    assert uncorrected / cases > 0.09  # what the correction is for


def of_people(
    rng: np.random.Generator, sizes: np.ndarray, runs: int, alike: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Groups of no difference, of persons with so many frames each, on whom one net is better than the other by chance."""
    person = np.repeat(np.arange(len(sizes)), sizes)
    groups = {}
    for name in PAIR[0]:
        own = rng.normal(0, alike, len(sizes))[person] + rng.normal(0, 0.3, len(person))
        groups[name] = 5 + own + rng.normal(0, 0.05, (runs, 1)) + rng.normal(0, 0.1, (runs, len(person)))
    return groups, person


@pytest.mark.parametrize("sizes", [np.full(20, 15), np.array([40] * 3 + [5] * 27)], ids=["equal", "unequal"])
def test_frames_of_a_person_are_no_independent_faces(sizes: np.ndarray) -> None:
    """Drawn one by one they claim to know far more than they do; drawn by person the interval covers as it says."""
    rng = np.random.default_rng(12)
    cases, alarms = 150, {"face": 0, "group": 0}
    for seed in range(cases):
        groups, person = of_people(rng, sizes, 2, 1.0)
        alarms["face"] += differences(groups, PAIR, 1000, seed)[0].p < 0.05
        alarms["group"] += differences(groups, PAIR, 1000, seed, person)[0].p < 0.05
    assert alarms["face"] / cases > 0.4
    assert 0.01 <= alarms["group"] / cases <= 0.08


@pytest.mark.parametrize("persons", [5, 12])
def test_persons_of_equal_size_are_the_paired_test_of_their_means(persons: int) -> None:
    groups, person = of_people(np.random.default_rng(14), np.full(persons, 20), 3, 1.0)
    (one,) = differences(groups, PAIR, 50_000, units=person)
    gap = (groups["group 0"] - groups["group 1"]).mean(0).reshape(persons, 20).mean(1)
    expected = stats.ttest_1samp(gap, 0)
    interval = expected.confidence_interval()
    assert one.mean == pytest.approx(gap.mean())
    assert one.high - one.low == pytest.approx(interval.high - interval.low, rel=0.1)
    assert one.p == pytest.approx(expected.pvalue, abs=0.04)


def test_persons_of_a_face_each_are_faces() -> None:
    groups = draw(np.random.default_rng(13), (2, 2), 60, 0.1)
    names = np.array([f"face {i:02}" for i in range(60)])
    assert differences(groups, PAIR, 2000, units=names) == differences(groups, PAIR, 2000)
    with pytest.raises(UserError, match=r"of 1 person"):
        differences(groups, PAIR, units=np.array(["one clip"] * 60))


def test_a_true_difference_is_found_with_its_sign() -> None:
    groups = draw(np.random.default_rng(4), (3, 3), 300, 0.02)
    groups["group 1"] += 1
    there, back = differences(groups, [*PAIR, ("group 1", "group 0")])
    assert there.high < -0.5 and there.p < 0.001
    assert back.mean == -there.mean and back.low > 0.5


def test_a_face_without_an_error_is_no_face() -> None:
    groups = draw(np.random.default_rng(7), (2, 2), 40, 0.1)
    without = differences({name: values[:, 1:] for name, values in groups.items()}, PAIR)
    for values in groups.values():
        values[:, 0] = np.nan
    assert differences(groups, PAIR) == without
    with pytest.raises(UserError, match="1 face"):
        differences({name: values[:, :2] for name, values in groups.items()}, PAIR)


def test_memory_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = draw(np.random.default_rng(8), (2, 2), 60, 0.1)
    (whole,) = differences(groups, PAIR, 20_000)
    monkeypatch.setattr(comparison, "MAX_COUNTS", 60 * 700)  # chunks that do not divide the draws
    (chunked,) = differences(groups, PAIR, 20_000)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), abs=0.05 * (whole.high - whole.low))


@given(st.lists(st.floats(0, 1), max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_its_steps_reject(p: list[float], level: float) -> None:
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    corrected = holm(p)
    assert {i for i, value in enumerate(corrected) if value <= level} == rejected
    assert all(a <= b <= 1 for a, b in zip(p, corrected, strict=True))


def test_parts_face_scores_add_up_to_the_metrics() -> None:
    nme = np.random.default_rng(10).gamma(4, 0.02, 300)
    nme[3] = np.nan
    sums = {name: float(np.nanmean(face_scores(nme, name))) for name in METRICS}
    assert sums == pytest.approx(
        {
            "nme": percent_mean(nme), "fr8": 100 * failure_rate(nme, 0.08), "auc8": 100 * auc(nme, 0.08),
            "fr10": 100 * failure_rate(nme, 0.1), "auc10": 100 * auc(nme, 0.1),
        }
    )  # fmt: skip
    assert all(np.isnan(face_scores(nme, name)[3]) for name in METRICS)
    assert better("nme", 3, 4) and better("fr10", 0, 1) and better("auc8", 60, 50)
