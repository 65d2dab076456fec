"""The metrics against a slow reference in plain loops, by hand, and gathered over two real ranks."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from flr.landmarks.outlines import outlines_of
from flr.landmarks.scheme import CELEBA5, IBUG68, KAGGLE15
from flr.metrics.errors import LandmarkErrors
from flr.metrics.functional import (
    along_lines,
    auc,
    ced,
    failure_rate,
    hidden_precision,
    nme,
    percent_mean,
    point_errors,
    rmse,
    spearman,
    summary,
)

SCHEMES = pytest.mark.parametrize("scheme", [IBUG68, KAGGLE15, CELEBA5], ids=repr)


def mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return 100 * sum(values) / len(values) if values else math.nan


def slow_distance(points, labelled, scheme, name) -> float:
    known = [(float(x), float(y)) for (x, y), flag in zip(points, labelled, strict=True) if flag]
    if name in ("box", "diagonal"):
        if not known:
            return math.nan
        xs, ys = [x for x, _ in known], [y for _, y in known]
        w, h = max(xs) - min(xs), max(ys) - min(ys)
        distance = math.sqrt(w * h) if name == "box" else math.sqrt(w * w + h * h)
    else:
        means = []
        for group in scheme.distances[name]:
            if not all(labelled[i] for i in group):
                return math.nan
            means.append([sum(float(points[i][axis]) for i in group) / len(group) for axis in (0, 1)])
        distance = math.dist(*means)
    return distance if distance > 0 else math.nan


def slow_face(predicted, truth, labelled, distance, group=None) -> float:
    total, count = 0.0, 0
    for k in range(len(truth)) if group is None else group:
        if labelled[k]:
            total += math.dist([float(v) for v in predicted[k]], [float(v) for v in truth[k]])
            count += 1
    return total / count / distance if count else math.nan


def percentile(values: list[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    values = sorted(values)
    at = share / 100 * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def slow_summary(predicted, truth, labelled, scheme, subsets) -> dict[str, float]:
    faces = range(len(truth))
    own = [slow_distance(truth[i], labelled[i], scheme, scheme.normaliser) for i in faces]
    values = [slow_face(predicted[i], truth[i], labelled[i], own[i]) for i in faces]
    known = [value for value in values if not math.isnan(value)]
    result = {"nme": mean(values), "undefined": float(len(values) - len(known))}
    for name in (*scheme.distances, "box", "diagonal"):
        distances = [slow_distance(truth[i], labelled[i], scheme, name) for i in faces]
        result[f"nme_{name}"] = mean([slow_face(predicted[i], truth[i], labelled[i], distances[i]) for i in faces])
    for percent in (8, 10):
        t = percent / 100
        result[f"fr{percent}"] = 100 * sum(value > t for value in known) / len(known)
        result[f"auc{percent}"] = 100 * sum(max(1 - value / t, 0) for value in known) / len(known)
    for share in (90, 95, 99):
        result[f"p{share}"] = 100 * percentile(known, share)
    for name, mask in subsets.items():
        result[f"{name}/nme"] = mean([values[i] for i in faces if mask[i]])
    for name, group in scheme.regions.items():
        result[f"region/{name}/nme"] = mean(
            [slow_face(predicted[i], truth[i], labelled[i], own[i], group) for i in faces]
        )
    for k, name in enumerate(scheme.names):
        result[f"point/{name}/nme"] = mean([slow_face(predicted[i], truth[i], labelled[i], own[i], [k]) for i in faces])
    return result


def some_faces(scheme, count: int, seed: int, missing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 200, (count, len(scheme), 2)).astype(np.float32)
    predicted = (truth + random.normal(0, 1, truth.shape) * random.uniform(0.5, 12, (count, 1, 1))).astype(np.float32)
    labelled = random.uniform(size=truth.shape[:2]) >= missing
    labelled[0] = True
    truth[~labelled] = np.nan  # whatever stands there must not count
    return predicted, truth, labelled


@SCHEMES
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0.0, 0.02, 0.5]))
def test_summary_is_the_slow_reference(scheme, seed, missing):
    predicted, truth, labelled = some_faces(scheme, 9, seed, missing)
    labelled[4] = False
    subsets = {"odd": np.arange(9) % 2 == 1, "first": np.arange(9) == 0}
    result = summary(predicted, truth, labelled, scheme, subsets)
    expected = slow_summary(predicted, truth, labelled, scheme, subsets)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert result["undefined"] >= 1


def by_hand() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two 5-point faces with eyes 100 and 50 px apart: every point off by 5 px (NME 5 %), and by 4.5 px (9 %)."""
    face = np.array([[0.0, 0], [100, 0], [50, 50], [20, 80], [80, 80]])
    truth = np.stack([face, face / 2 + 7])
    return truth + np.array([[[3.0, -4]], [[0, 4.5]]]), truth, np.ones((2, 5), bool)


def test_two_faces_by_hand():
    result = summary(*by_hand(), CELEBA5, {"second": np.array([False, True]), "none": np.zeros(2, bool)})
    assert result["nme"] == result["nme_interpupil"] == pytest.approx(7)
    assert (result["fr8"], result["fr10"]) == (50, 0)
    assert result["auc8"] == pytest.approx(100 * (3 / 8) / 2)
    assert result["auc10"] == pytest.approx(100 * (0.5 + 0.1) / 2)
    assert result["p90"] == pytest.approx(5 + 0.9 * 4)
    assert result["nme_box"] == pytest.approx(100 * (5 / math.sqrt(8000) + 4.5 / math.sqrt(2000)) / 2)
    assert result["second/nme"] == pytest.approx(9)
    assert "none/nme" not in result
    assert result["region/eyes/nme"] == result["point/nose/nme"] == pytest.approx(7)
    assert result["undefined"] == 0


def test_a_face_without_a_normaliser_is_counted_and_left_out():
    predicted, truth, labelled = by_hand()
    labelled[0, 1] = False
    result = summary(predicted, truth, labelled, CELEBA5)
    assert result["undefined"] == 1
    assert result["nme"] == result["region/mouth/nme"] == result["p99"] == pytest.approx(9)
    assert (result["fr8"], result["fr10"]) == (100, 0)
    assert math.isnan(result["point/left_eye/nme"]) is False
    assert result["nme_box"] == pytest.approx(100 * (5 / 80 + 4.5 / math.sqrt(2000)) / 2)


def test_no_defined_face_at_all_gives_nan_and_no_error():
    predicted, truth, _ = by_hand()
    result = summary(predicted, truth, np.zeros((2, 5), bool), CELEBA5)
    assert result.pop("undefined") == 2
    assert all(math.isnan(value) for value in result.values())


def test_missing_labels_do_not_count():
    predicted, truth, labelled = by_hand()
    labelled[:, 3] = False
    predicted[:, 3] = 1e9
    errors = point_errors(predicted, truth, labelled)
    assert np.isnan(errors[:, 3]).all()
    np.testing.assert_allclose(nme(errors, np.array([100.0, 50])), [0.05, 0.09])
    assert np.isnan(nme(np.full((1, 5), np.nan), np.ones(1))).all()


def test_rmse_is_over_the_labelled_coordinates():
    predicted, truth, labelled = by_hand()
    assert rmse(predicted, truth, labelled) == pytest.approx(math.sqrt((9 + 16 + 0 + 4.5**2) / 4))
    labelled[1] = False
    labelled[0, 2] = False
    predicted[~labelled] = np.nan
    assert rmse(predicted, truth, labelled) == pytest.approx(math.sqrt((9 + 16) / 2))
    predicted[0, 0] = np.nan
    assert rmse(predicted, truth, labelled) == math.inf
    assert math.isnan(rmse(predicted, truth, np.zeros((2, 5), bool)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.08, 0.1])
def test_auc_is_the_area_under_the_stepped_curve(seed, threshold):
    values = np.random.default_rng(seed).gamma(3, 0.025, 40)
    values[3] = np.nan
    x, y = ced(values)
    fine = (np.arange(200_000) + 0.5) / 200_000 * threshold
    curve = np.concatenate([[0], y])[np.searchsorted(x, fine, side="right")]
    assert auc(values, threshold) == pytest.approx(curve.mean(), abs=1e-5)
    assert failure_rate(values, threshold) == pytest.approx(1 - curve[-1])


def test_failure_is_strictly_above_the_threshold():
    assert failure_rate(np.array([0.08, 0.0801, 0.01, np.nan]), 0.08) == pytest.approx(1 / 3)


def test_ced_by_hand():
    x, y = ced(np.array([0.3, np.nan, 0.1, 0.2, 0.1]))
    np.testing.assert_allclose(x, [0.1, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(y, [0.25, 0.5, 0.75, 1])
    assert [len(part) for part in ced(np.full(2, np.nan))] == [0, 0]


def test_only_the_summary_is_in_percent():
    values = np.array([0.05, 0.09])
    assert percent_mean(values) == pytest.approx(7)
    assert auc(values, 0.1) == pytest.approx(0.3)
    assert failure_rate(values, 0.08) == 0.5
    assert math.isnan(percent_mean(np.full(2, np.nan)))


# -- the class that holds state ------------------------------------------------------------------------------------


def rows(count: int = 7) -> tuple[torch.Tensor, ...]:
    """What `LandmarkErrors.update` takes, of `count` faces in no order."""
    predicted, truth, labelled = some_faces(CELEBA5, count, 3, 0.0)
    labelled[2, 4], labelled[5, 0] = False, False
    normaliser = CELEBA5.distance(truth, labelled).astype(np.float32)
    side = np.linspace(80, 240, count, dtype=np.float32)
    index = np.random.default_rng(0).permutation(count) + 100
    none = np.full(labelled.shape, np.nan)  # a model that gives neither uncertainty nor visibility
    hidden = np.zeros(labelled.shape, bool)
    return tuple(map(torch.from_numpy, (index, predicted, truth, labelled, normaliser, side, none, none, hidden)))


def expected_values(batch: tuple[torch.Tensor, ...]) -> dict[str, float]:
    _, predicted, truth, labelled, normaliser, side, *_ = (value.double().numpy() for value in batch)
    faces, squares, sizes = [], [], []
    for i in range(len(truth)):
        faces.append(slow_face(predicted[i], truth[i], labelled[i], float(normaliser[i])))
        for k in range(truth.shape[1]):
            for axis in (0, 1):
                if labelled[i, k]:
                    share = (predicted[i, k, axis] - truth[i, k, axis]) / side[i]
                    squares.append(share * share)
                    sizes.append(abs(share))
    return {"nme": mean(faces), "mse": sum(squares) / len(squares), "mae": sum(sizes) / len(sizes)}


def close(values: dict[str, torch.Tensor], expected: dict[str, float]) -> bool:
    return {name: float(value) for name, value in values.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 1, 5]])
def test_landmark_errors_is_the_slow_reference(cuts):
    metric, batch = LandmarkErrors(), rows()
    for part in zip(*(value.split(cuts) for value in batch), strict=True):
        metric.update(*part)
    assert close(metric.compute(), expected_values(batch))
    held = metric.gathered()
    assert held["index"].tolist() == list(range(100, 107))
    np.testing.assert_array_equal(held["points"], batch[1][batch[0].argsort()].numpy())


def test_a_face_given_twice_counts_once_and_reset_forgets():
    metric, batch = LandmarkErrors(), rows()
    metric.update(*batch)
    metric.update(*(value[:3] for value in batch))
    assert close(metric.compute(), expected_values(batch))
    metric.reset()
    metric.update(*(value[:4] for value in batch))
    assert close(metric.compute(), expected_values(tuple(value[:4] for value in batch)))


def on_rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    seen = {}
    # 4 + 3 faces; then face 0 on both ranks, as a padding sampler would give it; then a rank with one batch the more
    for name, mine in (
        ("uneven", [[0, 1, 2, 3], [4, 5, 6]]), ("twice", [[0, 1, 2, 3], [4, 5, 6, 0]]), ("lone", [[0, 1, 2, 3, 4, 5], [6]]),
    ):  # fmt: skip
        metric = LandmarkErrors()
        for part in torch.tensor(mine[rank]).split(2):
            metric.update(*(value[part] for value in rows()))
        seen[name] = metric.compute()
    torch.save(seen, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@given(st.integers(0, 9))
def test_spearman_is_scipys(seed):
    random = np.random.default_rng(seed)
    errors, distance = random.exponential(3, (9, 5)).round(), random.uniform(20, 60, 9)  # with ties
    spread = errors + random.exponential(3, errors.shape)
    errors[random.random(errors.shape) < 0.2] = np.nan
    pairs = [(errors[i, j] / distance[i], spread[i, j] / distance[i])
             for i in range(9) for j in range(5) if not np.isnan(errors[i, j])]  # fmt: skip
    assert spearman(errors, spread, distance) == pytest.approx(scipy.stats.spearmanr(pairs).statistic)
    assert np.isnan(spearman(errors, spread * np.nan, distance))
    assert np.isnan(spearman(errors, np.ones_like(spread), np.ones(9)))


def test_the_doubt_is_what_one_face_in_a_hundred_has():
    metric, count = LandmarkErrors(), 201
    index, points = torch.randperm(count), torch.zeros(count, 5, 2)
    spread = index[:, None] / 10 + torch.tensor([-0.5, 0, 0, 0, 0.5])
    labelled, fifty = torch.ones(count, 5, dtype=torch.bool), torch.full((count,), 50.0)
    hidden = torch.arange(5) < index[:, None] % 3
    visible = torch.where(hidden, 0.2, 0.9)
    metric.update(index, points, points + index[:, None, None], labelled, fifty, fifty, spread, visible, hidden)
    found = metric.compute()
    assert found["uncertainty_threshold"] == pytest.approx(2 * 19.8)
    assert found["spearman"] > 0.98
    assert found["hidden_ap"] == 1
    metric.reset()
    metric.update(index, points, points, labelled, fifty, fifty, spread * torch.nan, spread * torch.nan, hidden)
    assert not {"uncertainty_threshold", "spearman", "hidden_ap"} & set(metric.compute())


@given(st.integers(0, 9))
def test_hidden_precision_is_the_textbooks_sum(seed):
    random = np.random.default_rng(seed)
    visible, hidden = random.random((9, 5)).round(1), random.random((9, 5)) < 0.3  # with ties
    labelled = random.random((9, 5)) < 0.8
    visible[0, 0] = np.nan
    there = labelled & ~np.isnan(visible)
    expected = before = 0.0
    for threshold in sorted(set(visible[there])):
        called = there & (visible <= threshold)
        recall = (called & hidden).sum() / (there & hidden).sum()
        expected += (recall - before) * (called & hidden).sum() / called.sum()
        before = recall
    assert hidden_precision(visible, hidden, labelled) == pytest.approx(expected)
    assert np.isnan(hidden_precision(visible, ~there, there))


def test_landmark_errors_is_exact_on_two_ranks(tmp_path):
    # Forked: they need not import torch again.
    mp.start_processes(on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        for name, values in torch.load(tmp_path / f"{rank}.pt").items():
            assert close(values, expected_values(rows())), (rank, name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_no_number_is_a_failure(value):
    truth = np.random.default_rng(0).uniform(0, 100, (4, 68, 2))
    labelled, points = np.ones((4, 68), bool), truth + 0.1
    points[1, 3] = value
    result = summary(points, truth, labelled, IBUG68)
    good = summary(truth + 0.1, truth, labelled, IBUG68)
    assert result["nme"] == np.inf and result["undefined"] == 0
    assert result["fr10"] == good["fr10"] + 25 and result["auc10"] == pytest.approx(good["auc10"] * 3 / 4, rel=0.02)


def slow_lines(predicted, truth, labelled, scheme) -> dict[str, float]:
    """By complex numbers: a difference turned back by its line's direction is (along, across)."""
    result = {}
    for name, arcs in outlines_of(scheme).items():
        faces: dict[str, list[float]] = {"along": [], "across": []}
        for i in range(len(truth)):
            own = slow_distance(truth[i], labelled[i], scheme, scheme.normaliser)
            turned = []
            for arc in arcs:
                for a, b, c in zip(arc, arc[1:], arc[2:], strict=False):
                    if labelled[i][a] and labelled[i][b] and labelled[i][c]:
                        way = complex(*map(float, truth[i][c])) - complex(*map(float, truth[i][a]))
                        off = complex(*map(float, predicted[i][b])) - complex(*map(float, truth[i][b]))
                        turned.append(off / (way / abs(way)))
            for told, part in (("along", lambda z: z.real), ("across", lambda z: z.imag)):
                faces[told].append(sum(abs(part(z)) for z in turned) / len(turned) / own if turned else math.nan)
        if any(len(arc) > 2 for arc in arcs):
            result |= {f"line/{name}/{told}": mean(values) for told, values in faces.items()}
    return result


@SCHEMES
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0.0, 0.05]))
def test_errors_along_lines_are_the_slow_reference(scheme, seed, missing):
    faces = some_faces(scheme, 5, seed, missing)
    result, expected = along_lines(*faces, scheme), slow_lines(*faces, scheme)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    if scheme is IBUG68:
        assert {"line/jaw/along", "line/inner_lip/across"} <= result.keys()


def test_a_jaw_slid_along_itself_is_not_off_across_and_what_cannot_be_told_counts_as_it_should():
    rows = np.arange(68)
    truth = np.stack([10.0 * rows, 3.0 * rows], -1)[None]  # every line is straight
    labelled = np.ones((1, 68), bool)
    way = np.array([10, 3]) / math.hypot(10, 3)
    eyes = IBUG68.distance(truth, labelled)[0]
    result = along_lines(truth + 5 * way, truth, labelled, IBUG68)
    assert result["line/jaw/along"] == pytest.approx(500 / eyes) and result["line/jaw/across"] == pytest.approx(
        0, abs=1e-6
    )
    same = truth.copy()
    same[0, 3] = same[0, 5]  # the fourth's neighbours, and the one between them, on one spot
    lost = truth.copy()
    lost[0, 8] = np.nan
    assert along_lines(same, same, labelled, IBUG68)["line/jaw/across"] == 0
    assert along_lines(lost, truth, labelled, IBUG68)["line/jaw/along"] == np.inf
    assert along_lines(lost, truth, labelled, IBUG68)["line/nose_bridge/along"] == 0
