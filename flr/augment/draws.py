"""Random numbers as functions of what they are for, so that workers, ranks and resumption change nothing."""

from typing import Any

import numpy as np


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) int64: the order in which an epoch visits its faces."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def keys(seed: int, epoch: int, face: np.ndarray) -> np.ndarray:
    """(B,) uint64, a pure function of (seed, epoch, face index): the seed of whatever a face draws for itself."""
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
        key = _mix(key ^ np.uint64(epoch))
        return _mix(key ^ np.asarray(face).astype(np.uint64))


def uniform(seed: int, epoch: int, face: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """(B, count) float64 in [0, 1), a pure function of (seed, epoch, face index, column), columns from `first` on.

    A counter-based generator: the counter goes through SplitMix64's finaliser (Steele, Lea and Flood 2014,
    doi:10.1145/2660193.2660195) once per coordinate.
    """
    with np.errstate(over="ignore"):
        steps = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(keys(seed, epoch, face)[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
