"""Read the test results of runs back from the tracking store, and group them by protocol and by what is compared."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr.config.compose import model_names
from flr.errors import UserError, nearest
from flr.evaluation.comparison import better, face_scores
from flr.metrics.functional import percent_mean
from flr.tracking.connection import StoredRun, fetch

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Keys of evaluation.json in which two protocols can differ.
PROTOCOL_PARTS = ("form", "scheme", "normaliser", "policy", "held_out", "counts", "fingerprint")
# Parameters that describe where and for whom a run ran.
NO_SETTING = ("run", "name", "seed", "overrides", "callbacks.", "hardware.", "cost.", "paths.", "tracking.", "version.",
              "data.root", "data.workers")  # fmt: skip
SOURCES = {
    "truth": "the box around the true points", "file": "the dataset's own box", "haar": "the box of a Haar detector",
    "picture": "the whole image",
}  # fmt: skip
READERS = 8  # runs that are read at the same time
MAX_NAMED = 6  # parameters that a note lists


@dataclass(frozen=True, eq=False)
class TestedRun:
    """A run with its test result.

    Attributes:
        protocol: Name of the protocol.
        parts: Its `PROTOCOL_PARTS`.
        faces: (N,) names, sorted.
        nme: (N,) shares, in that order; NaN where undefined.
        baseline: (N,) shares of the mean face; None where errors.csv does not hold them.
        persons: (N,) the person, clip or photo of each face; None where errors.csv does not name them.
    """

    run: StoredRun
    protocol: str
    parts: dict[str, Any]
    faces: np.ndarray
    nme: np.ndarray
    baseline: np.ndarray | None
    persons: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one protocol with the same value of what they are grouped by."""

    name: str
    runs: list[TestedRun]

    def face_scores(self, metric: str) -> np.ndarray:
        """Return each face's contribution (R, N) to a metric, percent."""
        return face_scores(np.stack([tested.nme for tested in self.runs]), metric)

    def values(self, metric: str) -> list[float]:
        """Return a metric of each run, percent."""
        return np.nanmean(self.face_scores(metric), axis=1).tolist()

    def logged(self, name: str) -> list[float]:
        """Return a logged metric or cost of those runs that have it."""
        values = [number_of(tested.run, name) for tested in self.runs]
        return [value for value in values if value is not None]

    @property
    def seeds(self) -> list[str]:
        """Seed of each run."""
        return [str(tested.run.get("seed")) for tested in self.runs]


@dataclass(frozen=True, eq=False)
class Section:
    """The groups of one protocol, the best first."""

    protocol: str
    groups: list[Group]

    @property
    def units(self) -> np.ndarray | None:
        """What a bootstrap draws whole: (N,) the person, clip or photo of each face; None where two of them are not named.

        Raises:
            UserError: Two runs name different persons, clips or photos of the same faces.
        """
        named = [run for group in self.groups for run in group.runs if run.persons is not None]
        persons = named[0].persons if named else None
        for run in named[1:]:
            if not np.array_equal(persons, run.persons):  # type: ignore[arg-type]
                raise UserError(
                    f"errors.csv of {named[0].run.run_id} and of {run.run.run_id} group the same faces differently; evaluate "
                    "one of them again"
                )
        return None if persons is None or len(np.unique(persons)) < 2 else persons

    def baseline(self, metric: str) -> float | None:
        """Return a metric of the mean face, percent, the mean of the runs that know it."""
        known = [run.baseline for group in self.groups for run in group.runs if run.baseline is not None]
        return float(np.nanmean(face_scores(np.stack(known), metric))) if known else None

    @property
    def words(self) -> str:
        """Explain the protocol in sentences."""
        parts = self.groups[0].runs[0].parts
        counts, source = parts["counts"] or {}, str(parts["policy"]).partition("-")[0]
        held_out = " and ".join(f"{share:.0%} for {part}" for part, share in (parts["held_out"] or {}).items())
        text = (
            f"Every model is tested once on the {counts.get('test')} test faces of {parts['form']}, after training on "
            f"{counts.get('train')} and being selected on {counts.get('val')} validation faces"
            + (f" ({held_out} were held out of the training faces). " if held_out else ". ")
        )
        return text + (
            f"Its error is the mean distance to the {parts['scheme']} points, divided by the {parts['normaliser']} size of "
            f"the face and averaged over points and faces. Each crop follows {SOURCES.get(source, source)} "
            f"({parts['policy']}). Only numbers with the same data fingerprint, {parts['fingerprint']}, are compared."
        )

    def group(self, name: str) -> Group | None:
        """Return the group of a name, if there is one."""
        return next((group for group in self.groups if group.name == name), None)


def number_of(run: StoredRun, name: str) -> float | None:
    """Return a metric of a run, or a cost, which is a parameter (in flr 0.1 a metric)."""
    value = run.metrics.get(name, run.params.get(name.replace("/", ".")))
    return None if value is None else float(value)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# -- reading -----------------------------------------------------------------------------------------------------------


def with_current_names(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Return runs of which those of flr 0.1, tagged with the model's class, have the model's name in ``conf/model/``."""
    names = {target.rpartition(".")[2]: name for target, name in model_names().items()}
    return [
        replace(run, tags=run.tags | {"model": names[run.tags["model"]]}) if run.tags.get("model") in names else run
        for run in runs
    ]


def filter_runs(runs: Sequence[StoredRun], where: Mapping[str, Any]) -> list[StoredRun]:
    """Return the runs whose tags or parameters have one of the values of each key.

    Raises:
        UserError: No run has such a key, or such a value.
    """
    matching = list(runs)
    for key, wanted in where.items():
        check_key("where", key, runs)
        values = {str(run.get(key)) for run in runs}
        wanted_values = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
        for value in wanted_values:
            if value not in values:
                raise UserError(f"where.{key}={value}: no run has this value{nearest(value, values)}")
        matching = [run for run in matching if run.get(key) in wanted_values]
    return matching


def check_key(option: str, key: str, runs: Sequence[StoredRun]) -> None:
    """Raise `UserError` for a key that is neither tag nor parameter of any run."""
    if all(run.get(key) is None for run in runs):
        known = {name for run in runs for name in (*run.tags, *run.params) if not name.startswith("mlflow.")}
        raise UserError(f"{option}: no run has a tag or parameter '{key}'{nearest(key, known)}")


def read_results(
    client: "MlflowClient", runs: Sequence[StoredRun], named: bool, folder: Path
) -> tuple[list[TestedRun], list[str]]:
    """Read the test results of runs.

    Args:
        client: Client of the store.
        runs: Runs to read.
        named: Whether the user named them: then a run that was stopped but tested counts, too.
        folder: Folder for copies of their files.

    Returns:
        The runs with a result, and a line for each of the others.

    Raises:
        UserError: No run has a result.
    """

    def read(run: StoredRun) -> TestedRun | str:
        try:
            if run.status != "FINISHED" and not named:
                raise UserError(f"not finished ({run.status})")
            return read_result(client, run, folder / run.run_id)
        except UserError as error:
            return f"{run.name} ({run.run_id}): {error}"

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, runs))
    tested = [one for one in found if isinstance(one, TestedRun)]
    skipped = [one for one in found if isinstance(one, str)]
    if not tested:
        raise UserError(
            f"none of {len(runs)} run(s) can be compared: {'; '.join(skipped[:3])}"
            f"{'; ...' if len(skipped) > 3 else ''}; name others, or finish or evaluate these"
        )
    return tested, skipped


def read_result(client: "MlflowClient", run: StoredRun, folder: Path) -> TestedRun:
    """Read the test result of a run from its ``evaluation.json`` and ``errors.csv``.

    Raises:
        UserError: The run has none, a file is missing or damaged, or the files are not of one evaluation.
    """
    if "test/nme" not in run.metrics:
        raise UserError("no test result")
    try:
        evaluation = json.loads(fetch(client, run, "evaluation.json", folder).read_text(encoding="utf-8"))
        protocol, parts = str(evaluation["protocol"]), {key: evaluation.get(key) for key in PROTOCOL_PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"evaluation.json is damaged or of another version of flr ({error})") from error
    try:
        with fetch(client, run, "errors.csv", folder).open(newline="", encoding="utf-8") as file:
            rows = sorted(
                (row["face"], float(row["nme"]) / 100, row.get("group"), float(row.get("baseline_nme") or "nan") / 100)
                for row in csv.DictReader(file)
            )
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"errors.csv is damaged ({error})") from error
    faces, nme, baseline = (np.array([row[column] for row in rows]) for column in (0, 1, 3))
    groups = [row[2] for row in rows if row[2] is not None]
    if groups and len(groups) < len(rows):
        raise UserError("errors.csv is damaged (a row is cut before its group)")
    if len(np.unique(faces)) < len(faces):
        raise UserError("errors.csv names a face twice")
    mean, logged = percent_mean(nme), run.metrics["test/nme"]
    if not math.isclose(mean, logged, rel_tol=1e-3):
        raise UserError(f"errors.csv gives an NME of {mean:.3f}, test/nme is {logged:.3f}: not of one evaluation")
    known = None if np.isnan(baseline).all() else baseline
    return TestedRun(run, protocol, parts, faces, nme, known, np.array(groups) if groups else None)


# -- grouping ----------------------------------------------------------------------------------------------------------


def group_runs(tested: Sequence[TestedRun], keys: Sequence[str], metric: str) -> tuple[list[Section], list[str]]:
    """Group the runs of each protocol.

    Returns:
        One section per protocol, and a line for each run that repeats another one face for face.

    Raises:
        UserError: No run has a key, or runs of one protocol were not tested on the same faces.
    """
    for key in keys:
        check_key("group", key, [result.run for result in tested])
    protocols: dict[str, dict[str, list[TestedRun]]] = defaultdict(lambda: defaultdict(list))
    first: dict[str, TestedRun] = {}
    repeated = []
    for result in tested:
        _check_same_faces(first.setdefault(result.protocol, result), result)
        group = protocols[result.protocol][" / ".join(result.run.get(key) or "-" for key in keys)]
        twin = next((other for other in group if _repeats(result, other)), None)
        if twin is None:
            group.append(result)
        else:
            repeated.append(f"{result.run.name} ({result.run.run_id}): repeats {twin.run.run_id}, seed and every face")
    sections = []
    for protocol, groups in sorted(protocols.items()):
        named = [Group(name, runs) for name, runs in sorted(groups.items())]
        named.sort(key=lambda group: mean_and_deviation(group.values(metric))[0], reverse=better(metric, 1, 0))
        sections.append(Section(protocol, named))
    return sections, repeated


def _check_same_faces(one: TestedRun, other: TestedRun) -> None:
    faces = [set(result.faces[~np.isnan(result.nme)].tolist()) for result in (one, other)]
    different = sorted(faces[0] ^ faces[1])
    if different or len(one.faces) != len(other.faces):
        raise UserError(
            f"runs {one.run.run_id} and {other.run.run_id} name one protocol ({one.protocol}) but were not tested on the "
            f"same faces ({different[0] if different else 'some without an error'} is not in both); skip one by runs="
        )


def _repeats(one: TestedRun, other: TestedRun) -> bool:
    return one.run.get("seed") == other.run.get("seed") and np.array_equal(one.nme, other.nme, equal_nan=True)


def differing_parts(sections: Sequence[Section]) -> str:
    """Name the parts in which the protocols of sections differ."""
    parts = [section.groups[0].runs[0].parts for section in sections]
    return ", ".join(key for key in PROTOCOL_PARTS if any(part[key] != parts[0][key] for part in parts))


def notes_on(section: Section, keys: Sequence[str]) -> list[str]:
    """Describe what limits the numbers of these groups, in lines."""
    lines = []
    if len(section.groups) == 1:
        lines.append(f"one group only, {section.groups[0].name}: nothing to compare it with")
    if single := [group.name for group in section.groups if len(group.runs) == 1]:
        lines.append(f"one seed: {', '.join(single)}; such intervals cover faces alone, another seed may reverse them")
    for group in section.groups:
        if twice := sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1}):
            lines.append(
                f"{group.name}: several runs of seed {', '.join(twice)}, so its deviation is not over seeds alone"
            )
    if varied := sorted({key for group in section.groups for key in _varied(group, keys)}):
        more = f" and {len(varied) - MAX_NAMED} more" if len(varied) > MAX_NAMED else ""
        pooled = f"group={','.join(keys)} pools runs that differ in more than the seed"
        lines.append(
            f"{pooled}: {', '.join(varied[:MAX_NAMED])}{more}; group=[{','.join([*keys, varied[0]])}] tells them apart"
        )
    machines = {
        ", ".join(result.run.params.get(f"hardware.{part}", "unknown") for part in ("cpu", "gpu"))
        for group in section.groups
        for result in group.runs
    }
    if len(machines) > 1:
        lines.append(f"images/s and latency are of different machines: {'; '.join(sorted(machines))}")
    return lines


def _varied(group: Group, keys: Sequence[str]) -> list[str]:
    settings = [
        {key: value for key, value in result.run.params.items() if not key.startswith(NO_SETTING) and key not in keys}
        | {"commit": result.run.tags.get("commit", "")}
        for result in group.runs
    ]
    names = {key for setting in settings for key in setting}
    return [key for key in names if len({setting.get(key) for setting in settings}) > 1]
