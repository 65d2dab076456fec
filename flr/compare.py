"""``python -m flr.compare``: is A better than B? Finished runs read back from MLflow, by group, with intervals."""

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from flr.config import Compare, as_config, check, door, quiet
from flr.errors import UserError, nearest
from flr.reporting.tables import TextTable, markdown_table, print_table, write_csv

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

    from flr.metrics.comparison import Difference
    from flr.tracking.results import Section, Tested
    from flr.tracking.store import StoredRun

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
SIDE = 240  # pixels of a face on the page
LISTED = 50  # runs left out that the terminal and the page name; comparison.md names all
METHOD = (
    "Means over runs, ± their standard deviation. Differences: a paired bootstrap over faces and runs with {samples:,} "
    "draws; 95 % intervals, each of its pair alone; p two-sided, by Holm's correction over all {tests} pair(s). Faces of "
    "one person, clip or photo are not independent: they are drawn together, unless a note says that they were not."
)


class Answer(NamedTuple):
    """A pair of groups, tested: its difference, its p after correction, and the better group where that shows one."""

    difference: "Difference"
    corrected: float
    winner: str | None


def main(cfg: DictConfig) -> None:
    """Compare the runs that the config asks for."""
    import tempfile

    from flr.files import writing
    from flr.tracking.page import document, grid, listed, notes
    from flr.tracking.results import differing, lay_out, notes_on, read_results
    from flr.tracking.store import connect

    # Less the Tracker, which writes runs and brings torch with it.
    check(cast(DictConfig, OmegaConf.merge(cfg, {"tracking": None})), Compare)
    keys = [cfg.group] if isinstance(cfg.group, str) else list(cfg.group)
    if not keys:
        raise UserError("group=[]: name a tag or parameter, as group=model")
    title = f"{cfg.metric.upper()} by {', '.join(keys)}"
    print(f"Comparing {title}")
    client = connect(str(cfg.tracking.uri), create=False)
    with tempfile.TemporaryDirectory(prefix="flr-compare-") as copies:
        tested, left_out = read_results(client, select(cfg, client), cfg.runs is not None, Path(copies))
        sections, repeated = lay_out(tested, keys, cfg.metric)
        left_out += repeated
        answers = tested_pairs(sections, cfg)
        folder = Path(cfg.out or Path(cfg.paths.output_dir) / "comparisons" / _name(cfg, keys, tested)).absolute()
        words, body = f"# {title}\n\n", ""
        for i, (section, pairs) in enumerate(zip(sections, answers, strict=True)):
            remarks = [*notes_on(section, keys), *_drawn(section, cfg.resample)]
            if len(sections) > 1:
                remarks.append(f"not compared with the other protocols: they differ in {differing(sections)}")
            grids = [groups_grid(section, keys, cfg.metric), *([pairs_grid(pairs, cfg.metric)] if pairs else [])]
            print(section.protocol)
            for one in grids:
                print_table(one)
            print("".join(f"note: {line}\n" for line in remarks), end="")
            write_tables(section, pairs, cfg.metric, folder, f"-{i + 1}" if len(sections) > 1 else "")
            words += "\n".join([f"## {section.protocol}\n", *map(markdown_table, grids), ""])
            words += "".join(f"- {line}\n" for line in remarks) + "\n"
            body += f"<h2>{html.escape(section.protocol)}</h2>{notes(remarks)}"
            body += "".join(grid(one.rows, one.head) for one in grids) + figures(section)
            if pairs and cfg.faces:
                body += face_pairs(section, cfg, client, Path(copies))
    method = METHOD.format(samples=cfg.samples, tests=sum(map(len, answers)))
    if left_out:
        head = f"Left out {len(left_out)} run(s)"
        print(f"{head}:", *left_out[:LISTED], *(["..."] if len(left_out) > LISTED else []), sep="\n  ")
        words += f"{head}:\n\n" + "".join(f"- {line}\n" for line in left_out) + "\n"
        body += f"<h2>{head}</h2>{listed(left_out, LISTED)}"
    with writing(folder / "comparison.md") as aside:
        aside.write_text(f"{words}{method}\n", encoding="utf-8")
    with writing(folder / "comparison.html") as aside:
        aside.write_text(document(title, f"{body}<p>{method}</p>"), encoding="utf-8")
    print(f"page {folder / 'comparison.html'}")


def select(cfg: DictConfig, client: "MlflowClient") -> list["StoredRun"]:
    """The runs that the config asks for.

    Raises:
        UserError: there is none.
    """
    from flr.tracking.results import having
    from flr.tracking.store import find_runs, get_run

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


def tested_pairs(sections: "Sequence[Section]", cfg: DictConfig) -> list[list[Answer]]:
    """The pairs of groups of each section, tested, and corrected over all sections.

    Raises:
        UserError: the baseline is not there, or was tested under another protocol than what it is held against.
    """
    from flr.metrics.comparison import better, differences, holm

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

    def answer(one: "Difference", p: float) -> Answer:
        winner = one.first if better(cfg.metric, one.mean, 0) else one.second
        return Answer(one, p, winner if p < LEVEL else None)

    return [[answer(one, next(corrected)) for one in pairs] for pairs in found]


def _drawn(section: "Section", resample: str | None) -> list[str]:
    """What the bootstrap of a section drew, where that is not plain faces that share nothing."""
    units, faces = section.units(resample), len(section.groups[0].runs[0].faces)
    count = faces if units is None else len(set(units.tolist()))
    if units is None:
        return ["faces drawn one by one, as if independent: several of one person or clip make intervals too narrow"]
    return [f"{faces} faces of {count} persons, clips or photos, which are drawn whole"] if count < faces else []


def _refuse_baseline(baseline: str, sections: "Sequence[Section]") -> None:
    from flr.tracking.results import differing

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


def _name(cfg: DictConfig, keys: Sequence[str], tested: "Sequence[Tested]") -> str:
    """A folder's name: the keys, and a digest of what the numbers follow from."""
    settings = (cfg.metric, cfg.baseline, cfg.samples, cfg.seed, cfg.resample)
    words = [*map(str, settings), *sorted(one.run.run_id for one in tested)]
    digest = hashlib.sha256("\0".join([*keys, *words]).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join(keys))[:80]}-{digest}"


# -- tables ------------------------------------------------------------------------------------------------------------


def groups_grid(section: "Section", keys: Sequence[str], metric: str) -> TextTable:
    """The groups, the best first."""
    from flr.tracking.pictures import short

    rows = []
    for group in section.groups:
        seeds = len(set(group.seeds))
        cells = [group.name, str(seeds) if seeds == len(group.runs) else f"{seeds} ({len(group.runs)} runs)"]
        cells += [_cell(group.numbers(name), "{:.2f}".format) for name in _shown(metric)]
        rows.append(cells + [_cell(group.logged(name), short) for name in COSTS])
    percents = [f"{name.upper()}, %" for name in _shown(metric)]
    return TextTable([" / ".join(keys), "seeds", *percents, *COSTS.values()], rows)


def pairs_grid(answers: Sequence[Answer], metric: str) -> TextTable:
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
    from flr.tracking.results import spread

    if not values:
        return "-"
    mean, deviation = spread(values)
    return f"{form(mean)} ± {form(deviation)}" if deviation > 0 else form(mean)


def write_tables(section: "Section", answers: Sequence[Answer], metric: str, folder: Path, end: str) -> None:
    """A protocol's groups, runs and pairs as CSV, in files of their own: no column holds two protocols."""
    from flr.tracking.results import spread

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


# -- pictures ----------------------------------------------------------------------------------------------------------


def figures(section: "Section") -> str:
    """The curves, costs and regions of a protocol's groups, as HTML."""
    import numpy as np

    from flr.tracking.page import embed
    from flr.tracking.pictures import ced_figure, cost_figure, png, region_figure
    from flr.tracking.results import spread

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


def face_pairs(section: "Section", cfg: DictConfig, client: "MlflowClient", folder: Path) -> str:
    """The faces on which two groups differ most, the best seed of each predicting them anew, side by side, as HTML.

    The two are the baseline, or else the best group, and the group nearest to it.
    """
    import numpy as np

    from flr.landmarks.draw import draw_face, sheet
    from flr.tracking.page import embed, notes
    from flr.tracking.pictures import jpeg
    from flr.tracking.results import spread

    one = (cfg.baseline is not None and section.group(str(cfg.baseline))) or section.groups[0]
    means = {group.name: spread(group.numbers(cfg.metric))[0] for group in section.groups}
    other = min((g for g in section.groups if g is not one), key=lambda g: abs(means[g.name] - means[one.name]))
    best = [min(group.runs, key=lambda result: float(np.nanmean(result.nme))) for group in (one, other)]
    nme = np.stack([result.nme for result in best])
    gap = np.nan_to_num(nme[0] - nme[1])
    most = np.argsort(-np.abs(gap), kind="stable")[: cfg.faces]
    most = most[np.argsort(gap[most], kind="stable")]
    words = f"<h3>Where {html.escape(one.name)} (left) and {html.escape(other.name)} (right) differ most</h3>"
    try:
        drawn = [predict(client, result, most, cfg.paths, folder / result.run.run_id) for result in best]
    except UserError as error:
        reason = str(error).replace(f"{folder}/", "")
        print(f"note: no faces on the page: {reason}")
        return words + notes([f"no faces here: {reason}"])
    words += "<p>The best seed of each; truth green, prediction magenta.</p>"
    for i, face in enumerate(most):
        name, (left, right) = str(best[0].faces[face]), 100 * nme[:, face]
        crops = [
            draw_face(*faces[i], SIDE, f"{value:.1f} %") for faces, value in zip(drawn, (left, right), strict=True)
        ]
        line = f"{html.escape(name)}<br>NME {left:.2f} % and {right:.2f} %"
        words += f"<figure>{embed(jpeg(sheet(crops, 2)), 'jpeg', name)}<figcaption>{line}</figcaption></figure>"
    return words


def predict(
    client: "MlflowClient", result: "Tested", chosen: "np.ndarray", paths: Any, folder: Path
) -> list[tuple["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]]:
    """Some faces (indices of a result's) by the run's best checkpoint: picture, truth, points (crop pixels), labelled.

    Raises:
        UserError: the checkpoint or the data are not here, or no longer what they were.
    """
    import numpy as np
    import torch

    from flr.checkpoints import load_checkpoint
    from flr.evaluate import restore
    from flr.tracking.store import fetch

    print(f"Predicting {len(chosen)} faces by {result.run.name}")
    quiet()
    best = fetch(client, result.run, "checkpoints/best.ckpt", folder)
    checkpoint = load_checkpoint(best)
    own = as_config(checkpoint["flr"]["config"])
    own.paths = paths
    module, data = restore(own, checkpoint, best)
    if data.protocol.fingerprint != result.about["fingerprint"]:
        raise UserError(f"the data at {data.root} are no longer those of run {result.run.run_id}")
    table = data.prepare()
    row_of = {str(table.name[row]): row for row in data.rows("test")}
    rows = np.array([row_of[str(name)] for name in result.faces[chosen]])
    module.eval()
    with torch.no_grad():
        points = module(data.batch(torch.from_numpy(rows), None).images).numpy()
    margin, size = data.store.margin, data.crop.size
    crops = data.store.images[rows, margin : margin + size, margin : margin + size]
    return list(zip(crops, data.labels[rows], points, table.labelled[rows], strict=True))


if __name__ == "__main__":
    door(main, "compare")
