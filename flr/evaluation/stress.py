"""Test a model on corrupted faces: NME by kind and severity, and the mean corruption error against a baseline."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from flr.data.crops import crop
from flr.data.datamodule import FaceData
from flr.errors import UserError, nearest
from flr.evaluation import stored_run
from flr.evaluation.corruptions import BOXES, KINDS, PIXELS, SEVERITIES, corrupt_boxes, corrupt_pixels
from flr.evaluation.stored_run import StoredModel, open_tracker, result_folder, table_folder
from flr.files import write_file, write_json
from flr.inference.landmarker import BATCH_SIZE
from flr.inference.predictor import Predictor
from flr.landmarks.geometry import invert, transform
from flr.metrics.conformal import coverage, radii
from flr.metrics.functional import nme, percent_mean, point_errors
from flr.module.device import allow_tf32
from flr.reporting.figures import png, stress_figure
from flr.reporting.tables import TextTable, print_table, report_tables, write_csv


@dataclass(frozen=True, eq=False)
class StressResult:
    """NME of a model on clean and on corrupted faces, percent.

    Attributes:
        label: Name of the run.
        protocol: Name of the protocol.
        faces: Number of faces.
        clean: NME without corruption.
        nme: Kind -> NME at each severity.
        coverage: Kind -> share of the true points within the 90 % radius at each severity, percent; empty for a model
            without radii.
    """

    label: str
    protocol: str
    faces: int
    clean: float
    nme: dict[str, list[float]]
    coverage: dict[str, list[float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean NME over kinds and severities."""
        return float(np.mean([np.mean(values) for values in self.nme.values()]))

    def mean_corruption_error(self, baseline: "StressResult") -> float:
        """Return the mean over kinds of this NME over the baseline's, each summed over severities, percent."""
        return float(np.mean([100 * np.sum(self.nme[kind]) / np.sum(baseline.nme[kind]) for kind in self.nme]))


def stress_test(
    stored: StoredModel, label: str, kinds: list[str], seed: int, split: str, device: str = "auto"
) -> StressResult:
    """Score a model on the faces of a split under each kind of corruption at each severity.

    Args:
        stored: The model and its data.
        label: Its name in tables.
        kinds: Of `KINDS`.
        seed: Of the corruptions: each face has its own draws, the same for all models.
        split: Split whose faces are corrupted.
        device: Device on which the network runs, see `find_device`.
    """
    data, module, trainer = stored.data, stored.module, stored.config.trainer
    allow_tf32(bool(trainer.get("tf32")))
    predictor = Predictor(module, data.crop, data.pixels, None, str(trainer.precision) == "bf16-mixed", device)
    rows, table, size = data.rows(split), data.prepare(), data.crop.size
    errors: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    radius: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        for key, crops, to_crop in corrupted_views(data, batch, kinds, seed):
            points, spread, _ = predictor.run(crops)
            found = transform(invert(to_crop), points)
            errors[key].append(point_errors(found, table.points[batch], table.labelled[batch]))
            scale = np.sqrt(np.linalg.det(to_crop[..., :2]))[:, None]
            radius[key].append(radii(predictor.radius_factors, spread, size) / scale)
    normaliser = data.normaliser[rows]
    values, covered = {}, {}
    for key, parts in errors.items():
        of_key = np.concatenate(parts)
        values[key] = percent_mean(nme(of_key, normaliser))
        held = coverage(of_key, np.concatenate(radius[key]), normaliser, table.scheme, {})
        covered[key] = held.get("coverage90", float("nan"))
    nmes, shares = ({kind: [found[kind, s] for s in SEVERITIES] for kind in kinds} for found in (values, covered))
    known = np.isfinite(list(shares.values())).all()
    return StressResult(label, data.protocol.name, len(rows), values["", 0], nmes, shares if known else {})


def corrupted_views(
    data: FaceData, batch: np.ndarray, kinds: Sequence[str], seed: int
) -> list[tuple[tuple[str, int], np.ndarray, np.ndarray]]:
    """Return ((kind, severity), crops (n, S, S, C), maps (n, 2, 3) from image to crop pixels), the clean one first.

    Args:
        data: Prepared data.
        batch: Rows (n,) of its table.
        kinds: Of `KINDS`.
        seed: See `stress_test`.
    """
    size = data.crop.size
    crops, to_crop = data.store.crops(batch), data.store.to_crop()[batch]
    views = [(("", 0), crops, to_crop)]
    for kind in (kind for kind in kinds if kind in PIXELS):
        views += [((kind, s), corrupt_pixels(crops, kind, s, seed, batch), to_crop) for s in SEVERITIES]
    moved = [kind for kind in kinds if kind in BOXES]
    images = [data.prepare().load(int(row)) for row in batch] if moved else []
    for kind in moved:
        for severity in SEVERITIES:
            maps = corrupt_boxes(to_crop, size, kind, severity, seed, batch)
            faces = [crop(image, one, size, data.crop.channels) for image, one in zip(images, maps, strict=True)]
            views.append(((kind, severity), np.stack(faces), maps))
    return views


def run_tests(runs: Sequence[str], cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Test runs, and a baseline for the mean corruption error where the config names one; report each run.

    Raises:
        UserError: A run cannot be loaded, or the baseline has another protocol.
    """
    named = [cfg.stress] if isinstance(cfg.stress, str) else cfg.stress
    kinds = list(KINDS if cfg.stress == "all" else dict.fromkeys(named))
    for kind in kinds or [""]:
        if kind not in KINDS:
            raise UserError(
                f"stress={kind}: no such corruption{nearest(kind, KINDS)}; set all, or some of {', '.join(KINDS)}"
            )
    split = str(cfg.split)
    models = {run: stored_run.load(cfg, overrides, run) for run in [*runs, *([cfg.baseline] if cfg.baseline else [])]}
    reference = models[cfg.baseline].data if cfg.baseline else None
    for run, stored in models.items():  # before any is tested, which takes minutes
        if not len(stored.data.rows(split)):
            raise UserError(f"data={stored.data.name} has no {split} faces; name another dataset or split")
        if reference and stored.data.protocol.name != reference.protocol.name:
            raise UserError(
                f"baseline={cfg.baseline} is scored under {reference.protocol.name}, run={run} under "
                f"{stored.data.protocol.name}; set data=NAME, and data.crop.policy.source and scale, for both"
            )
    labels = [stored.label for stored in models.values()]

    @functools.cache
    def test(run: str) -> StressResult:
        label = models[run].label
        if labels.count(label) > 1:
            label += f" ({models[run].folder.path.name[:8] if models[run].has_run else run})"
        return stress_test(models[run], label, kinds, cfg.stress_seed, split, cfg.device)

    for run in runs:
        baseline = test(cfg.baseline) if cfg.baseline else None
        print(report(models[run], test(run), baseline, split, Path(cfg.paths.output_dir)) / "stress.png")
    if len(runs) > 1:
        results = {run: test(run) for run in models}
        file = table_folder("stress", cfg, overrides, [one.protocol for one in results.values()]) / "stress.csv"
        report_all(results, results[cfg.baseline] if cfg.baseline else None, file)
        print(file)


def report(stored: StoredModel, result: StressResult, baseline: StressResult | None, split: str, output: Path) -> Path:
    """Print a result, write it as ``stress.json``, ``stress.csv`` and ``stress.png``, and log it in the model's run.

    Returns:
        The folder of the files.
    """
    where, prefix = result_folder(stored, split, 0, output)
    folder = where / "stress"
    metrics = {"stress/clean_nme": result.clean, "stress/nme": result.mean}
    if baseline:
        metrics["stress/mce"] = result.mean_corruption_error(baseline)
    write_json(folder / "stress.json", {**vars(result), "metrics": metrics, "baseline": baseline and vars(baseline)})
    models = [result] if baseline in (None, result) else [result, baseline]
    write_csv(folder / "stress.csv", [row for one in models for row in _csv_rows(one)])
    figure = stress_figure({one.label: (one.clean, one.nme) for one in models})
    write_file(folder / "stress.png", png(figure))
    with open_tracker(stored, folder) as tracker:
        # A run that was tested under some kinds only has no mean that could be compared.
        if tracker and set(result.nme) == set(KINDS):
            tracker.log_metrics({prefix + name: value for name, value in metrics.items()}, 0)
            tracker.tag(stress_baseline=baseline.label if baseline else "")
        if tracker:
            for name in ("stress.json", "stress.csv", "stress.png"):
                tracker.file(folder / name, f"{prefix}stress")
    _show(result, baseline, metrics)
    return folder


def report_all(results: Mapping[str, StressResult], baseline: StressResult | None, file: Path) -> None:
    """Print the mean NME of several runs by kind, a table per protocol, and write them (see `report_tables`).

    Args:
        results: Run -> its result.
        baseline: Result that is 100 % of the mean corruption error.
        file: The CSV.
    """
    by_protocol: dict[str, list[StressResult]] = defaultdict(list)
    for one in results.values():
        by_protocol[one.protocol].append(one)
    against = f"; mCE in percent of {baseline.label}" if baseline else ""
    tables = {}
    for protocol, members in by_protocol.items():
        rows = []
        for one in members:
            values = [one.clean, *(float(np.mean(nmes)) for nmes in one.nme.values()), one.mean]
            values += [one.mean_corruption_error(baseline)] if baseline else []
            rows.append([one.label, *(f"{value:.2f}" for value in values)])
        head = ["model", "clean", *members[0].nme, "mean", *(["mCE"] if baseline else [])]
        tables[protocol] = TextTable(head, rows)
    in_csv = [{"run": run, **row} for run, one in results.items() for row in _csv_rows(one)]
    report_tables(file, f"NME in percent under corruptions, mean of the severities{against}", tables, in_csv)


def _csv_rows(one: StressResult) -> list[dict[str, str | int]]:
    """Return the rows of a model: the clean faces, then each kind at each severity."""
    unknown = [float("nan")] * len(SEVERITIES)
    values = [("clean", 0, one.clean, float("nan"))]
    for kind, nmes in one.nme.items():
        values += zip([kind] * len(nmes), SEVERITIES, nmes, one.coverage.get(kind, unknown), strict=True)
    return [
        {"model": one.label, "protocol": one.protocol, "kind": kind, "severity": severity, "nme": f"{nme:.5f}",
         "coverage90": "" if np.isnan(share) else f"{share:.3f}"}
        for kind, severity, nme, share in values
    ]  # fmt: skip


def _show(result: StressResult, baseline: StressResult | None, metrics: dict[str, float]) -> None:
    head = ["kind", *(f"NME, % at {severity}" for severity in SEVERITIES), "mean"]
    head += ["in radius90, % at 5"] if result.coverage else []
    head += [f"of {baseline.label}, %"] if baseline else []
    rows = []
    for kind, values in result.nme.items():
        cells = [kind, *(f"{value:.2f}" for value in values), f"{np.mean(values):.2f}"]
        cells += [f"{result.coverage[kind][-1]:.0f}"] if result.coverage else []
        cells += [f"{100 * np.sum(values) / np.sum(baseline.nme[kind]):.0f}"] if baseline else []
        rows.append(cells)
    print(f"{result.label}, {result.faces} faces: {result.clean:.2f} % clean, {result.mean:.2f} % corrupted")
    print_table(TextTable(head, rows))
    if baseline:
        print(f"mean corruption error: {metrics['stress/mce']:.1f} % of that of {baseline.label}")
    print(result.protocol)
