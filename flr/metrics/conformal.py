"""Radii that hold the true point in 90 % of cases: split conformal prediction, per point, scaled by the model's uncertainty.

Vovk et al. 2005; Lei et al. 2018, arXiv:1604.04173, with errors divided by an estimate of their size (section 5.2). The promise
holds for faces of the distribution that the radii were calibrated on, and on average over faces, not for each kind of face.
"""

from collections.abc import Mapping

import numpy as np

from flr.landmarks.scheme import Scheme

LEVEL = 0.9
FLOOR = 1 / 256  # shares of the crop's side, added to the uncertainty: a model may be certain and wrong


def _scale(spread: np.ndarray, size: float | np.ndarray) -> np.ndarray:
    """Return what errors are divided by; a constant where the model gives no uncertainty."""
    return np.nan_to_num(spread) + FLOOR * size


def calibrate(errors: np.ndarray, spread: np.ndarray, side: np.ndarray) -> list[float | None]:
    """Return for each point the factor of its radius, from faces that the model was not trained on.

    Args:
        errors: (N, K) distances, NaN where unlabelled.
        spread: (N, K) uncertainties in the same unit, NaN where the model gives none.
        side: (N,) sides of the crops in the same unit.

    Returns:
        K factors, None for a point with too few labelled faces: 9 are needed.

    Example:
        >>> calibrate(np.arange(1.0, 11)[:, None], np.full((10, 1), np.nan), np.full(10, 256.0))
        [10.0]
    """
    ratios = errors / _scale(spread, side[:, None])
    factors: list[float | None] = []
    for point in ratios.T:
        known = np.sort(point[np.isfinite(point)])
        rank = int(np.ceil(LEVEL * (len(known) + 1)))
        factors.append(float(known[rank - 1]) if 0 < rank <= len(known) else None)
    return factors


def radii(factors: np.ndarray | None, spread: np.ndarray, side: float | np.ndarray) -> np.ndarray:
    """Return the radius of each point.

    Args:
        factors: (K,) of `calibrate`, NaN where unknown; None for a model without calibration.
        spread: (N, K) uncertainties, NaN where the model gives none.
        side: Side of the crop, or (N, 1) sides, in the unit of `spread`.

    Returns:
        (N, K) radii in that unit, NaN where unknown.

    Example:
        >>> radii(np.array([10.0]), np.array([[0.5]]), 128)
        array([[10.]])
    """
    return np.full(spread.shape, np.nan) if factors is None else factors * _scale(spread, side)


def coverage(
    errors: np.ndarray, radius: np.ndarray, distance: np.ndarray, scheme: Scheme, subsets: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Compute how often radii hold the truth, and how large they are, percent.

    Args:
        errors: (N, K) pixels, NaN where unlabelled.
        radius: (N, K) pixels, NaN where unknown.
        distance: (N,) pixels, the normaliser.
        scheme: Of the points; names the regions.
        subsets: Name -> (N,) bool.

    Returns:
        ``coverage90`` and ``radius90`` (percent of the normaliser), ``<subset>/coverage90`` and
        ``region/<name>/coverage90``; empty where no radius is known.

    Example:
        >>> from flr.landmarks.scheme import CELEBA5
        >>> errors = np.array([[1.0, 1.0, 3.0, 1.0, 1.0]])
        >>> result = coverage(errors, np.full((1, 5), 2.0), np.array([50.0]), CELEBA5, {})
        >>> result["coverage90"], result["radius90"]
        (80.0, 4.0)
    """
    known = np.isfinite(errors) & np.isfinite(radius)
    held = np.where(known, errors <= radius, np.nan)
    parts = {"": (np.ones(len(errors), bool), slice(None))}
    parts |= {f"{name}/": (mask, slice(None)) for name, mask in subsets.items()}
    everyone = np.ones(len(errors), bool)
    parts |= {f"region/{name}/": (everyone, list(group)) for name, group in scheme.regions.items()}  # type: ignore[misc]
    found = {
        f"{name}coverage90": float(100 * np.nanmean(held[faces][:, points]))
        for name, (faces, points) in parts.items()
        if known[faces][:, points].any()
    }
    if found:
        shares = np.where(known, radius, np.nan) / distance[:, None]
        found["radius90"] = float(100 * np.nanmean(np.where(np.isfinite(shares), shares, np.nan)))
    return found
