"""Errors of predicted landmarks, as pure float64 functions of numpy arrays. Fractions, not percent, until `summary`.

Definitions: Sagonas et al. 2016 (300-W, doi:10.1016/j.imavis.2016.01.002); FR and AUC in closed form, since binned
curves differ by up to .18 points.
"""

from collections.abc import Mapping

import numpy as np

from flr.landmarks.outlines import outlines_of
from flr.landmarks.scheme import Scheme

THRESHOLDS = (0.08, 0.10)
PERCENTILES = (90, 95, 99)


def point_errors(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Measure the distance between each predicted point and the truth.

    Args:
        points: (N, K, 2) predicted, pixels.
        truth: (N, K, 2), pixels.
        labelled: (N, K) bool.

    Returns:
        (N, K) pixels; NaN where not `labelled`, infinite where a prediction is not finite.

    Example:
        >>> point_errors(np.array([[[3.0, 4.0], [9.0, 9.0]]]), np.zeros((1, 2, 2)), np.array([[True, False]]))
        array([[ 5., nan]])
    """
    x, y = _differences(points, truth)
    distance = np.sqrt(np.square(x, out=x) + np.square(y, out=y))
    # NaN marks a missing truth, so a prediction that is NaN counts as infinitely wrong.
    distance[~np.isfinite(distance)] = np.inf
    distance[~np.asarray(labelled, bool)] = np.nan
    return distance


def _differences(points: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) in x and in y, as two arrays: numpy's reductions are fast along an array's last axis only."""
    x, y = (np.subtract(points[..., axis], truth[..., axis], dtype=np.float64) for axis in (0, 1))
    return x, y


def nme(errors: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Compute the normalised mean error of each face.

    Args:
        errors: (N, K) from `point_errors`.
        distance: (N,) pixels, the normaliser.

    Returns:
        (N,) the mean over a face's labelled points over its normaliser; NaN where either is missing.

    Example:
        >>> nme(np.array([[1.0, 3.0, np.nan]]), np.array([50.0]))
        array([0.04])
    """
    return _mean(errors, 1) / distance


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis of the values that are not NaN; NaN where all are."""
    missing = np.isnan(values)
    count = values.shape[axis] - np.count_nonzero(missing, axis)
    total = np.where(missing, 0, values).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """Compute the mean squared coordinate error of the labelled points.

    Args:
        points: (N, K, 2) predicted, pixels.
        truth: (N, K, 2), pixels.
        labelled: (N, K) bool.
        side: (N,) pixels, the side of each crop, which is the unit of the error.

    Example:
        >>> mse(np.array([[[6.0, 8.0]]]), np.zeros((1, 1, 2)), np.array([[True]]), np.array([10.0]))
        0.5
    """
    errors = point_errors(points, truth, labelled) / np.asarray(side, np.float64)[:, None]
    return percent_mean(np.square(errors, out=errors).ravel()) / 200


def mae(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> float:
    """Compute the mean absolute coordinate error of the labelled points; arguments as for `mse`.

    Example:
        >>> mae(np.array([[[6.0, 8.0]]]), np.zeros((1, 1, 2)), np.array([[True]]), np.array([10.0]))
        0.7
    """
    x, y = _differences(points, truth)
    errors = (np.abs(x, out=x) + np.abs(y, out=y)) / np.asarray(side, np.float64)[:, None]
    errors[~np.isfinite(errors)] = np.inf
    errors[~labelled] = np.nan
    return percent_mean(errors.ravel()) / 200


def rmse(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> float:
    """Compute the root mean squared coordinate error of the labelled points, in pixels; NaN without a labelled point.

    At 96 px it is the score of Kaggle's Facial Keypoints Detection, which lists both coordinates of a point or neither.
    Shapes as for `point_errors`.

    Example:
        >>> rmse(np.array([[[6.0, 8.0]]]), np.zeros((1, 1, 2)), np.array([[True]]))
        7.0710678118654755
    """
    errors = point_errors(points, truth, labelled)[labelled]
    return float(np.sqrt(np.square(errors).mean() / 2)) if len(errors) else float("nan")


def spearman(errors: np.ndarray, uncertainty: np.ndarray, distance: np.ndarray) -> float:
    """Correlate predicted uncertainty with true errors by Spearman's rank correlation over all labelled points.

    Args:
        errors: (N, K) from `point_errors`.
        uncertainty: (N, K) pixels; NaN where unknown.
        distance: (N,) pixels, the normaliser of both.

    Returns:
        -1 to 1; NaN without a known value, or where all values are equal.

    Example:
        >>> errors, distance = np.array([[1.0, 2.0, 3.0]]), np.array([10.0])
        >>> spearman(errors, np.array([[0.1, 0.5, 0.7]]), distance)
        1.0
    """
    from scipy.stats import rankdata  # scipy is not part of the base install, on which a model only predicts

    known = ~np.isnan(errors) & ~np.isnan(uncertainty) & ~np.isnan(distance)[:, None]
    pair = [(values / distance[:, None])[known] for values in (errors, uncertainty)]
    if not known.any() or any(np.ptp(values) == 0 for values in pair):
        return float("nan")
    return float(np.corrcoef([rankdata(values) for values in pair])[0, 1])


def face_uncertainty(uncertainty: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Average the uncertainty of each face's points, in percent of the normaliser.

    Args:
        uncertainty: (N, K) pixels.
        distance: (N,) pixels, the normaliser.

    Example:
        >>> face_uncertainty(np.array([[1.0, 3.0]]), np.array([50.0]))
        array([4.])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * uncertainty.mean(-1) / distance


def hidden_precision(visible: np.ndarray, hidden: np.ndarray, labelled: np.ndarray) -> float:
    """Compute the average precision of finding hidden points, the area under the precision-recall curve.

    Args:
        visible: (N, K), the predicted probability that a point is visible; NaN where the model gives none.
        hidden: (N, K) bool, the truth.
        labelled: (N, K) bool, which points count.

    Returns:
        From 0 to 1; a random order gives the share of hidden points. NaN where no point has a prediction, or the points are all
        hidden or all visible.

    Example:
        >>> import numpy as np
        >>> hidden_precision(np.array([[0.1, 0.4, 0.9]]), np.array([[True, False, False]]), np.ones((1, 3), bool))
        1.0
    """
    there = labelled & ~np.isnan(visible)
    truth, score = hidden[there], visible[there]
    if truth.all() or not truth.any():
        return float("nan")
    order = np.argsort(score, kind="stable")
    score, found = score[order], np.cumsum(truth[order])
    last = np.append(score[1:] != score[:-1], True)  # points of one score have one precision
    precision, recall = found[last] / (np.flatnonzero(last) + 1), found[last] / found[-1]
    return float((precision * np.diff(recall, prepend=0)).sum())


def failure_rate(values: np.ndarray, threshold: float) -> float:
    """Compute the fraction of faces (N,) whose NME is above `threshold`; faces without a defined NME do not count.

    Example:
        >>> failure_rate(np.array([0.05, 0.09, np.nan]), 0.08)
        0.5
    """
    values = values[~np.isnan(values)]
    return float((values > threshold).mean()) if len(values) else float("nan")


def auc(values: np.ndarray, threshold: float) -> float:
    """Compute the area under the CED curve of NMEs (N,) up to `threshold`, over that threshold.

    It equals mean(max(1 - nme / threshold, 0)).

    Example:
        >>> auc(np.array([0.04, 0.09]), 0.08)
        0.25
    """
    values = values[~np.isnan(values)]
    return float(np.clip(1 - values / threshold, 0, None).mean()) if len(values) else float("nan")


def ced(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the cumulative error distribution: sorted NMEs (n,) and the fraction of faces (n,) at or below each.

    Example:
        >>> ced(np.array([0.09, 0.04, np.nan]))
        (array([0.04, 0.09]), array([0.5, 1. ]))
    """
    values = np.sort(values[~np.isnan(values)])
    return values, np.arange(1, len(values) + 1) / max(len(values), 1)


def percent_mean(values: np.ndarray) -> float:
    """Average the defined values (N,), times 100; NaN where there is none.

    Example:
        >>> percent_mean(np.array([0.02, 0.04, np.nan]))
        3.0
    """
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if len(values) else float("nan")


def summary(
    points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, scheme: Scheme,
    subsets: Mapping[str, np.ndarray] | None = None, own_box: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Compute every metric of a set of faces, percent, by the names that runs log.

    Args:
        points: (N, K, 2) predicted, original-image pixels.
        truth: (N, K, 2).
        labelled: (N, K) bool.
        scheme: of the points; names normalisers and regions.
        subsets: name -> (N,) bool.
        own_box: See `Scheme.distance`.

    Returns:
        ``nme``, ``nme_<normaliser>``, ``fr8``, ``auc8``, ``fr10``, ``auc10``, ``p90``, ``p95``, ``p99``,
        ``<subset>/nme``, ``region/<name>/nme``, ``point/<name>/nme`` and ``undefined``, the count of faces without
        a default normaliser.

    Example:
        >>> from flr.landmarks.scheme import CELEBA5
        >>> truth = np.array([[[30.0, 40.0], [70.0, 40.0], [50.0, 60.0], [35.0, 80.0], [65.0, 80.0]]])
        >>> result = summary(truth + [[[2.0, 0.0]]], truth, np.ones((1, 5), bool), CELEBA5)
        >>> result["nme"], result["fr8"]
        (5.0, 0.0)
    """
    errors = point_errors(points, truth, labelled)
    by_normaliser = {name: scheme.distance(truth, labelled, name, own_box) for name in scheme.normalisers}
    distance = by_normaliser[scheme.normaliser]
    mean = _mean(errors, 1)
    values = mean / distance
    result = {"nme": percent_mean(values)}
    for name, normaliser in by_normaliser.items():
        result[f"nme_{name}"] = percent_mean(mean / normaliser)
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
    """Split errors into the parts along the lines of a face and across them, percent of the default normaliser.

    Annotators agree on the course of a line more than on the place of a point along it (Huang et al. 2021,
    arXiv:2109.05721).

    Args:
        points: (N, K, 2) predicted, original-image pixels.
        truth: (N, K, 2).
        labelled: (N, K) bool.
        scheme: of the points; its lines are those of `outlines_of`.

    Returns:
        ``line/<name>/along`` and ``line/<name>/across``: the mean distance in each direction. The direction at a point
        is that from the point before to the point after. Ends, corners and points next to an unlabelled one have none.

    Example:
        >>> from flr.landmarks.scheme import IBUG68
        >>> truth = np.stack([np.arange(68.0), np.zeros(68)], -1)[None]
        >>> result = along_lines(truth + [[[0.0, 0.9]]], truth, np.ones((1, 68), bool), IBUG68)
        >>> round(result["line/jaw/along"], 6), round(result["line/jaw/across"], 6)
        (0.0, 10.0)
    """
    distance = scheme.distance(truth, labelled)
    result = {}
    for name, arcs in outlines_of(scheme).items():
        if not (triples := [arc[i : i + 3] for arc in arcs for i in range(len(arc) - 2)]):
            continue
        before, at, after = np.array(triples).T
        line_x, line_y = _differences(truth[:, after], truth[:, before])
        length = np.hypot(line_x, line_y)
        known = labelled[:, before] & labelled[:, at] & labelled[:, after] & (length > 0)
        length[~known] = 1
        x, y = _differences(points[:, at], truth[:, at])
        for direction, errors in (("along", x * line_x + y * line_y), ("across", x * line_y - y * line_x)):
            errors = np.abs(errors) / length
            errors[~np.isfinite(errors)] = np.inf
            errors[~known] = np.nan
            result[f"line/{name}/{direction}"] = percent_mean(nme(errors, distance))
    return result
