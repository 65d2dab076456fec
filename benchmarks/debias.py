"""What ``debias=true`` is worth to runs that were trained without it: their error on validation and test faces, moved and not.

    python -m benchmarks.debias RUN ...

RUN is the id or the folder of a run. On validation faces, the offsets of one half move the points of the other, in 20 random
halvings, so no face takes part in moving its own points: what a choice may be based on. The test faces are moved by
the offsets of all validation faces, as they are after a training.
"""

import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from flr.config.compose import compose_command
from flr.data.datamodule import FaceData
from flr.evaluation import stored_run
from flr.inference.predictor import Predictor
from flr.landmarks.geometry import invert, transform
from flr.metrics.functional import nme, percent_mean, point_errors

HALVINGS = 20


class Found:
    """Points of the faces of a split, in pixels of their crops: found (N, K, 2) and true (N, K, 2), NaN where not labelled."""

    def __init__(self, predictor: Predictor, data: FaceData, split: str) -> None:
        self.rows, self.table = data.rows(split), data.prepare()
        self.to_crop, self.normaliser = data.store.to_crop()[self.rows], data.normaliser[self.rows]
        self.found = predictor.run(data.store.crops(self.rows))[0].astype(np.float64)
        true = transform(self.to_crop, self.table.points[self.rows].astype(np.float64))
        self.true = np.where(self.table.labelled[self.rows, :, None], true, np.nan)

    def offsets(self, of: np.ndarray) -> np.ndarray:
        """Return (K, 2) median errors of some of the faces."""
        return np.nan_to_num(np.nanmedian((self.true - self.found)[of], 0))

    def errors(self, offsets: np.ndarray) -> np.ndarray:
        """Return the NME (N,) of points that are moved by offsets (K, 2)."""
        points = transform(invert(self.to_crop), self.found + offsets)
        labelled = self.table.labelled[self.rows]
        return nme(point_errors(points, self.table.points[self.rows], labelled), self.normaliser)


def measure(run: str) -> tuple[str, dict[str, float]]:
    """Return the name of a run, and its NME in percent: of each split, as it is and moved."""
    stored = stored_run.load(compose_command("evaluate", []), [], run)
    if stored.module.offsets is not None:
        sys.exit(f"{run}: its points are moved already; name a run that was trained without debias=true")
    predictor = Predictor(stored.module, stored.data.crop, stored.data.pixels, None, False, "cpu")
    val, test = (Found(predictor, stored.data, split) for split in ("val", "test"))
    random, means = np.random.default_rng(0), []
    for _ in range(HALVINGS):
        first, second = np.array_split(random.permutation(len(val.rows)), 2)
        parts = [val.errors(val.offsets(of))[on] for of, on in ((first, second), (second, first))]
        means.append(percent_mean(np.concatenate(parts)))
    name = f"{stored.label}, run {stored.folder.path.name[:8]}"
    return name, {
        "val": percent_mean(val.errors(np.zeros(2))), "val moved": float(np.mean(means)),
        "test": percent_mean(test.errors(np.zeros(2))),
        "test moved": percent_mean(test.errors(val.offsets(np.arange(len(val.rows))))),
    }  # fmt: skip


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("usage: python -m benchmarks.debias RUN ...")
    figures = dict(measure(run) for run in sys.argv[1:])
    table = Table(title="NME, %")
    for column in ("run", *next(iter(figures.values()))):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    Console().print(table)
    record("debias", "python -m benchmarks.debias RUN ...", nme_percent=figures, halvings=HALVINGS)


if __name__ == "__main__":
    main()
