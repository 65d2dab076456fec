"""Comparing groups of finished runs: tables, tests and a page."""

import hashlib
import html
import re
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flr.errors import UserError, nearest
from flr.evaluation.comparison import Difference, better, differences, holm
from flr.evaluation.results import Section, Tested, differing, having, lay_out, notes_on, read_results, spread
from flr.files import writing
from flr.reporting.figures import ced_figure, cost_figure, png, region_figure, short
from flr.reporting.html import document, embed, grid, listed, notes
from flr.reporting.tables import TextTable, markdown_table, print_table, write_csv
from flr.tracking.connection import StoredRun, connect, find_runs, get_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

ORIGIN = (
    "overrides",
    "trainer.max_epochs",
    "commit",
    "dirty",
    "lock",
    "hardware.cpu",
    "hardware.threads",
    "hardware.gpu",
)
COSTS = {
    "cost/parameters": "parameters",
    "cost/macs": "MACs",
    "train/images_per_second": "images/s",
    "cost/latency_ms": "latency, ms",
}
LEVEL = 0.05  # of the corrected p under which a difference counts as shown
LISTED = 50  # runs left out that the terminal and the page name; comparison.md names all
METHOD = (
    "Means over runs, ± their standard deviation. Differences: a paired bootstrap over faces and runs with {samples:,} "
    "draws; 95 % intervals, each of its pair alone; p two-sided, by Holm's correction over all {tests} pair(s). Faces of "
    "one person, clip or photo are not independent: they are drawn together, unless a note says that they were not."
)


class TestedPair(NamedTuple):
    """A pair of groups, tested: its difference, its p after correction, and the better group where that shows one."""

    difference: Difference
    corrected: float
    winner: str | None


def select(cfg: DictConfig, client: "MlflowClient") -> list[StoredRun]:
    """The runs that the config asks for.

    Raises:
        UserError: there is none.
    """

    if cfg.runs is not None and cfg.filter is not None:
        raise UserError("filter= searches and runs= names the runs; set one of them")
    if cfg.runs is not None:
        found = [get_run(client, run_id) for run_id in dict.fromkeys(cfg.runs)]
    else:
        found = find_runs(client, str(cfg.tracking.experiment), cfg.filter or "")
    kept = having(found, cast(dict[str, Any], OmegaConf.to_container(cfg.where))) if found and cfg.where else found
    if not kept:
        why = "no run fits all of where=" if found else "no run fits filter=" if cfg.filter else "it has no runs"
        raise UserError(f"tracking.experiment={cfg.tracking.experiment}: {why}; ask for less, or train")
    return kept


def tested_pairs(sections: Sequence[Section], cfg: DictConfig) -> list[list[TestedPair]]:
    """The pairs of groups of each section, tested, and corrected over all sections.

    Raises:
        UserError: the baseline is not there, or was tested under another protocol than what it is held against.
    """

    baseline = None if cfg.baseline is None else str(cfg.baseline)
    if baseline is not None:
        _refuse_baseline(baseline, sections)
    found = []
    for section in sections:
        names = [group.name for group in section.groups]
        # The best group was chosen by these very numbers, so a correction over its own pairs alone would not do.
        pairs = combinations(names, 2) if baseline is None else ((baseline, n) for n in names if n != baseline)
        values = {group.name: group.by_face(cfg.metric) for group in section.groups}
        found.append(differences(values, list(pairs), cfg.samples, cfg.seed, section.units(cfg.resample)))
    corrected = iter(holm([one.p for pairs in found for one in pairs]))

    def answer(one: Difference, p: float) -> TestedPair:
        winner = one.first if better(cfg.metric, one.mean, 0) else one.second
        return TestedPair(one, p, winner if p < LEVEL else None)

    return [[answer(one, next(corrected)) for one in pairs] for pairs in found]


def _drawn(section: Section, resample: str | None) -> list[str]:
    """What the bootstrap of a section drew, where that is not plain faces that share nothing."""
    units, faces = section.units(resample), len(section.groups[0].runs[0].faces)
    count = faces if units is None else len(set(units.tolist()))
    if units is None:
        return ["faces drawn one by one, as if independent: several of one person or clip make intervals too narrow"]
    return [f"{faces} faces of {count} persons, clips or photos, which are drawn whole"] if count < faces else []


def _refuse_baseline(baseline: str, sections: Sequence[Section]) -> None:

    names = {group.name for section in sections for group in section.groups}
    if baseline not in names:
        raise UserError(f"baseline={baseline}: no such group{nearest(baseline, names)}")
    has = next(section for section in sections if section.group(baseline))
    for section in sections:
        if not section.group(baseline):
            raise UserError(
                f"baseline={baseline} and {section.groups[0].name} were tested under protocols that differ in "
                f"{differing([has, section])}, so they are not compared; narrow where= to one of them"
            )


def _name(cfg: DictConfig, keys: Sequence[str], tested: Sequence[Tested]) -> str:
    """A folder's name: the keys, and a digest of what the numbers follow from."""
    settings = (cfg.metric, cfg.baseline, cfg.samples, cfg.seed, cfg.resample)
    words = [*map(str, settings), *sorted(one.run.run_id for one in tested)]
    digest = hashlib.sha256("\0".join([*keys, *words]).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join(keys))[:80]}-{digest}"


def groups_grid(section: Section, keys: Sequence[str], metric: str) -> TextTable:
    """The groups, the best first."""

    rows = []
    for group in section.groups:
        seeds = len(set(group.seeds))
        cells = [group.name, str(seeds) if seeds == len(group.runs) else f"{seeds} ({len(group.runs)} runs)"]
        cells += [_cell(group.numbers(name), "{:.2f}".format) for name in _shown(metric)]
        rows.append(cells + [_cell(group.logged(name), short) for name in COSTS])
    percents = [f"{name.upper()}, %" for name in _shown(metric)]
    return TextTable([" / ".join(keys), "seeds", *percents, *COSTS.values()], rows)


def pairs_grid(answers: Sequence[TestedPair], metric: str) -> TextTable:
    """The pairs, with the answer of each."""
    head = ["A", "B", f"A - B, {metric.upper()}, %", "95 % interval", "p", "p, Holm", "better"]
    rows = [
        [one.first, one.second, f"{one.mean:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}", f"{one.p:.4f}", f"{p:.4f}",
         winner or "not shown"]
        for one, p, winner in answers
    ]  # fmt: skip
    return TextTable(head, rows)


def _shown(metric: str) -> list[str]:
    return list(dict.fromkeys(("nme", "fr8", "auc8", metric)))


def _cell(values: Sequence[float], form: Callable[[float], str]) -> str:

    if not values:
        return "-"
    mean, deviation = spread(values)
    return f"{form(mean)} ± {form(deviation)}" if deviation > 0 else form(mean)


def write_tables(section: Section, answers: Sequence[TestedPair], metric: str, folder: Path, end: str) -> None:
    """A protocol's groups, runs and pairs as CSV, in files of their own: no column holds two protocols."""

    of = {"protocol": section.protocol}
    groups, runs = [], []
    for group in section.groups:
        columns = {f"test/{name}": group.numbers(name) for name in _shown(metric)}
        row = {**of, "group": group.name, "runs": len(group.runs), "seeds": len(set(group.seeds))}
        for name, values in (columns | {name: group.logged(name) for name in COSTS}).items():
            row[name], row[f"{name} sd"] = spread(values) if values else ("", "")
        groups.append(row)
        for i, result in enumerate(group.runs):
            about = {"group": group.name, "run": result.run.run_id, "name": result.run.name, "seed": group.seeds[i]}
            costs = {name: result.run.metrics.get(name, "") for name in COSTS}
            origin = {name: result.run.get(name) or "" for name in ORIGIN} | {"minutes": round(result.run.minutes, 2)}
            runs.append(of | about | {name: values[i] for name, values in columns.items()} | costs | origin)
    pairs = [of | {"metric": metric} | vars(one) | {"p holm": p, "better": winner or ""} for one, p, winner in answers]
    for name, rows in (("groups", groups), ("runs", runs), ("pairs", pairs)):
        if rows:
            write_csv(folder / f"{name}{end}.csv", rows)


def figures(section: Section) -> str:
    """The curves, costs and regions of a protocol's groups, as HTML."""

    nmes = {group.name: np.concatenate([result.nme for result in group.runs]) for group in section.groups}
    # 10 %, or where the best has reached 90 % of the faces.
    limit = max(0.1, min(float(np.nanquantile(values, 0.9)) for values in nmes.values()))
    found = [("cumulative error, all seeds of a group together", ced_figure(nmes, limit))]
    costs = {
        COSTS[cost]: {group.name: spread(group.logged(cost)) for group in section.groups if group.logged(cost)}
        for cost in ("cost/parameters", "cost/latency_ms")
    }
    if any(costs.values()):
        nme = {group.name: spread(group.numbers("nme")) for group in section.groups}
        found.append(("NME against cost", cost_figure(nme, costs)))
    names = sorted({name for group in section.groups for run in group.runs for name in run.run.metrics})
    regions = {match[1]: name for name in names if (match := re.fullmatch("test/region/(.+)/nme", name))}
    if regions:
        values = {
            group.name: {region: spread(group.logged(name)) for region, name in regions.items() if group.logged(name)}
            for group in section.groups
        }
        found.append(("NME by region", region_figure(values)))
    return "".join(embed(png(figure), "png", words) for words, figure in found)


class ComparisonReport:
    """Tables, tests and a page of the runs that a config asks for.

    Args:
        cfg: a checked config of `flr.config.schema.Compare`.
        keys: the tags or parameters by which runs are groups of seeds.

    Attributes:
        title: of the page.
    """

    def __init__(self, cfg: DictConfig, keys: Sequence[str]) -> None:
        self.cfg, self.keys = cfg, keys
        self.title = f"{cfg.metric.upper()} by {', '.join(keys)}"
        self._markdown, self._html = f"# {self.title}\n\n", ""

    def write(self) -> Path:
        """Read the runs, print and write the comparison; return the path of its page.

        Raises:
            UserError: there is nothing to compare, or the baseline is not among it.
        """
        cfg = self.cfg
        client = connect(str(cfg.tracking.uri), create=False)
        with tempfile.TemporaryDirectory(prefix="flr-compare-") as copies:
            tested, skipped = read_results(client, select(cfg, client), cfg.runs is not None, Path(copies))
            sections, repeated = lay_out(tested, self.keys, cfg.metric)
            skipped += repeated
            pairs = tested_pairs(sections, cfg)
            name = _name(cfg, self.keys, tested)
            folder = Path(cfg.out or Path(cfg.paths.output_dir) / "comparisons" / name).absolute()
            for i, section in enumerate(sections):
                self._add_section(section, pairs[i], sections, folder, f"-{i + 1}" if len(sections) > 1 else "")
                if pairs[i] and cfg.faces:
                    # It brings torch, which a comparison without faces does without.
                    from flr.evaluation.comparison_faces import face_pairs

                    self._html += face_pairs(section, cfg, client, Path(copies))
        if skipped:
            self._add_skipped(skipped)
        method = METHOD.format(samples=cfg.samples, tests=sum(map(len, pairs)))
        with writing(folder / "comparison.md") as aside:
            aside.write_text(f"{self._markdown}{method}\n", encoding="utf-8")
        with writing(folder / "comparison.html") as aside:
            aside.write_text(document(self.title, f"{self._html}<p>{method}</p>"), encoding="utf-8")
        return folder / "comparison.html"

    def _add_section(
        self, section: Section, pairs: Sequence[TestedPair], sections: Sequence[Section], folder: Path, suffix: str
    ) -> None:
        """Add the tables and figures of one protocol."""
        remarks = [*notes_on(section, self.keys), *_drawn(section, self.cfg.resample)]
        if len(sections) > 1:
            remarks.append(f"not compared with the other protocols: they differ in {differing(sections)}")
        tables = [groups_grid(section, self.keys, self.cfg.metric)]
        tables += [pairs_grid(pairs, self.cfg.metric)] if pairs else []
        print(section.protocol)
        for table in tables:
            print_table(table)
        print("".join(f"note: {line}\n" for line in remarks), end="")
        write_tables(section, pairs, self.cfg.metric, folder, suffix)
        self._markdown += "\n".join([f"## {section.protocol}\n", *map(markdown_table, tables), ""])
        self._markdown += "".join(f"- {line}\n" for line in remarks) + "\n"
        self._html += f"<h2>{html.escape(section.protocol)}</h2>{notes(remarks)}"
        self._html += "".join(grid(table.rows, table.head) for table in tables) + figures(section)

    def _add_skipped(self, skipped: Sequence[str]) -> None:
        """Name the runs that are not compared, and why."""
        head = f"Left out {len(skipped)} run(s)"
        print(f"{head}:", *skipped[:LISTED], *(["..."] if len(skipped) > LISTED else []), sep="\n  ")
        self._markdown += f"{head}:\n\n" + "".join(f"- {line}\n" for line in skipped) + "\n"
        self._html += f"<h2>{head}</h2>{listed(skipped, LISTED)}"
