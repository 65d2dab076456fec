"""Scoring a model on a part of a dataset."""

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
from flr.inference.predictor import Predictor
from flr.metrics.functional import along_lines, mae, mse, nme, percent_mean, point_errors, rmse, spearman, summary
from flr.module.assembly import reassemble
from flr.module.device import allow_tf32, find_device
from flr.module.landmark_module import LandmarkModule


@dataclass(frozen=True, eq=False)
class Result:
    """A scored part.

    Attributes:
        metrics: by the names of the contract, less their ``test/``; percent but MSE and MAE.
        rows: (n,) rows of the table.
        points: (n, K, 2) predicted, original-image pixels.
        values: (n,) NME, a share.
        baseline: (n,) the mean face's NME.
        spread: (n,) percent of the normaliser: how uncertain the net is of each face's points, on average; NaN where it does not tell.
        data: the set.
        split: the part.
        cost: parameters, MACs, milliseconds.
        tta: whether each face was averaged with its mirror image.
        looks: at each face.
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
    looks: int


def restore(
    own: DictConfig, checkpoint: dict[str, Any], path: Path, augment: Augment | None = None
) -> tuple[LandmarkModule, FaceData]:
    """The net of a checkpoint, on its prepared data.

    Args:
        own: the config that came with it, which is not trusted.
        checkpoint: of `load_checkpoint`.
        path: where it lies, said in errors.
        augment: what the crop store leaves a margin for; None for what the net was trained with.

    Raises:
        UserError: the config may not be built, the data cannot be read, or the net does not fit them.
    """
    check(own, Train, trusted=False)
    data = build(own.data, augment=augment or build(own.augment), seed=own.seed, cache=own.paths.cache_dir)
    data.prepare()
    scheme = checkpoint["flr"]["scheme"]
    if data.scheme.plain() != scheme:
        raise UserError(
            f"the net gives {scheme['name']} points, data={data.name} has {data.scheme.name}; name a set of that scheme"
        )
    return reassemble(own, data.scheme, data.crop, checkpoint, path), data


def tester(own: DictConfig, device: str = "auto") -> pl.Trainer:
    """What runs the evaluation of a net on one device, as precisely as the run's own config says.

    Args:
        own: the run's config.
        device: see `find_device`; ``auto`` for that of the config.

    Raises:
        UserError: this machine has no such device.
    """
    allow_tf32(bool(own.trainer.get("tf32")))
    accelerator, devices = own.trainer.accelerator, "1"
    if device != "auto":
        found = find_device(device)
        accelerator, devices = (
            found.type,
            "1" if found.index is None else f"{found.index},",
        )  # the device of that number
    trainer: pl.Trainer = build(
        {"_target_": "pytorch_lightning.Trainer", "accelerator": accelerator, "precision": own.trainer.precision},
        devices=devices, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    return trainer


def score(
    trainer: pl.Trainer, module: LandmarkModule, data: FaceData, checkpoint: str | None, split: str = "test",
    looks: int = 1,
) -> Result:  # fmt: skip
    """Evaluate a part once and measure the net.

    Args:
        trainer: what runs it; on several ranks every one of them calls this.
        module: the net and its objective.
        data: the prepared set.
        checkpoint: weights to load first; None for those at hand.
        split: the part to score.
        looks: at each face: from the second on the net sees it cut round the points that it found before, see `Landmarker.find`.

    Raises:
        UserError: more than one look of a net whose boxes no points tell.
    """

    data.test_split = split
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    rows, points = module.evaluated["index"], module.evaluated["points"]
    spread = module.evaluated["spread"]
    if looks > 1:
        half, device = trainer.precision == "bf16-mixed", str(trainer.strategy.root_device)
        _look_again(
            Predictor(module, data.crop, data.pixels, None, half, device), data, rows, points, spread, looks - 2
        )
    table = data.prepare()
    truth, labelled, normaliser = table.points[rows], table.labelled[rows], data.normaliser[rows]
    metrics = _metrics(module, data, rows, points)
    mean_face = data.in_original(np.broadcast_to(module.mean_face.cpu().numpy(), truth.shape), rows)
    baseline = nme(point_errors(mean_face, truth, labelled), normaliser)
    metrics["baseline_nme"] = percent_mean(baseline)
    errors = point_errors(points, truth, labelled)
    values = nme(errors, normaliser)
    spread = np.where(labelled, spread, np.nan)
    face_spread = 100 * nme(spread, normaliser)
    if np.isfinite(rank := spearman(errors, spread, normaliser)):
        ones = np.ones(len(rows))
        metrics |= {"spearman": rank, "spearman_faces": spearman(values[:, None], face_spread[:, None], ones)}
    return Result(
        metrics=metrics,
        rows=rows,
        points=points,
        values=values,
        baseline=baseline,
        spread=face_spread,
        data=data,
        split=split,
        cost=cost(module, data, trainer.strategy.root_device),
        tta=module.tta,
        looks=looks,
    )


def _look_again(
    predictor: Predictor, data: FaceData, rows: np.ndarray, points: np.ndarray, spread: np.ndarray, refine: int
) -> None:
    """Predict faces again from crops round their points, and put the results in the place of the first."""
    table = data.prepare()
    for some in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):  # not all images in memory at once
        images = [table.load(int(row)) for row in rows[some]]
        points[some], spread[some] = predictor.find(images, predictor.boxes(points[some]), refine=refine)


def _metrics(module: LandmarkModule, data: FaceData, rows: np.ndarray, points: np.ndarray) -> dict[str, float]:
    """All metrics of the points themselves."""
    table = data.prepare()
    truth, labelled = table.points[rows], table.labelled[rows]
    metrics = summary(points, truth, labelled, table.scheme, {k: v[rows] for k, v in table.subsets.items()})
    metrics |= along_lines(points, truth, labelled, table.scheme)
    side = module.evaluated["side"]
    metrics |= {"mse": mse(points, truth, labelled, side), "mae": mae(points, truth, labelled, side)}
    size = data.card["picture_size"]
    if all(size[axis]["min"] == size[axis]["max"] for axis in size):
        metrics["rmse"] = rmse(points, truth, labelled)  # pixels mean the same in every image
    return metrics


def cost(module: LandmarkModule, data: FaceData, device: torch.device) -> dict[str, float]:
    """Parameters; multiply-accumulates of one face; the median milliseconds of one face on that device, 32 bit, or TF32 where that is allowed."""

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
