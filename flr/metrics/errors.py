"""The torchmetrics class: state only, gathered once across ranks by face index."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from flr.metrics.conformal import calibrate
from flr.metrics.functional import (
    face_uncertainty,
    hidden_precision,
    mae,
    mse,
    nme,
    percent_mean,
    point_errors,
    spearman,
)

ENOUGH = 20  # labelled faces, for a median to mean anything
CERTAIN_SHARE = 0.99  # of the validation faces; a face that is more uncertain than these counts as uncertain


class LandmarkErrors(Metric):
    """Predictions of an evaluation; exact on any number of ranks, even or not, since rows are kept by face index.

    `compute` gives ``nme`` (percent), ``mse`` and ``mae`` (units of the crop's side); where the model reports the uncertainty of
    its points, also ``spearman`` and ``uncertainty_threshold``, the 99th percentile of the faces' uncertainties in percent of the normaliser.
    """

    full_state_update = False
    STATES = ("index", "points", "truth", "labelled", "normaliser", "side", "spread", "visible", "hidden")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(compute_with_cache=False, **kwargs)  # MPS could not hold its float64
        for name in self.STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, index: Tensor, points: Tensor, truth: Tensor, labelled: Tensor, normaliser: Tensor, side: Tensor,
        spread: Tensor, visible: Tensor, hidden: Tensor,
    ) -> None:  # fmt: skip
        """Keep a batch.

        Args:
            index: (B,) int64, each face's own number.
            points: (B, K, 2) predicted, original-image pixels.
            truth: (B, K, 2).
            labelled: (B, K) bool.
            normaliser: (B,) original-image pixels.
            side: (B,) the crop's side, original-image pixels.
            spread: (B, K) how uncertain each point is, original-image pixels; NaN where that is not known.
            visible: (B, K) predicted probability that the point is visible; NaN where the model gives none.
            hidden: (B, K) bool, whether the point is labelled as hidden.
        """
        batch = (index, points, truth, labelled, normaliser, side, spread, visible, hidden)
        for name, value in zip(self.STATES, batch, strict=True):
            getattr(self, name).append(value.detach())

    def gathered(self) -> dict[str, np.ndarray]:
        """The states by face index, each face once; after a sync, those of all ranks."""
        states = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in self.STATES}
        _, first = np.unique(states["index"], return_index=True)
        return {name: value[first] for name, value in states.items()}

    def compute(self) -> dict[str, Tensor]:
        states = self.gathered()
        labelled, side = states["labelled"], states["side"]
        pair = states["points"], states["truth"]
        values = {
            "nme": percent_mean(_nme(states)),
            "mse": mse(*pair, labelled, side),
            "mae": mae(*pair, labelled, side),
        }
        rank = spearman(point_errors(*pair, labelled), states["spread"], states["normaliser"])
        if not np.isnan(rank):
            threshold = np.nanquantile(
                face_uncertainty(states["spread"], states["normaliser"].astype(np.float64)), CERTAIN_SHARE
            )
            values |= {"spearman": rank, "uncertainty_threshold": float(threshold)}
        precision = hidden_precision(states["visible"], states["hidden"], labelled)
        if not np.isnan(precision):
            values["hidden_ap"] = precision
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def offsets(self) -> np.ndarray:
        """Return (K, 2) float32 medians of truth minus prediction, shares of the crop's side; 0 for points with fewer than `ENOUGH` labels."""
        with self.sync_context():
            states = self.gathered()
        off = (states["truth"] - states["points"]) / states["side"][:, None, None]
        enough = states["labelled"].sum(0) >= ENOUGH
        off = np.where(states["labelled"][..., None] | ~enough[:, None], off, np.nan)
        return np.where(enough[:, None], np.nanmedian(off, 0), 0).astype(np.float32)

    def radius_factors(self, offsets: Tensor | None = None) -> list[float | None]:
        """Return the factors of `calibrate` for predictions that are moved by `offsets` (K, 2)."""
        with self.sync_context():
            states = self.gathered()
        if offsets is not None:
            states["points"] = states["points"] + offsets.cpu().numpy() * states["side"][:, None, None]
        errors = point_errors(states["points"], states["truth"], states["labelled"])
        return calibrate(errors, states["spread"].astype(np.float64), states["side"].astype(np.float64))

    def by_subset(self, subsets: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The NME (percent) of each subset, a mask over all face indices, that holds a face seen here."""
        with self.sync_context():
            states = self.gathered()
        values = _nme(states)
        inside = {name: mask[states["index"]] for name, mask in subsets.items()}
        return {
            name: torch.tensor(percent_mean(values[mask]), dtype=torch.float64)
            for name, mask in inside.items() if mask.any()
        }  # fmt: skip


def _nme(states: dict[str, np.ndarray]) -> np.ndarray:
    errors = point_errors(states["points"], states["truth"], states["labelled"])
    return nme(errors, states["normaliser"].astype(np.float64))
