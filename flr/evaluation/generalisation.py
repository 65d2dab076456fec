"""Score several runs on several datasets: each dataset in the scheme of the run, one table for each scheme."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from flr.config.compose import CONF, compose_evaluation, key_of
from flr.errors import UserError, nearest
from flr.evaluation import stored_run
from flr.evaluation.comparison import differences
from flr.evaluation.score import Result
from flr.reporting.tables import TextTable, report_tables

OWN_KEYS = ("run", "on", "data")  # of the command, which each cell sets for itself


class Cell(NamedTuple):
    """One run on one dataset: NME in percent with its 95 % interval over the faces or persons."""

    run: str
    name: str
    dataset: str
    scheme: str
    protocol: str
    faces: int
    nme: float
    low: float
    high: float


def interval(result: Result) -> tuple[float, float, float]:
    """Return the NME and the ends of its 95 % interval, percent; persons, clips or photos are drawn whole."""
    table = result.data.prepare()
    groups = table.group[result.rows]
    units = groups if len(np.unique(groups)) > 1 else None
    values = {"model": 100 * result.values[None], "zero": np.zeros((1, len(result.values)))}
    found = differences(values, [("model", "zero")], units=units)[0]
    return found.mean, found.low, found.high


def score_all(runs: Sequence[str], cfg: DictConfig, overrides: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """Score each run on each dataset, and log each result in its run.

    Args:
        runs: Ids, folders or checkpoint files.
        cfg: A checked config of `flr.config.schema.Evaluate`.
        overrides: Its overrides; ``+data.KEY=VALUE`` holds for each dataset.

    Returns:
        The cells, and a line for each pair that does not fit, such as a dataset without the run's points.

    Raises:
        UserError: There is no such dataset choice, or nothing could be scored.
    """
    known = {file.stem for file in (CONF / "data").glob("*.yaml")} - {"base"}
    for name in cfg.on or [""]:
        if name not in known:
            raise UserError(f"on={name}: no such choice of data={nearest(name, known)}")
    kept = [word for word in overrides if key_of(word) not in OWN_KEYS]
    # The command itself has no dataset, so its keys are added there; here they change those of each dataset.
    kept = [word.lstrip("+") if key_of(word).startswith("data.") else word for word in kept]
    cells, skipped = [], []
    for dataset in cfg.on:
        composed = compose_evaluation(dataset, kept)
        for run in runs:
            try:
                stored = stored_run.load(composed, kept, run)
                result, folder = stored_run.evaluate(stored, cfg.split, 0, Path(cfg.paths.output_dir), cfg.device)
                found = interval(result)
            except UserError as error:
                skipped.append(f"{run} on {dataset}: {error}")
                continue
            scheme, protocol = stored.data.scheme.name, stored.data.protocol.name
            cells.append(Cell(run, stored.label, dataset, scheme, protocol, len(result.rows), *found))
            if cfg.split == "test":
                with stored_run.open_tracker(stored, folder) as tracker:
                    if tracker:
                        tracker.log_metrics({f"on/{dataset}/nme": cells[-1].nme}, 0)
                        tracker.tag(**{f"on.{dataset}": protocol})
    if not cells:
        raise UserError(f"nothing could be scored: {'; '.join(skipped[:3])}; name other runs or datasets")
    return cells, skipped


def tables(cells: Sequence[Cell]) -> dict[str, TextTable]:
    """Make a table of each scheme, models by datasets; runs whose protocols differ on a dataset have columns of their own."""
    by_scheme: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_scheme[cell.scheme].append(cell)
    made = {}
    for scheme, members in by_scheme.items():
        columns = list(dict.fromkeys((cell.dataset, cell.protocol) for cell in members))
        names = [dataset for dataset, _ in columns]
        heads = [
            f"{dataset} ({names[: i + 1].count(dataset)}), %" if names.count(dataset) > 1 else f"{dataset}, %"
            for i, dataset in enumerate(names)
        ]
        rows = []
        for run, name in dict.fromkeys((cell.run, cell.name) for cell in members):
            own = {(cell.dataset, cell.protocol): cell for cell in members if cell.run == run}
            rows.append([name, *(_text(own.get(column)) for column in columns)])
        made[scheme] = TextTable(["model", *heads], rows)
    return made


def _text(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell.nme:.2f} ({cell.low:.2f} to {cell.high:.2f})"


def run_table(runs: Sequence[str], cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Score all pairs, print the tables, and write ``generalisation.csv`` and ``generalisation.md``; return the CSV's path.

    Raises:
        UserError: See `score_all`.
    """
    cells, skipped = score_all(runs, cfg, overrides)
    protocols = list(dict.fromkeys(cell.protocol for cell in cells))
    file = stored_run.table_folder("generalisation", cfg, overrides, protocols) / "generalisation.csv"
    notes = (
        "".join(f"\n- {line}" for line in skipped) + "\n\nProtocols:\n\n" + "".join(f"- {name}\n" for name in protocols)
    )
    title = "NME on other datasets, with 95 % intervals over the faces, by scheme of points"
    report_tables(file, title, tables(cells), [cell._asdict() for cell in cells], notes)
    for line in skipped:
        print(f"note: {line}")
    return file
