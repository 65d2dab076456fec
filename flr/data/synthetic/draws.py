"""Random numbers of one face: a function of (seed, index) and of the order of the draws alone."""

from collections.abc import Sequence

import numpy as np

_COUNT = 400  # more than one face ever draws; one block is far cheaper than single draws


class Draws:
    """Hands out numbers from two blocks drawn once, so that a draw costs next to nothing."""

    def __init__(self, seed: int, index: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=[seed, index]))
        self._uniform = iter(generator.random(_COUNT).tolist())
        self._normal = iter(np.minimum(np.maximum(generator.standard_normal(_COUNT), -2.5), 2.5).tolist())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * next(self._uniform)

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """Normal, clipped at 2.5 deviations so that no face falls apart."""
        return mean + deviation * next(self._normal)

    def normals(self, count: int, deviation: float = 1.0) -> np.ndarray:
        return np.array([next(self._normal) for _ in range(count)], np.float32) * deviation

    def chance(self, probability: float) -> bool:
        return next(self._uniform) < probability

    def pick(self, weights: Sequence[float]) -> int:
        """An index drawn in proportion to `weights`."""
        left = next(self._uniform) * sum(weights)
        for i, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return i
        return len(weights) - 1

    def colour(self, low: float = 10.0, high: float = 240.0, spread: float = 40.0) -> np.ndarray:
        """(3,) float32 RGB: a random grey level, tinted."""
        level = self.uniform(low, high)
        return np.array([min(max(level + self.uniform(-spread, spread), 0), 255) for _ in range(3)], np.float32)
