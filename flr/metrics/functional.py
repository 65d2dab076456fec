"""Errors of predicted landmarks, as pure float64 functions of numpy arrays. Shares, not percent, until `summary`.

Definitions: Sagonas et al. 2016 (300-W, doi:10.1016/j.imavis.2016.01.002); FR and AUC in closed form, since binned
curves add up to .18 points.
"""

from collections.abc import Mapping

import numpy as np

from flr.landmarks.scheme import Scheme

THRESHOLDS = (0.08, 0.10)
PERCENTILES = (90, 95, 99)


def point_errors(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(N, K) distances in pixels between points and truth (N, K, 2); NaN where not `labelled` (N, K)."""
    difference = np.asarray(points, np.float64) - np.asarray(truth, np.float64)
    distance = np.hypot(difference[..., 0], difference[..., 1])
    # A prediction that is not a number is as wrong as can be; NaN is kept for what has no truth.
    return np.where(labelled, np.where(np.isfinite(distance), distance, np.inf), np.nan)


def nme(errors: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(N,) normalised mean error of each face.

    Args:
        errors: (N, K) from `point_errors`.
        distance: (N,) pixels, the normaliser.

    Returns:
        The mean over a face's labelled points over its normaliser; NaN where either is missing.
    """
    known = ~np.isnan(errors)
    count = known.sum(1)
    total = np.where(known, errors, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan) / distance


def mse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """The mean squared coordinate error of the labelled points (N, K, 2), in units of each crop's `side` (N,) pixels."""
    return float(np.square(_shares(points, truth, labelled, side)).mean())


def mae(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """As `mse`, of the absolute coordinate error."""
    return float(np.abs(_shares(points, truth, labelled, side)).mean())


def rmse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> float:
    """The root of the mean squared coordinate error of the labelled points (N, K, 2), in pixels; NaN where none is.

    At 96 px it is the score of Kaggle's Facial Keypoints Detection, which lists both coordinates of a point or neither.
    """
    known = point_errors(points, truth, labelled)[labelled]
    return float(np.sqrt(np.square(known).mean() / 2)) if len(known) else float("nan")


def _shares(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> np.ndarray:
    difference = np.asarray(points, np.float64) - np.asarray(truth, np.float64)
    return (difference / np.asarray(side, np.float64)[:, None, None])[labelled]


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
    values = nme(errors, distance)
    result = {"nme": percent_mean(values)}
    for name, own in by_normaliser.items():
        result[f"nme_{name}"] = percent_mean(nme(errors, own))
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
    for k, name in enumerate(scheme.names):
        result[f"point/{name}/nme"] = percent_mean(errors[:, k] / distance)
    result["undefined"] = float(np.isnan(values).sum())
    return result
