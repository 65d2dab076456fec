"""Score a model on a split of a dataset."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from flr.augment.device import Augment
from flr.config.instantiate import build
from flr.config.schema import Train
from flr.config.validate import check
from flr.data.datamodule import FaceData
from flr.errors import UserError
from flr.inference.landmarker import Located
from flr.inference.predictor import Predictor
from flr.metrics.conformal import coverage, radii
from flr.metrics.functional import (
    along_lines,
    hidden_precision,
    mae,
    mse,
    nme,
    percent_mean,
    point_errors,
    rmse,
    spearman,
    summary,
)
from flr.module.assembly import build_data, reassemble
from flr.module.device import allow_tf32, find_device
from flr.module.landmark_module import LandmarkModule


@dataclass(frozen=True, eq=False)
class Result:
    """A scored split.

    Attributes:
        metrics: By the names of the contract without ``test/``; percent, except MSE and MAE.
        rows: (n,) rows of the table.
        points: (n, K, 2) predicted, original-image pixels.
        values: (n,) NME, a share.
        baseline: (n,) NME of the mean face.
        spread: (n,) mean uncertainty of a face's points in percent of the normaliser; NaN where the model gives none.
        cost: Parameters, MACs, milliseconds.
        tta: Whether each face was averaged with its mirror image.
        refine: Number of refinement passes.
    """

    metrics: dict[str, float]
    rows: np.ndarray
    points: np.ndarray
    values: np.ndarray
    baseline: np.ndarray
    spread: np.ndarray
    data: FaceData
    split: str
    cost: dict[str, float]
    tta: bool
    refine: int


def restore(
    config: DictConfig, checkpoint: dict[str, Any], path: Path, augment: Augment | None = None
) -> tuple[LandmarkModule, FaceData]:
    """Rebuild the model of a checkpoint, and prepare its data.

    Args:
        config: The config of the checkpoint, which is not trusted.
        checkpoint: See `load_checkpoint`.
        path: Its file, for errors.
        augment: Augmentation for which the crop store leaves a margin; None for that of the training.

    Raises:
        UserError: The config may not be built, the data cannot be read, or the model does not fit them.
    """
    check(config, Train, trusted=False)
    data = build_data(config, augment)
    data.prepare()
    scheme = checkpoint["flr"]["scheme"]
    if data.scheme.plain() != scheme:
        raise UserError(
            f"the model gives {scheme['name']} points, data={data.name} has {data.scheme.name}; name a dataset of that "
            "scheme"
        )
    return reassemble(config, data.scheme, data.crop, checkpoint, path), data


def tester(config: DictConfig, device: str = "auto") -> pl.Trainer:
    """Make the trainer that evaluates a model on one device, with the precision of the run's config.

    Args:
        config: The run's config.
        device: See `find_device`; ``auto`` is the CPU for a run that was trained with ``trainer.accelerator=cpu``.

    Raises:
        UserError: This machine has no such device.
    """
    allow_tf32(bool(config.trainer.get("tf32")))
    found = find_device("cpu" if device == "auto" and config.trainer.accelerator == "cpu" else device)
    devices = "1" if found.index is None else f"{found.index},"  # Lightning reads "1," as the device of that number
    trainer: pl.Trainer = build(
        {"_target_": "pytorch_lightning.Trainer", "accelerator": found.type, "precision": config.trainer.precision},
        devices=devices, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    return trainer


def score(
    trainer: pl.Trainer, module: LandmarkModule, data: FaceData, checkpoint: str | None, split: str = "test",
    refine: int = 0,
) -> Result:  # fmt: skip
    """Evaluate a split once and measure the model's cost.

    Args:
        trainer: Trainer; with several ranks each of them calls this.
        module: The model and its objective.
        data: The prepared dataset.
        checkpoint: Weights to load first; None for those of the module.
        split: Split to score.
        refine: Number of refinement passes, see `Landmarker.find_in_crops`.

    Raises:
        UserError: `refine` with a model whose boxes do not follow from its points.
    """
    data.test_split = split
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    rows, points, spread, visible = (module.evaluated[key] for key in ("index", "points", "spread", "visible"))
    radius = radii(module.radius_factors, spread, module.evaluated["side"][:, None])
    if refine:
        half, device = trainer.precision == "bf16-mixed", str(trainer.strategy.root_device)
        predictor = Predictor(module, data.crop, data.pixels, None, half, device)
        _refine(predictor, data, rows, Located(points, spread, visible, radius), refine)
    table = data.prepare()
    truth, labelled, normaliser = table.points[rows], table.labelled[rows], data.normaliser[rows]
    metrics = _metrics(module, data, rows, points)
    precision = hidden_precision(visible, module.evaluated["hidden"], labelled)
    if np.isfinite(precision):
        metrics["hidden_ap"] = precision
    mean_face = data.in_original(np.broadcast_to(module.mean_face.cpu().numpy(), truth.shape), rows)
    baseline = nme(point_errors(mean_face, truth, labelled), normaliser)
    metrics["baseline_nme"] = percent_mean(baseline)
    errors = point_errors(points, truth, labelled)
    values = nme(errors, normaliser)
    subsets = {name: mask[rows] for name, mask in table.subsets.items()}
    metrics |= coverage(errors, radius, normaliser, table.scheme, subsets)
    spread = np.where(labelled, spread, np.nan)
    face_spread = 100 * nme(spread, normaliser)
    if np.isfinite(rank := spearman(errors, spread, normaliser)):
        ones = np.ones(len(rows))
        metrics |= {"spearman": rank, "spearman_faces": spearman(values[:, None], face_spread[:, None], ones)}
    return Result(
        metrics=metrics, rows=rows, points=points, values=values, baseline=baseline, spread=face_spread, data=data,
        split=split, cost=cost(module, data, trainer.strategy.root_device), tta=module.tta, refine=refine,
    )  # fmt: skip


def _refine(predictor: Predictor, data: FaceData, rows: np.ndarray, found: Located, refine: int) -> None:
    """Predict faces again with refinement passes, and replace the results of the first pass, in place."""
    table, to_crop = data.prepare(), data.store.to_crop()
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):  # not all images in memory at once
        images = [table.load(int(row)) for row in rows[part]]
        refined = predictor.find_in_crops(images, to_crop[rows[part]], refine)
        for values, better in zip(found, refined, strict=True):
            values[part] = better


def _metrics(module: LandmarkModule, data: FaceData, rows: np.ndarray, points: np.ndarray) -> dict[str, float]:
    """Compute all metrics of the points themselves."""
    table = data.prepare()
    truth, labelled = table.points[rows], table.labelled[rows]
    metrics = summary(
        points, truth, labelled, table.scheme, {k: v[rows] for k, v in table.subsets.items()}, table.box[rows]
    )
    metrics |= along_lines(points, truth, labelled, table.scheme)
    side = module.evaluated["side"]
    metrics |= {"mse": mse(points, truth, labelled, side), "mae": mae(points, truth, labelled, side)}
    size = data.card["picture_size"]
    if all(size[axis]["min"] == size[axis]["max"] for axis in size):
        metrics["rmse"] = rmse(points, truth, labelled)  # pixels mean the same in every image
    return metrics


def cost(module: LandmarkModule, data: FaceData, device: torch.device) -> dict[str, float]:
    """Measure parameters, and multiply-accumulates and median milliseconds of one face, in 32 bit (TF32 if allowed)."""
    net = module.best_net.eval().to(device)  # Lightning leaves it on the host after a pass
    size = data.crop.size
    face = torch.zeros(1, data.crop.channels, size, size, device=device)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            net(face)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            net(face)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "macs": counter.get_total_flops() / 2,
        "latency_ms": float(np.median(times[2:])),
    }
