"""Errors of predicted landmarks, as pure float64 functions of numpy arrays. Shares, not percent, until `summary`.

Definitions: Sagonas et al. 2016 (300-W, doi:10.1016/j.imavis.2016.01.002); FR and AUC in closed form, since binned
curves add up to .18 points.
"""

from collections.abc import Mapping

import numpy as np

from flr.landmarks.outlines import outlines_of
from flr.landmarks.scheme import Scheme

THRESHOLDS = (0.08, 0.10)
PERCENTILES = (90, 95, 99)


def point_errors(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(N, K) distances in pixels between points and truth (N, K, 2); NaN where not `labelled` (N, K)."""
    x, y = _differences(points, truth)
    distance = np.sqrt(np.square(x, out=x) + np.square(y, out=y))
    # A prediction that is not a number is as wrong as can be; NaN is kept for what has no truth.
    distance[~np.isfinite(distance)] = np.inf
    distance[~np.asarray(labelled, bool)] = np.nan
    return distance


def _differences(points: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) in x and in y. Apart, for numpy is fast over an array's last axis alone."""
    x, y = (np.subtract(points[..., axis], truth[..., axis], dtype=np.float64) for axis in (0, 1))
    return x, y


def nme(errors: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(N,) normalised mean error of each face.

    Args:
        errors: (N, K) from `point_errors`.
        distance: (N,) pixels, the normaliser.

    Returns:
        The mean over a face's labelled points over its normaliser; NaN where either is missing.
    """
    return _mean(errors, 1) / distance


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN along an axis; NaN where nothing is."""
    missing = np.isnan(values)
    count = values.shape[axis] - np.count_nonzero(missing, axis)
    total = np.where(missing, 0, values).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """The mean squared coordinate error of the labelled points (N, K, 2), in units of each crop's `side` (N,) pixels."""
    errors = point_errors(points, truth, labelled) / np.asarray(side, np.float64)[:, None]
    return percent_mean(np.square(errors, out=errors).ravel()) / 200


def mae(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """As `mse`, of the absolute coordinate error."""
    x, y = _differences(points, truth)
    errors = (np.abs(x, out=x) + np.abs(y, out=y)) / np.asarray(side, np.float64)[:, None]
    errors[~np.isfinite(errors)] = np.inf
    errors[~labelled] = np.nan
    return percent_mean(errors.ravel()) / 200


def rmse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> float:
    """The root of the mean squared coordinate error of the labelled points (N, K, 2), in pixels; NaN where none is.

    At 96 px it is the score of Kaggle's Facial Keypoints Detection, which lists both coordinates of a point or neither.
    """
    known = point_errors(points, truth, labelled)[labelled]
    return float(np.sqrt(np.square(known).mean() / 2)) if len(known) else float("nan")


def spearman(errors: np.ndarray, spread: np.ndarray, distance: np.ndarray) -> float:
    """How well predicted uncertainty ranks true errors: Spearman's correlation over all labelled points, -1 to 1.

    Args:
        errors: (N, K) from `point_errors`.
        spread: (N, K) pixels, how uncertain each point is; NaN where that is not known.
        distance: (N,) pixels, the normaliser of both.

    Returns:
        NaN where nothing is known, or all is the same.
    """
    from scipy.stats import rankdata  # not needed where a net only runs

    known = ~np.isnan(errors) & ~np.isnan(spread) & ~np.isnan(distance)[:, None]
    pair = [(values / distance[:, None])[known] for values in (errors, spread)]
    if not known.any() or any(np.ptp(values) == 0 for values in pair):
        return float("nan")
    return float(np.corrcoef([rankdata(values) for values in pair])[0, 1])


def face_spread(spread: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(N,) how uncertain a net is of each face, percent: the mean of its points' `spread` (N, K) over `distance` (N,), both pixels."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * spread.mean(-1) / distance


def failure_rate(values: np.ndarray, threshold: float) -> float:
    """The share of faces (N,) whose NME is above `threshold`. A face without a defined NME is not counted."""
    values = values[~np.isnan(values)]
    return float((values > threshold).mean()) if len(values) else float("nan")


def auc(values: np.ndarray, threshold: float) -> float:
    """The area under the CED curve up to `threshold`, over that threshold: mean(max(1 - nme / threshold, 0))."""
    values = values[~np.isnan(values)]
    return float(np.clip(1 - values / threshold, 0, None).mean()) if len(values) else float("nan")


def ced(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cumulative error distribution: sorted NMEs (n,) and the share of faces (n,) at or below each."""
    values = np.sort(values[~np.isnan(values)])
    return values, np.arange(1, len(values) + 1) / max(len(values), 1)


def percent_mean(values: np.ndarray) -> float:
    """100 x the mean over the defined values (N,); NaN where there is none."""
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if len(values) else float("nan")


def summary(
    points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, scheme: Scheme,
    subsets: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Every metric of a set of faces, percent, by the names of the contract.

    Args:
        points: (N, K, 2) predicted, original-image pixels.
        truth: (N, K, 2).
        labelled: (N, K) bool.
        scheme: of the points; names normalisers and regions.
        subsets: name -> (N,) bool.

    Returns:
        ``nme``, ``nme_<normaliser>``, ``fr8``, ``auc8``, ``fr10``, ``auc10``, ``p90``, ``p95``, ``p99``,
        ``<subset>/nme``, ``region/<name>/nme``, ``point/<name>/nme`` and ``undefined``, the count of faces without
        a default normaliser.
    """
    errors = point_errors(points, truth, labelled)
    by_normaliser = {name: scheme.distance(truth, labelled, name) for name in scheme.normalisers}
    distance = by_normaliser[scheme.normaliser]
    mean = _mean(errors, 1)
    values = mean / distance
    result = {"nme": percent_mean(values)}
    for name, own in by_normaliser.items():
        result[f"nme_{name}"] = percent_mean(mean / own)
    for threshold in THRESHOLDS:
        result[f"fr{threshold * 100:.0f}"] = 100 * failure_rate(values, threshold)
        result[f"auc{threshold * 100:.0f}"] = 100 * auc(values, threshold)
    defined = values[~np.isnan(values)]
    for share in PERCENTILES:
        result[f"p{share}"] = float(100 * np.percentile(defined, share)) if len(defined) else float("nan")
    for name, mask in (subsets or {}).items():
        if mask.any():
            result[f"{name}/nme"] = percent_mean(values[mask])
    for name, group in scheme.regions.items():
        result[f"region/{name}/nme"] = percent_mean(nme(errors[:, list(group)], distance))
    for name, value in zip(scheme.names, 100 * _mean(errors / distance[:, None], 0), strict=True):
        result[f"point/{name}/nme"] = float(value)
    result["undefined"] = float(np.isnan(values).sum())
    return result


def along_lines(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, scheme: Scheme) -> dict[str, float]:
    """How far points lie from the truth along the lines of a face and across them, percent of the default normaliser.

    Annotators agree on where a line runs more than on where along it a point lies (Huang et al. 2021, arXiv:2109.05721).

    Args:
        points: (N, K, 2) predicted, original-image pixels.
        truth: (N, K, 2).
        labelled: (N, K) bool.
        scheme: of the points; its lines are those of `outlines_of`.

    Returns:
        ``line/<name>/along`` and ``line/<name>/across``: the mean distance either way. The direction at a point is that from the one
        before to the one after, so ends and corners have none, nor has a point beside one without a label.
    """
    distance = scheme.distance(truth, labelled)
    result = {}
    for name, arcs in outlines_of(scheme).items():
        if not (threes := [arc[i : i + 3] for arc in arcs for i in range(len(arc) - 2)]):
            continue
        before, at, after = np.array(threes).T
        way_x, way_y = _differences(truth[:, after], truth[:, before])
        length = np.hypot(way_x, way_y)
        known = labelled[:, before] & labelled[:, at] & labelled[:, after] & (length > 0)
        length[~known] = 1
        x, y = _differences(points[:, at], truth[:, at])
        for told, errors in (("along", x * way_x + y * way_y), ("across", x * way_y - y * way_x)):
            errors = np.abs(errors) / length
            errors[~np.isfinite(errors)] = np.inf
            errors[~known] = np.nan
            result[f"line/{name}/{told}"] = percent_mean(nme(errors, distance))
    return result
