"""``python -m flr.evaluate run=ID|DIR|CKPT``: score a trained net; net, data and protocol come from its checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from flr.config import Evaluate, Train, as_config, build, check, door, quiet, reassemble, task_overrides
from flr.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pytorch_lightning as pl
    import torch

    from flr.augment.device import Augment
    from flr.data.datamodule import FaceData
    from flr.module import LandmarkModule
    from flr.tracking.mlflow import Tracker

# They stay in evaluation.json: in tables and as metrics they would bury the rest.
DETAILS = ("point/", "line/")


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
    rows: "np.ndarray"
    points: "np.ndarray"
    values: "np.ndarray"
    baseline: "np.ndarray"
    spread: "np.ndarray"
    data: "FaceData"
    split: str
    cost: dict[str, float]
    tta: bool
    looks: int


def main(cfg: DictConfig) -> None:
    """Score the run that the config names."""
    from flr.augment.device import Augment
    from flr.checkpoints import RunFolder, find_checkpoint, load_checkpoint
    from flr.landmarks.scheme import SCHEMES
    from flr.tracking.mlflow import Tracker
    from flr.tracking.store import permitted

    if cfg.run is None:
        raise UserError("name what to score: run=ID, run=FOLDER or run=FILE.ckpt")
    quiet()
    check(cfg, Evaluate)
    best = find_checkpoint(str(cfg.run), str(cfg.tracking.uri), Path(cfg.paths.output_dir))
    folder = RunFolder(best.parent.parent)
    checkpoint = load_checkpoint(best)
    about = checkpoint["flr"]
    own = as_config(about["config"])
    own.paths = cfg.paths
    if cfg.data.get("_target_"):
        other = OmegaConf.merge(cfg.data, {"crop": own.data.crop, "pixels": own.data.pixels})
        if other.scheme is None and about["scheme"].get("name") in SCHEMES:
            other.scheme = about["scheme"]["name"]  # a set of more points is reduced to the net's
        for word in task_overrides():
            if word.startswith("data.crop."):
                OmegaConf.update(
                    other, word.split("=")[0].removeprefix("data."), OmegaConf.select(cfg, word.split("=")[0])
                )
        own.data = other
    else:
        for word in task_overrides():
            if word.lstrip("+").startswith("data.") and not word.startswith("data.root="):
                raise UserError(f"{word} needs data=NAME: without it the run's own data are scored as they were")
        if cfg.data.root is not None:
            own.data.root = cfg.data.root
    # Nothing is bent here, and the store without a margin serves every run.
    module, data = restore(own, checkpoint, best, Augment())
    if cfg.tta is not None:
        module.tta = cfg.tta
    if cfg.submission is not None:
        submit(module, data, Path(cfg.submission).absolute())
        return
    result = score(tester(own), module, data, None, cfg.split, cfg.looks)
    # Only the run's own test of its own best weights is the run's result; all else stands beside it.
    same = (
        asdict(data.protocol) == about["protocol"]
        and cfg.split == "test"
        and module.tta == own.tta
        and cfg.looks == 1
        and best == folder.best
    )
    where = folder.path if (folder.path / "run.json").is_file() else Path(cfg.paths.output_dir).absolute()
    if not same:
        words = [data.name, data.protocol.fingerprint, data.protocol.policy, cfg.split, best.stem]
        where = (
            where / "evaluations" / "-".join([*words, *["tta"] * module.tta, *[f"looks{cfg.looks}"] * (cfg.looks > 1)])
        )
    write(result, where, str(best))
    if (folder.path / "run.json").is_file():
        note = folder.note()
        tracker: Tracker = build(own.tracking, artifacts=Path(), uri=note["uri"], experiment=note["experiment"])
        tracker.attach(note["run_id"])
        with permitted(note["uri"], f"writing to run {note['run_id']}; the result is in {where}"):
            log(result, tracker, where, step=int(checkpoint["global_step"]), prefix="" if same else f"{where.name}/")
            tracker.save()
    show(result)
    print(where / "evaluation.json")


def restore(
    own: DictConfig, checkpoint: dict[str, Any], path: Path, augment: "Augment | None" = None
) -> tuple["LandmarkModule", "FaceData"]:
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


def tester(own: DictConfig) -> "pl.Trainer":
    """What runs the evaluation of a net on one device, as the run's own config says which and how precisely."""
    trainer: pl.Trainer = build(
        {"_target_": "pytorch_lightning.Trainer", "accelerator": own.trainer.accelerator, "precision": own.trainer.precision},
        devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    return trainer


def score(
    trainer: "pl.Trainer", module: "LandmarkModule", data: "FaceData", checkpoint: str | None, split: str = "test",
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
    import numpy as np

    from flr.inference.predictor import Predictor
    from flr.metrics.functional import along_lines, mae, mse, nme, percent_mean, point_errors, rmse, spearman, summary

    data.test_split = split
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    table = data.prepare()
    rows, points = module.evaluated["index"], module.evaluated["points"]
    spread = module.evaluated["spread"]
    if looks > 1:
        half, device = trainer.precision == "bf16-mixed", str(trainer.strategy.root_device)
        predictor = Predictor(module, data.crop, data.pixels, None, half, device)
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):  # not all pictures in memory at once
            images = [table.load(int(row)) for row in rows[some]]
            points[some], spread[some] = predictor.find(images, predictor.boxes(points[some]), refine=looks - 2)
    truth, labelled = table.points[rows], table.labelled[rows]
    metrics = summary(points, truth, labelled, table.scheme, {k: v[rows] for k, v in table.subsets.items()})
    metrics |= along_lines(points, truth, labelled, table.scheme)
    side = module.evaluated["side"]
    metrics |= {"mse": mse(points, truth, labelled, side), "mae": mae(points, truth, labelled, side)}
    size = data.card["picture_size"]
    if all(size[axis]["min"] == size[axis]["max"] for axis in size):
        metrics["rmse"] = rmse(points, truth, labelled)  # pixels mean the same in every picture
    mean_face = data.in_original(np.broadcast_to(module.mean_face.cpu().numpy(), truth.shape), rows)
    baseline = nme(point_errors(mean_face, truth, labelled), data.normaliser[rows])
    metrics["baseline_nme"] = percent_mean(baseline)
    errors, normaliser = point_errors(points, truth, labelled), data.normaliser[rows]
    values = nme(errors, normaliser)
    spread = np.where(labelled, spread, np.nan)
    by_face = 100 * nme(spread, normaliser)
    if np.isfinite(told := spearman(errors, spread, normaliser)):
        ones = np.ones(len(rows))
        metrics |= {"spearman": told, "spearman_faces": spearman(values[:, None], by_face[:, None], ones)}
    return Result(
        metrics,
        rows,
        points,
        values,
        baseline,
        by_face,
        data,
        split,
        cost(module, data, trainer.strategy.root_device),
        module.tta,
        looks,
    )


def submit(module: "LandmarkModule", data: "FaceData", path: Path) -> None:
    """Predict the faces of Kaggle's test.csv and write what Kaggle takes.

    Raises:
        UserError: the set is not Kaggle's form of ``data=muct``, or see `muct.write_submission`.
    """
    import numpy as np
    import torch

    from flr.data.readers.muct import TEST, write_submission

    table = data.prepare()
    rows = np.flatnonzero(np.char.startswith(table.name, f"{TEST}#"))
    if table.scheme.name != "kaggle15":
        raise UserError(
            f"submission=: the net gives {table.scheme.name} points, and Kaggle wants kaggle15; name another run"
        )
    if not len(rows) or data.root is None:
        raise UserError(f"submission=: data={data.name} has no {TEST}; it is for Kaggle's form of data=muct")
    module.eval()
    with torch.no_grad():
        parts = [
            module(data.batch(torch.from_numpy(some), None).images)
            for some in np.array_split(rows, len(rows) // 256 + 1)
        ]
    points = data.in_original(torch.cat(parts).numpy(), rows)
    write_submission(path, Path(data.root).expanduser(), table.name[rows].tolist(), points)
    print(f"{len(rows)} faces  {path}")


def cost(module: "LandmarkModule", data: "FaceData", device: "torch.device") -> dict[str, float]:
    """Parameters; multiply-accumulates of one face; the median milliseconds of one face on that device, 32 bit."""
    import time

    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

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


def write(result: Result, folder: Path, checkpoint: str) -> None:
    """``evaluation.json``, and ``errors.csv`` with one row a face, under `folder`; `checkpoint` is noted."""
    import csv

    import numpy as np

    from flr.files import write_json, writing
    from flr.metrics.functional import point_errors

    table = result.data.prepare()
    write_json(
        folder / "evaluation.json",
        {
            "split": result.split,
            "tta": result.tta,
            "looks": result.looks,
            "checkpoint": checkpoint,
            "protocol": result.data.protocol.name,
            "metrics": {key: value if np.isfinite(value) else None for key, value in result.metrics.items()},
            "cost": result.cost,
            "faces": len(result.rows),
            "left_out": [str(fault) for fault in table.faults],
            **asdict(result.data.protocol),
        },
    )
    errors = point_errors(result.points, table.points[result.rows], table.labelled[result.rows])
    with writing(folder / "errors.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["face", "nme", "baseline_nme", "normaliser", "group", "spread"]
            + [f"error_{name}" for name in table.scheme.names]
        )
        for i, row in enumerate(result.rows):
            cells = ["" if np.isnan(e) else f"{e:.4f}" for e in errors[i]]
            rows.writerow(
                [table.name[row], f"{100 * result.values[i]:.5f}", f"{100 * result.baseline[i]:.5f}",
                 f"{result.data.normaliser[row]:.4f}", table.group[row],
                 "" if np.isnan(result.spread[i]) else f"{result.spread[i]:.4f}", *cells]
            )  # fmt: skip


def log(result: Result, tracker: "Tracker", folder: Path, step: int, prefix: str = "") -> None:
    """The numbers, files and pictures of an evaluation into a run."""
    import numpy as np

    from flr.callbacks import face_sheet
    from flr.landmarks.geometry import transform
    from flr.tracking.pictures import ced_figure

    shown = {key: value for key, value in result.metrics.items() if not key.startswith(DETAILS)}
    tracker.log_metrics({f"{prefix}{result.split}/{key}": value for key, value in shown.items()}, step)
    if not prefix:
        tracker.log_metrics({f"cost/{key}": value for key, value in result.cost.items()}, step)
    for name in ("evaluation.json", "errors.csv"):
        tracker.file(folder / name, prefix.rstrip("/") or None)
    tracker.figure(ced_figure({"net": result.values, "mean face": result.baseline}), f"{prefix}ced.png")
    worst = np.argsort(-np.nan_to_num(result.values))[:20]
    rows = result.rows[worst]
    points = transform(result.data.store.to_crop()[rows], result.points[worst].astype(np.float64))
    captions = [f"{100 * result.values[i]:.1f} %" for i in worst]
    tracker.picture(face_sheet(result.data, rows, points, 240, captions), f"{prefix}worst_faces.png")


def show(result: Result) -> None:
    """The table that a person reads."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.data.name} {result.split}, {len(result.rows)} faces", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in result.metrics.items():
        if not key.startswith(DETAILS):
            table.add_row(key, f"{value:.6f}" if key in ("mse", "mae") else f"{value:.2f}")
    table.add_section()
    for key, value in result.cost.items():
        table.add_row(key, f"{value:,.0f}" if value > 1000 else f"{value:.2f}")
    console = Console()
    console.print(table)
    console.print(result.data.protocol.name, highlight=False, markup=False)


if __name__ == "__main__":
    door(main, "evaluate")
