"""Compare what was obtained with what is expected, and write the record."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from flr.config.detector_schema import DETECTOR
from flr.errors import UserError
from flr.evaluation.results import mean_and_deviation
from flr.reporting.tables import TextTable, print_table, write_csv
from flr.reproduction import detector
from flr.reproduction.record import (
    Record,
    Run,
    Tier,
    check_clean_tree,
    column,
    data_differences,
    differences,
    of_runs,
    of_smoke,
    read,
    write,
)
from flr.reproduction.runs import evaluate, note_other_data, train
from flr.reproduction.smoke import rendered, smoke

WITHIN, OUTSIDE, NO_VERDICT = 0, 1, 3  # exit codes
SEEDS = [0, 1, 2]  # of trainings that have no record yet
# The numbers of a run that results.csv keeps.
LOGGED = re.compile(r"(train|val|test|cost)/(?!loss_step)")


def reproduce(cfg: DictConfig, records_dir: Path) -> int:
    """Run an experiment and compare it with its record, or make it the record.

    Returns:
        The exit code.

    Raises:
        UserError: The record cannot be read, or nothing may be recorded.
    """
    file = records_dir / cfg.name / "expected.yaml"
    records = {} if cfg.record and not file.exists() else read(file)
    tier: Tier = "smoke" if cfg.tier == "smoke" else "train"
    expected = records.get(tier)
    if cfg.record:
        # The record itself may differ from the commit, except for a training, whose tags would call the tree dirty.
        check_clean_tree(() if cfg.tier == "train" else ("expected.yaml", "results.csv"))
    if cfg.tier == "smoke":
        runs = [_smoke(cfg)]
    elif cfg.tier == "eval":
        runs = evaluate(cfg)
    else:
        if not expected and not cfg.record:
            print(f"note: {file} has no {tier}: part, so the numbers will be information only")
        elif expected and not cfg.record and cfg.name != DETECTOR:
            note_other_data(cfg.name, expected)
        train_seeds = detector.train if cfg.name == DETECTOR else train
        runs = train_seeds(cfg, cfg.seeds or (expected.seeds if expected else SEEDS))
    inside = compare(expected, runs)
    if not cfg.record:
        return report_verdict(expected, runs, inside, file, tier)
    record(cfg, runs, file, records)
    return WITHIN


def _smoke(cfg: DictConfig, threads: int = 1) -> Run:
    if cfg.name == DETECTOR:
        return detector.smoke(cfg.paths.cache_dir, threads)
    return smoke(rendered(cfg.name, cfg.paths.cache_dir), threads)


def report_verdict(expected: Record | None, runs: Sequence[Run], inside: bool, file: Path, tier: Tier) -> int:
    """Print the verdict and return its exit code."""
    if expected is None:
        print(f"no verdict: {file} has no {tier}: part to compare with")
        return NO_VERDICT
    if runs[0].fingerprint != expected.fingerprint:
        print(f"no verdict: the data are not those of {file}, so the numbers above are information only")
        print("".join(f"  {line}\n" for line in data_differences(expected, runs[0])), end="")
        return NO_VERDICT
    if not inside:
        print(f"outside the tolerance of {file}, recorded at commit {expected.commit}")
        print("".join(f"  {line}\n" for line in differences(expected, runs)), end="")
        return OUTSIDE
    print("within the tolerance")
    return WITHIN


def compare(expected: Record | None, runs: Sequence[Run]) -> bool:
    """Print the table of expected and obtained values; return whether all are within their tolerances.

    Raises:
        UserError: The runs were tested on different data.
    """
    if len({run.fingerprint for run in runs}) > 1:
        raise UserError(
            f"tested on different data: {'; '.join(run.protocol for run in runs)}; name runs of one dataset"
        )

    def number(mean: float, deviation: float | None) -> str:
        return f"{mean:.5g}" + ("" if deviation is None else f" ± {deviation:.2g}")

    levels = expected.metrics if expected else {}
    rows, inside = [], True
    for name in dict.fromkeys([*levels, *runs[0].metrics]):
        level, values = levels.get(name), column(runs, name)
        mean, deviation = mean_and_deviation(values) if values else (math.nan, 0.0)
        cells = [name, "-", "-", number(mean, deviation if len(values) > 1 else None), "-", ""]
        if level:
            within = abs(mean - level.mean) <= level.tolerance
            cells[1:3] = number(level.mean, level.spread), f"{level.tolerance:.2g}"
            cells[4:] = f"{mean - level.mean:+.2g}", "within" if within else "OUTSIDE"
            inside &= within
        rows.append(cells)
    if expected:
        print(f"expected of seeds {expected.seeds}, obtained of seeds {[run.seed for run in runs]}")
    print_table(TextTable(["metric", "expected", "tolerance", "obtained", "off by", ""], rows))
    return inside


def record(cfg: DictConfig, runs: Sequence[Run], file: Path, records: Mapping[Tier, Record]) -> None:
    """Write the results as the record; of trainings also ``results.csv``, one row per seed.

    Raises:
        UserError: No record may rest on the runs.
    """
    command = f"python -m flr.reproduce name={cfg.name} tier="
    if cfg.tier == "smoke":
        again = _smoke(cfg, threads=2)
        records = {**records, "smoke": of_smoke(f"{command}smoke", runs[0], again)}
    else:
        seeds = ",".join(str(run.seed) for run in runs)
        records = {**records, "train": of_runs(f"{command}train seeds=[{seeds}]", runs)}
        stored = [run.stored for run in runs if run.stored]
        names = sorted({name for one in stored for name in one.metrics if LOGGED.match(name)})
        rows = [
            {"seed": one.get("seed"), "run": one.run_id, "minutes": round(one.minutes, 2), "best val/nme": one.get("val_nme")}
            | {name: one.metrics.get(name, "") for name in names}
            for one in stored
        ]  # fmt: skip
        write_csv(file.with_name("results.csv"), rows)
    write(file, cfg.name, records)
    print(f"record {file}")
