"""Test results of runs, read back from the tracking store and laid out by protocol and group."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr.errors import UserError, nearest
from flr.evaluation.comparison import better, of_faces
from flr.metrics.functional import percent_mean
from flr.tracking.connection import StoredRun, fetch

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What makes two protocols differ, as evaluation.json says it.
PROTOCOL = ("form", "scheme", "normaliser", "policy", "held_out", "counts", "fingerprint")
# Parameters that say where and for whom a run ran, not what it did.
NO_SETTING = ("run", "name", "seed", "overrides", "callbacks.", "hardware.", "paths.", "tracking.", "version.",
              "data.root", "data.workers")  # fmt: skip
AT_ONCE = 8  # runs that are read at the same time
NAMED = 6  # parameters that a note lists


@dataclass(frozen=True, eq=False)
class Tested:
    """A run with its test result.

    Attributes:
        run: as the store keeps it.
        protocol: the protocol's name.
        about: its parts, by `PROTOCOL`.
        faces: (N,) names, sorted.
        nme: (N,) shares, in that order; NaN where undefined.
        people: (N,) the person, clip or photo that each face is of; None where errors.csv was written without.
    """

    run: StoredRun
    protocol: str
    about: dict[str, Any]
    faces: np.ndarray
    nme: np.ndarray
    people: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one protocol that share what they are grouped by, and ought to differ in their seeds alone."""

    name: str
    runs: list[Tested]

    def by_face(self, metric: str) -> np.ndarray:
        """(R, N) each face's part in a metric, percent."""
        return of_faces(np.stack([tested.nme for tested in self.runs]), metric)

    def numbers(self, metric: str) -> list[float]:
        """A metric of each run, percent."""
        return np.nanmean(self.by_face(metric), axis=1).tolist()

    def logged(self, name: str) -> list[float]:
        """What those of the runs that have it logged under a name."""
        return [tested.run.metrics[name] for tested in self.runs if name in tested.run.metrics]

    @property
    def seeds(self) -> list[str]:
        return [str(tested.run.get("seed")) for tested in self.runs]


@dataclass(frozen=True, eq=False)
class Section:
    """The groups of one protocol, the best first. Numbers of another protocol never stand beside theirs."""

    protocol: str
    groups: list[Group]

    def units(self, resample: str | None) -> np.ndarray | None:
        """(N,) what is drawn whole in a bootstrap, by name; None for single faces.

        Faces of one person, clip or photo are not independent, so they are drawn together wherever that is known and
        there are two or more to draw from.

        Args:
            resample: ``group`` to insist on it, ``face`` to leave it.

        Raises:
            UserError: insisted, and not known.
        """
        told = [run for group in self.groups for run in group.runs if run.people is not None]
        known = told[0].people if told else None
        for run in told[1:]:
            if not np.array_equal(known, run.people):  # type: ignore[arg-type]
                raise UserError(
                    f"errors.csv of {told[0].run.run_id} and of {run.run.run_id} group the same faces differently; evaluate "
                    "one of them again"
                )
        if resample == "group" and known is None:
            raise UserError(
                "resample=group: no errors.csv of these runs names the groups of faces, as those of before did not; "
                "evaluate one of them again, or set resample=face"
            )
        if resample == "face" or known is None or (resample is None and len(np.unique(known)) < 2):
            return None
        return known

    def group(self, name: str) -> Group | None:
        return next((group for group in self.groups if group.name == name), None)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the sample standard deviation, 0 of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# -- reading -----------------------------------------------------------------------------------------------------------


def having(runs: Sequence[StoredRun], where: Mapping[str, Any]) -> list[StoredRun]:
    """The runs whose tags or parameters have one of the values given for each.

    Raises:
        UserError: no run has such a key, or such a value.
    """
    kept = list(runs)
    for key, wanted in where.items():
        refuse_unknown("where", key, runs)
        values = {str(run.get(key)) for run in runs}
        words = [str(word) for word in (wanted if isinstance(wanted, list) else [wanted])]
        for word in words:
            if word not in values:
                raise UserError(f"where.{key}={word}: no run has that{nearest(word, values)}")
        kept = [run for run in kept if run.get(key) in words]
    return kept


def refuse_unknown(word: str, key: str, runs: Sequence[StoredRun]) -> None:
    """Raises `UserError` for a key that is neither tag nor parameter of any run."""
    if all(run.get(key) is None for run in runs):
        known = {name for run in runs for name in (*run.tags, *run.params) if not name.startswith("mlflow.")}
        raise UserError(f"{word}: no run has a tag or parameter '{key}'{nearest(key, known)}")


def read_results(
    client: "MlflowClient", runs: Sequence[StoredRun], named: bool, folder: Path
) -> tuple[list[Tested], list[str]]:
    """The test results of runs, and a line for each run that has none.

    Args:
        client: of the store.
        runs: to read, one at least.
        named: whether the user named them: then one that was stopped but tested counts, too.
        folder: for copies of their files.

    Raises:
        UserError: no run has a result.
    """

    def read(run: StoredRun) -> Tested | str:
        try:
            if run.status != "FINISHED" and not named:
                raise UserError(f"not finished ({run.status})")
            return read_result(client, run, folder / run.run_id)
        except UserError as error:
            return f"{run.name} ({run.run_id}): {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:  # a server's answers are waited for together
        found = list(pool.map(read, runs))
    tested = [one for one in found if isinstance(one, Tested)]
    left_out = [one for one in found if isinstance(one, str)]
    if not tested:
        raise UserError(
            f"none of {len(runs)} run(s) can be compared: {'; '.join(left_out[:3])}"
            f"{'; ...' if len(left_out) > 3 else ''}; name others, or finish or evaluate these"
        )
    return tested, left_out


def read_result(client: "MlflowClient", run: StoredRun, folder: Path) -> Tested:
    """The test result of a run, from its ``evaluation.json`` and ``errors.csv``.

    Raises:
        UserError: it has none, a file of it is gone or damaged, or they do not belong together.
    """
    if "test/nme" not in run.metrics:
        raise UserError("no test result")
    try:
        about = json.loads(fetch(client, run, "evaluation.json", folder).read_text(encoding="utf-8"))
        protocol, parts = str(about["protocol"]), {key: about.get(key) for key in PROTOCOL}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"evaluation.json is damaged or of another version of flr ({error})") from error
    try:
        with fetch(client, run, "errors.csv", folder).open(newline="", encoding="utf-8") as file:
            rows = sorted((row["face"], float(row["nme"]) / 100, row.get("group")) for row in csv.DictReader(file))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"errors.csv is damaged ({error})") from error
    faces, nme = np.array([face for face, _, _ in rows]), np.array([value for _, value, _ in rows])
    groups = [person for _, _, person in rows if person is not None]
    if groups and len(groups) < len(rows):
        raise UserError("errors.csv is damaged (a row is cut before its group)")
    people = np.array(groups) if groups else None
    if len(np.unique(faces)) < len(faces):
        raise UserError("errors.csv names a face twice")
    mean, logged = percent_mean(nme), run.metrics["test/nme"]
    if not math.isclose(mean, logged, rel_tol=1e-3):
        raise UserError(f"errors.csv gives an NME of {mean:.3f}, test/nme is {logged:.3f}: not of one evaluation")
    return Tested(run, protocol, parts, faces, nme, people)


# -- laying out --------------------------------------------------------------------------------------------------------


def lay_out(tested: Sequence[Tested], keys: Sequence[str], metric: str) -> tuple[list[Section], list[str]]:
    """The groups of each protocol, and a line for each run that repeats another face for face.

    Args:
        tested: the runs.
        keys: tags or parameters whose values make a group.
        metric: by which groups are ordered.

    Raises:
        UserError: no run has a key, or runs of one protocol were not tested on the same faces.
    """
    for key in keys:
        refuse_unknown("group", key, [result.run for result in tested])
    protocols: dict[str, dict[str, list[Tested]]] = defaultdict(lambda: defaultdict(list))
    first: dict[str, Tested] = {}
    repeated = []
    for result in tested:
        _refuse_other_faces(first.setdefault(result.protocol, result), result)
        group = protocols[result.protocol][" / ".join(result.run.get(key) or "-" for key in keys)]
        twin = next((other for other in group if _repeats(result, other)), None)
        if twin is None:
            group.append(result)
        else:
            repeated.append(f"{result.run.name} ({result.run.run_id}): repeats {twin.run.run_id}, seed and every face")
    sections = []
    for protocol, groups in sorted(protocols.items()):
        named = [Group(name, runs) for name, runs in sorted(groups.items())]
        named.sort(key=lambda group: spread(group.numbers(metric))[0], reverse=better(metric, 1, 0))
        sections.append(Section(protocol, named))
    return sections, repeated


def _refuse_other_faces(one: Tested, other: Tested) -> None:
    known = [set(result.faces[~np.isnan(result.nme)].tolist()) for result in (one, other)]
    odd = sorted(known[0] ^ known[1])
    if odd or len(one.faces) != len(other.faces):
        raise UserError(
            f"runs {one.run.run_id} and {other.run.run_id} name one protocol ({one.protocol}) but were not tested on "
            f"the same faces ({odd[0] if odd else 'some without an error'} is not in both); leave one out by runs="
        )


def _repeats(one: Tested, other: Tested) -> bool:
    return one.run.get("seed") == other.run.get("seed") and np.array_equal(one.nme, other.nme, equal_nan=True)


def differing(sections: Sequence[Section]) -> str:
    """The parts in which the protocols of sections differ."""
    parts = [section.groups[0].runs[0].about for section in sections]
    return ", ".join(key for key in PROTOCOL if any(part[key] != parts[0][key] for part in parts))


def notes_on(section: Section, keys: Sequence[str]) -> list[str]:
    """What the numbers of these groups leave open."""
    lines = []
    if len(section.groups) == 1:
        lines.append(f"one group only, {section.groups[0].name}: nothing to compare it with")
    if single := [group.name for group in section.groups if len(group.runs) == 1]:
        lines.append(f"one seed: {', '.join(single)}; such intervals cover faces alone, another seed may turn them")
    for group in section.groups:
        if twice := sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1}):
            lines.append(f"{group.name}: several runs of seed {', '.join(twice)}, so its spread is not one over seeds")
        if varied := _varied(group, keys):
            more = f" and {len(varied) - NAMED} more" if len(varied) > NAMED else ""
            lines.append(f"{group.name}: its runs differ in more than the seed: {', '.join(varied[:NAMED])}{more}")
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
    return sorted(key for key in names if len({setting.get(key) for setting in settings}) > 1)
