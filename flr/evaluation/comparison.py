"""Test whether one group of runs is better than another: a paired bootstrap over faces, or the persons they show, and seeds.

Sources: percentile interval, Efron and Tibshirani 1993, ch. 13; p with one draw added, Davison and Hinkley 1997, 4.2.3;
degrees of freedom, Satterthwaite 1946 (doi:10.2307/3002019); correction, Holm 1979; drawing whole clusters, Davison and
Hinkley 1997, 3.8; the effective number of clusters of unequal size, Kish 1965, 8.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flr.errors import UserError
from flr.metrics.functional import THRESHOLDS

METRICS = ("nme", *(f"{kind}{100 * threshold:.0f}" for threshold in THRESHOLDS for kind in ("fr", "auc")))
MAX_COUNTS = 4_000_000  # counts in memory at once: 32 MB


@dataclass(frozen=True)
class Difference:
    """Mean difference between two groups, in the metric's own unit.

    Attributes:
        low, high: The ends of its 95 % interval.
        p: Two-sided, of no difference.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float


def face_scores(nme: np.ndarray, metric: str) -> np.ndarray:
    """Return each face's contribution to a metric, percent; the metric is the mean over faces.

    Args:
        nme: (..., N) shares; NaN where undefined, and so is the contribution.
        metric: One of `METRICS`.
    """
    if metric == "nme":
        return 100 * nme
    kind, threshold = metric.rstrip("0123456789"), int(metric.lstrip("frauc")) / 100
    scores = nme > threshold if kind == "fr" else np.clip(1 - nme / threshold, 0, None)
    return np.where(np.isnan(nme), np.nan, 100 * scores)


def better(metric: str, first: float, second: float) -> bool:
    """Return whether the first value of a metric is better than the second."""
    return first > second if metric.startswith("auc") else first < second


def differences(
    groups: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    samples: int = 10_000,
    seed: int = 0,
    units: np.ndarray | None = None,
) -> list[Difference]:
    """Test the difference of the means over faces of each pair, with a bootstrap interval and p.

    A draw takes as many units as there are, with replacement, the same for all groups, and R runs of each group. With one run
    a group the interval covers the faces alone.

    A mean of few values varies less than the mean that it estimates: two or three seeds would give intervals that cover 80 %.
    So the mean of R drawn runs or U units is stretched by sqrt(R / (R - 1)) about the observed one, and the difference by
    sqrt(f / chi2(f)), which gives it the tails of Student's t with Satterthwaite's f degrees of freedom.

    Args:
        groups: Name -> (R, N) of R runs, one column a face, the same for all; NaN, where undefined, in all runs.
        pairs: Pairs of names.
        samples: Number of draws.
        seed: Seed of the draws.
        units: (N,) the person, clip or photo of each face, whose faces are drawn together; None to draw single faces.

    Raises:
        UserError: Fewer than two faces or units are defined.
    """
    rng = np.random.default_rng(seed)
    defined = ~np.isnan(np.concatenate(list(groups.values()))).any(0)
    scores = {name: values[:, defined] for name, values in groups.items()}
    faces = int(defined.sum())
    unit = np.arange(faces) if units is None else np.unique(units[defined], return_inverse=True)[1]
    unit_sizes = np.bincount(unit)
    if len(unit_sizes) < 2:
        raise UserError(
            f"{faces} face(s) with a defined error, of {len(unit_sizes)} person(s), clip(s) or photo(s): nothing to compare; "
            "name runs of a larger test part"
        )
    by_face = {name: values.mean(0) for name, values in scores.items()}
    sums = np.stack([np.bincount(unit, values) for values in by_face.values()])
    drawn = dict(zip(by_face, _drawn_means(sums, unit_sizes, samples, rng), strict=True))
    run_variance: dict[str, Variance] = {}
    for name, values in scores.items():
        if len(values) > 1:
            by_run = values.mean(1)
            drawn[name] = drawn[name] + _drawn_run_deviations(by_run, samples, rng)
            run_variance[name] = Variance(float(by_run.var(ddof=1)) / len(by_run), len(by_run))
    found = []
    for first, second in pairs:
        difference = by_face[first] - by_face[second]
        mean = float(difference.mean())
        variances = [_variance_over_units(difference, unit, unit_sizes)]
        variances += [run_variance[name] for name in (first, second) if name in run_variance]
        draws = mean + (drawn[first] - drawn[second] - mean) * _student_stretch(variances, samples, rng)
        found.append(_summarise(first, second, mean, draws))
    return found


class Variance(NamedTuple):
    """The variance of a mean, and the number of values that it was estimated from."""

    value: float
    sample: float


def _variance_over_units(difference: np.ndarray, unit: np.ndarray, sizes: np.ndarray) -> Variance:
    """Return the variance of the mean over faces that comes from the choice of units, and Kish's effective number of units.

    Args:
        difference: (N,) of each face.
        unit: (N,) number of each face's unit.
        sizes: (U,) faces of each unit.
    """
    faces, units = len(unit), len(sizes)
    deviations = np.bincount(unit, difference - float(difference.mean()))
    variance = float((deviations**2).sum()) / faces**2 * units / (units - 1)
    return Variance(variance, max(2.0, faces**2 / float((sizes**2).sum())))


def _summarise(first: str, second: str, mean: float, draws: np.ndarray) -> Difference:
    low, high = np.quantile(draws, (0.025, 0.975))
    beyond_zero = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(first, second, mean, float(low), float(high), min(1.0, 2 * beyond_zero / (len(draws) + 1)))


def _drawn_means(sums: np.ndarray, sizes: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw units with replacement and return the means (G, samples) over their faces.

    Args:
        sums: (G, U) over the faces of each unit.
        sizes: (U,) faces.
        samples: Number of draws.
        rng: Generator of the draws.
    """
    units = len(sizes)
    chunk = max(1, MAX_COUNTS // units)
    means = np.empty((len(sums), samples))
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        picked = rng.integers(units, size=(size, units), dtype=np.int32)
        picked += np.arange(size, dtype=np.int32)[:, None] * units
        counts = np.bincount(picked.ravel(), minlength=size * units).reshape(size, units).T.astype(np.float64)
        means[:, start : start + size] = sums @ counts / (sizes @ counts)
    observed = sums.sum(1, keepdims=True) / sizes.sum()
    return observed + np.sqrt(units / (units - 1)) * (means - observed)


def _drawn_run_deviations(means: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw runs with replacement and return how far (samples,) their mean is from that of all runs.

    Args:
        means: (R,) mean over faces of each run.
        samples: Number of draws.
        rng: Generator of the draws.
    """
    runs = len(means)
    picked = means[rng.integers(runs, size=(samples, runs))].mean(1)
    return np.sqrt(runs / (runs - 1)) * (picked - means.mean())


def _student_stretch(variances: Sequence[Variance], samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return factors (samples,) that turn normal tails into Student's, for a mean whose variance is the sum of some.

    Args:
        variances: The variances.
        samples: Number of draws.
        rng: Generator of the draws.
    """
    total = sum(variance.value for variance in variances)
    if total == 0:
        return np.ones(samples)
    freedom = total**2 / sum(variance.value**2 / (variance.sample - 1) for variance in variances)
    return np.sqrt(freedom / rng.chisquare(freedom, samples))


def holm(p: Sequence[float]) -> list[float]:
    """Correct the p of several tests so that a false alarm in any of them stays as rare as in one test."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1).tolist()
