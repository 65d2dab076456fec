"""Compare groups of finished runs: tables, tests and a page."""

import hashlib
import html
import re
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flr.errors import UserError, nearest
from flr.evaluation.comparison import Difference, better, differences, holm
from flr.evaluation.results import (
    Section,
    TestedRun,
    differing_parts,
    filter_runs,
    group_runs,
    mean_and_deviation,
    notes_on,
    number_of,
    read_results,
    with_current_names,
)
from flr.files import write_file
from flr.reporting.figures import ced_figure, cost_figure, short, svg
from flr.reporting.html import Cell, document, grid, listed, notes
from flr.reporting.tables import TextTable, markdown_table, print_table, write_csv
from flr.tracking.connection import StoredRun, connect, find_runs, get_run
from flr.tracking.pages import run_page, server_hint

if TYPE_CHECKING:
    from mlflow import MlflowClient

ORIGIN = ("overrides", "trainer.max_epochs", "commit", "dirty", "lock",
          "hardware.cpu", "hardware.threads", "hardware.gpu")  # fmt: skip
COSTS = {"cost/parameters": "parameters", "cost/macs": "MACs",
         "train/images_per_second": "images/s", "cost/latency_ms": "latency, ms"}  # fmt: skip
FURTHER = {"stress/nme": "NME under stress, %", "stress/mce": "mean corruption error, %"}
LEVEL = 0.05  # of the corrected p below which a difference counts as shown
LISTED = 50  # skipped runs that the terminal and the page name; comparison.md names all
METHOD = (
    "Means over runs, ± their standard deviation. Differences: a paired bootstrap over faces and runs with {samples:,} "
    "draws; 95 % intervals, each of its pair alone; p two-sided, by Holm's correction over all {tests} pair(s). Faces of "
    "one person, clip or photo are not independent: they are drawn together, unless a note says otherwise."
)


class TestedPair(NamedTuple):
    """The difference of a pair of groups, its p after correction, and the better group where the difference is shown."""

    difference: Difference
    corrected: float
    winner: str | None


def select_runs(cfg: DictConfig, client: "MlflowClient") -> list[StoredRun]:
    """Return the runs that the config selects.

    Raises:
        UserError: There is none.
    """
    if cfg.runs is not None:
        found = [get_run(client, run_id) for run_id in dict.fromkeys(cfg.runs)]
    else:
        found = find_runs(client, str(cfg.tracking.experiment))
    found = with_current_names(found)
    if found and cfg.where:
        selected = filter_runs(found, cast(dict[str, Any], OmegaConf.to_container(cfg.where)))
    else:
        selected = found
    if not selected:
        reason = "no run fits all of where=" if found else "it has no runs"
        raise UserError(f"tracking.experiment={cfg.tracking.experiment}: {reason}; ask for less, or train")
    return selected


def tested_pairs(sections: Sequence[Section], cfg: DictConfig) -> list[list[TestedPair]]:
    """Test the pairs of groups of each section, and correct over all sections.

    Raises:
        UserError: The baseline does not exist, or was tested under another protocol than another group.
    """
    baseline = None if cfg.baseline is None else str(cfg.baseline)
    if baseline is not None:
        _check_baseline(baseline, sections)
    found = []
    for section in sections:
        names = [group.name for group in section.groups]
        # The best group was chosen by these very numbers, so a correction over its own pairs alone would not do.
        pairs = combinations(names, 2) if baseline is None else ((baseline, n) for n in names if n != baseline)
        values = {group.name: group.face_scores(cfg.metric) for group in section.groups}
        found.append(differences(values, list(pairs), cfg.samples, cfg.seed, section.units))
    corrected = iter(holm([one.p for pairs in found for one in pairs]))

    def tested(one: Difference, p: float) -> TestedPair:
        winner = one.first if better(cfg.metric, one.mean, 0) else one.second
        return TestedPair(one, p, winner if p < LEVEL else None)

    return [[tested(one, next(corrected)) for one in pairs] for pairs in found]


def _drawing_note(section: Section) -> list[str]:
    """Describe what the bootstrap of a section drew, where that is not one face of each person."""
    if section.units is None:
        return ["faces drawn one by one, as if independent: several of one person or clip make intervals too narrow"]
    faces, count = len(section.units), len(set(section.units.tolist()))
    return [f"{faces} faces of {count} persons, clips or photos, which are drawn whole"] if count < faces else []


def _check_baseline(baseline: str, sections: Sequence[Section]) -> None:
    names = {group.name for section in sections for group in section.groups}
    if baseline not in names:
        raise UserError(f"baseline={baseline}: no such group{nearest(baseline, names)}")
    has = next(section for section in sections if section.group(baseline))
    for section in sections:
        if not section.group(baseline):
            raise UserError(
                f"baseline={baseline} and {section.groups[0].name} were tested under protocols that differ in "
                f"{differing_parts([has, section])}, so they are not compared; narrow where= to one of them"
            )


def _folder_name(cfg: DictConfig, keys: Sequence[str], tested: Sequence[TestedRun]) -> str:
    """Name the results by the keys and a digest of what the numbers follow from."""
    settings = (cfg.metric, cfg.baseline, cfg.samples, cfg.seed)
    words = [*map(str, settings), *sorted(one.run.run_id for one in tested)]
    digest = hashlib.sha256("\0".join([*keys, *words]).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join(keys))[:80]}-{digest}"


def groups_table(section: Section, keys: Sequence[str], metric: str) -> TextTable:
    """Make the table of the groups, the best first."""
    rows = []
    for group in section.groups:
        seeds = len(set(group.seeds))
        cells = [group.name, str(seeds) if seeds == len(group.runs) else f"{seeds} ({len(group.runs)} runs)"]
        cells += [_cell(group.values(name), "{:.2f}".format) for name in _shown(metric)]
        rows.append(cells + [_cell(group.logged(name), short) for name in COSTS])
    means = [section.baseline(name) for name in _shown(metric)]
    rows.append(
        ["mean face, no model", "-", *("-" if mean is None else f"{mean:.2f}" for mean in means), *"-" * len(COSTS)]
    )
    percents = [f"{name.upper()}, %" for name in _shown(metric)]
    return TextTable([" / ".join(keys), "seeds", *percents, *COSTS.values()], rows)


def runs_table(section: Section, metric: str, uri: str) -> tuple[list[str], list[list[Cell]]]:
    """Make the head and rows of the table of the runs, each with the link to its page in MLflow."""
    rows: list[list[Cell]] = []
    for group in section.groups:
        for result, value in zip(group.runs, group.values(metric), strict=True):
            run = result.run
            commit = str(run.get("commit") or "-")[:10] + (" with changes" if run.get("dirty") == "true" else "")
            link = run_page(uri, run.experiment_id, run.run_id)
            date = f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}"
            rows.append([group.name, (run.name, link), str(run.get("seed")), f"{value:.2f}", commit, date])
    return ["group", "run", "seed", f"{metric.upper()}, %", "commit", "started"], rows


def further_table(section: Section, keys: Sequence[str]) -> list[TextTable]:
    """Make the table of what `flr.evaluate` logged under stress= and on=; none where no run has it.

    Values of runs that were scored on a dataset under another protocol, or against another baseline, have columns of their own.
    """
    columns: dict[tuple[str, str], dict[str, list[float]]] = {}
    for group in section.groups:
        for run in (tested.run for tested in group.runs):
            for name, value in run.metrics.items():
                if name in FURTHER or re.fullmatch("on/.+/nme", name):
                    against = run.get("stress_baseline" if name == "stress/mce" else f"on.{name[3:-4]}") or ""
                    columns.setdefault((name, against), {}).setdefault(group.name, []).append(value)
    if not columns:
        return []
    heads = []
    for name, against in sorted(columns):
        twice = sum(other == name for other, _ in columns) > 1
        title = FURTHER.get(name, f"NME on {name[3:-4]}, %") + (f" of {against}" if name == "stress/mce" else "")
        heads.append(f"{title} ({against})" if twice and name != "stress/mce" else title)
    rows = [
        [group.name, *(_cell(columns[key].get(group.name, []), "{:.2f}".format) for key in sorted(columns))]
        for group in section.groups
    ]
    return [TextTable([" / ".join(keys), *heads], rows)]


def pairs_table(pairs: Sequence[TestedPair], metric: str) -> TextTable:
    """Make the table of the tested pairs."""
    head = ["A", "B", f"A - B, {metric.upper()}, %", "95 % interval", "p", "p, Holm", "better"]
    rows = [
        [one.first, one.second, f"{one.mean:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}", f"{one.p:.4f}", f"{p:.4f}",
         winner or "not shown"]
        for one, p, winner in pairs
    ]  # fmt: skip
    return TextTable(head, rows)


def _shown(metric: str) -> list[str]:
    return list(dict.fromkeys(("nme", "fr8", "auc8", metric)))


def _cell(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return "-"
    mean, deviation = mean_and_deviation(values)
    return f"{form(mean)} ± {form(deviation)}" if deviation > 0 else form(mean)


def write_tables(section: Section, tested: Sequence[TestedPair], metric: str, folder: Path, suffix: str) -> None:
    """Write a protocol's groups, runs and pairs as CSV files of their own: no column holds two protocols."""
    protocol = {"protocol": section.protocol}
    groups, runs = [], []
    for group in section.groups:
        columns = {f"test/{name}": group.values(name) for name in _shown(metric)}
        row = {**protocol, "group": group.name, "runs": len(group.runs), "seeds": len(set(group.seeds))}
        for name, values in (columns | {name: group.logged(name) for name in COSTS}).items():
            row[name], row[f"{name} sd"] = mean_and_deviation(values) if values else ("", "")
        groups.append(row)
        for i, result in enumerate(group.runs):
            identity = {"group": group.name, "run": result.run.run_id, "name": result.run.name, "seed": group.seeds[i]}
            numbers = {name: number_of(result.run, name) for name in COSTS}
            costs = {name: "" if number is None else number for name, number in numbers.items()}
            origin = {name: result.run.get(name) or "" for name in ORIGIN} | {"minutes": round(result.run.minutes, 2)}
            runs.append(protocol | identity | {name: values[i] for name, values in columns.items()} | costs | origin)
    pairs = [
        protocol | {"metric": metric} | vars(one) | {"p holm": p, "better": winner or ""} for one, p, winner in tested
    ]
    for name, rows in (("groups", groups), ("runs", runs), ("pairs", pairs)):
        if rows:
            write_csv(folder / f"{name}{suffix}.csv", rows)


def figures(section: Section) -> str:
    """Draw the curves and costs of a protocol's groups, as HTML."""
    nmes = {group.name: np.concatenate([result.nme for result in group.runs]) for group in section.groups}
    # 10 %, or where the best has reached 90 % of the faces.
    limit = max(0.1, min(float(np.nanquantile(values, 0.9)) for values in nmes.values()))
    found = [("cumulative error, all seeds of a group together", ced_figure(nmes, limit))]
    costs = {
        COSTS[cost]: {
            group.name: mean_and_deviation(group.logged(cost)) for group in section.groups if group.logged(cost)
        }
        for cost in ("cost/parameters", "cost/latency_ms")
    }
    if any(costs.values()):
        nme = {group.name: mean_and_deviation(group.values("nme")) for group in section.groups}
        found.append(("NME against cost", cost_figure(nme, costs)))
    return "".join(f"<figure>{svg(drawn)}<figcaption>{title}</figcaption></figure>" for title, drawn in found)


class ComparisonReport:
    """Tables, tests and a page of the runs that a config selects.

    Args:
        cfg: A checked config of `flr.config.schema.Compare`.
        keys: Tags or parameters by which runs are grouped.
    """

    def __init__(self, cfg: DictConfig, keys: Sequence[str]) -> None:
        self.cfg, self.keys = cfg, keys
        self.title = f"{cfg.metric.upper()} by {', '.join(keys)}"
        self._markdown, self._html = f"# {self.title}\n\n", ""

    def write(self) -> Path:
        """Read the runs, print and write the comparison; return the path of its page.

        Raises:
            UserError: There is nothing to compare, or no such baseline.
        """
        cfg = self.cfg
        client = connect(str(cfg.tracking.uri), create=False)
        with tempfile.TemporaryDirectory(prefix="flr-compare-") as copies:
            selected = select_runs(cfg, client)
            if cfg.runs is None and not cfg.where:
                print(
                    f"All {len(selected)} runs of the experiment {cfg.tracking.experiment}, pooled by {', '.join(self.keys)}; "
                    "narrow them by 'where={data: NAME}' or runs=[ID,ID]"
                )
            tested, skipped = read_results(client, selected, cfg.runs is not None, Path(copies))
            sections, repeated = group_runs(tested, self.keys, cfg.metric)
            skipped += repeated
            pairs = tested_pairs(sections, cfg)
            name = _folder_name(cfg, self.keys, tested)
            folder = Path(cfg.out or Path(cfg.paths.output_dir) / "comparisons" / name).absolute()
            for i, section in enumerate(sections):
                self._add_section(section, pairs[i], sections, folder, f"-{i + 1}" if len(sections) > 1 else "")
                if pairs[i] and cfg.faces:
                    # Brings torch, which a comparison without faces does not need.
                    from flr.evaluation.comparison_faces import face_pairs

                    self._html += face_pairs(section, cfg, client, Path(copies))
        if skipped:
            self._add_skipped(skipped)
        method = METHOD.format(samples=cfg.samples, tests=sum(map(len, pairs)))
        write_file(folder / "comparison.md", f"{self._markdown}{method}\n")
        page = document(self.title, f"{self._html}<p>{method}</p>", sortable=True)
        write_file(folder / "comparison.html", page)
        return folder / "comparison.html"

    def _add_section(
        self, section: Section, pairs: Sequence[TestedPair], sections: Sequence[Section], folder: Path, suffix: str
    ) -> None:
        """Add the tables and figures of one protocol."""
        remarks = [*notes_on(section, self.keys), *_drawing_note(section)]
        if len(sections) > 1:
            remarks.append(f"not compared with the other protocols: they differ in {differing_parts(sections)}")
        tables = [groups_table(section, self.keys, self.cfg.metric)]
        tables += [pairs_table(pairs, self.cfg.metric)] if pairs else []
        tables += further_table(section, self.keys)
        print(f"{section.protocol}\n{section.words}")
        for table in tables:
            print_table(table)
        print("".join(f"note: {line}\n" for line in remarks), end="")
        write_tables(section, pairs, self.cfg.metric, folder, suffix)
        self._markdown += "\n".join([f"## {section.protocol}\n\n{section.words}\n", *map(markdown_table, tables), ""])
        self._markdown += "".join(f"- {line}\n" for line in remarks) + "\n"
        self._html += f"<h2>{html.escape(section.protocol)}</h2><p>{html.escape(section.words)}</p>{notes(remarks)}"
        self._html += "".join(grid(table.rows, table.head) for table in tables) + figures(section)
        head, rows = runs_table(section, self.cfg.metric, str(self.cfg.tracking.uri))
        hint = server_hint(str(self.cfg.tracking.uri))
        self._html += (
            "<h3>Runs</h3>" + (f"<p>The links need: {html.escape(hint)}</p>" if hint else "") + grid(rows, head)
        )

    def _add_skipped(self, skipped: Sequence[str]) -> None:
        """Name the runs that are not compared, and why."""
        head = f"Skipped {len(skipped)} run(s)"
        print(f"{head}:", *skipped[:LISTED], *(["..."] if len(skipped) > LISTED else []), sep="\n  ")
        self._markdown += f"{head}:\n\n" + "".join(f"- {line}\n" for line in skipped) + "\n"
        self._html += f"<h2>{head}</h2>{listed(skipped, LISTED)}"
