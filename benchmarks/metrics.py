"""Time of every metric over 20,000 faces of 68 points, beside a loop over faces as the field's own evaluation scripts do.

python -m benchmarks.metrics
"""

import sys
import time

import numpy as np

from benchmarks.common import report, rounds
from flr.landmarks.scheme import IBUG68
from flr.metrics.functional import mae, mse, summary

FACES, ROUNDS = 20_000, 5


def main() -> None:
    random = np.random.default_rng(0)
    truth = (random.normal(0, 1, (FACES, 68, 2)) * 40 + 200).astype(np.float32)
    points = truth + random.normal(0, 2, truth.shape).astype(np.float32)
    labelled = random.random((FACES, 68)) > 0.01
    labelled[:, [36, 45]] = True  # the outer eye corners, by which the error is normalised
    side = np.full(FACES, 250.0)
    subsets = {"a": random.random(FACES) < 0.5, "b": random.random(FACES) < 0.2}

    def ours() -> float:
        start = time.perf_counter()
        summary(points, truth, labelled, IBUG68, subsets)
        mse(points, truth, labelled, side)
        mae(points, truth, labelled, side)
        return 1000 * (time.perf_counter() - start)

    def loop() -> float:
        """The NME, FR and AUC alone, face by face."""
        start = time.perf_counter()
        values = np.empty(FACES)
        for i in range(FACES):
            distance = np.linalg.norm(truth[i, 36] - truth[i, 45])
            values[i] = np.linalg.norm(points[i] - truth[i], axis=1)[labelled[i]].mean() / distance
        np.mean(values > 0.08)
        ced = [np.mean(values <= step) for step in np.arange(0, 0.08, 0.0001)]
        np.trapezoid(ced, dx=0.0001)
        return 1000 * (time.perf_counter() - start)

    command = "python -m " + " ".join(["benchmarks.metrics", *sys.argv[1:]])
    report("metrics", "ms", rounds({"ours, all metrics": ours, "loop, NME FR AUC": loop}, ROUNDS), command)


if __name__ == "__main__":
    main()
