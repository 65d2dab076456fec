"""The record of an experiment, ``experiments/NAME/expected.yaml``: expected numbers, and where they came from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import yaml  # type: ignore[import-untyped, unused-ignore]
from annotated_types import Ge, Lt, MinLen
from pydantic import TypeAdapter, ValidationError

from flr.errors import UserError
from flr.evaluation.results import mean_and_deviation
from flr.files import opened, write_file
from flr.tracking import provenance
from flr.tracking.connection import StoredRun

Tier = Literal["smoke", "train"]  # tier=eval is compared with the trainings

FLOORS = {"loss of step 1": 1e-4, "weights moved by": 1e-2}  # shares of the value; see `of_smoke`
FLOOR = 5e-2


@dataclass(frozen=True)
class Level:
    """The expected value of a metric.

    Attributes:
        mean: Mean over seeds.
        spread: Sample standard deviation over seeds; None for a single seed.
        tolerance: Allowed difference of another mean, in the metric's unit.
    """

    mean: float
    spread: float | None
    tolerance: Annotated[float, Ge(0), Lt(math.inf)]


@dataclass(frozen=True)
class Record:
    """A tier of ``expected.yaml``.

    Attributes:
        command: Command that obtains the numbers again.
        commit: Commit of the code, in a clean tree.
        lock: Digest of the lock file.
        hardware: See `flr.tracking.provenance.hardware`; of trainings their precision too.
        minutes: Wall time of each seed.
        protocol: Name of the protocol.
        fingerprint: Fingerprint of the data.
    """

    command: str
    commit: str
    lock: str
    versions: dict[str, str]
    hardware: dict[str, str]
    minutes: list[float]
    seeds: Annotated[list[int], MinLen(1)]
    protocol: str
    fingerprint: str
    metrics: Annotated[dict[str, Level], MinLen(1)]


class Run(NamedTuple):
    """The result of one seed.

    Attributes:
        metrics: By name, all finite.
        protocol: Name of the protocol.
        fingerprint: Fingerprint of the data.
        minutes: Wall time.
        stored: A training that is to be recorded, as the tracking store has it.
        precision: Precision of a training; empty for a smoke run.
    """

    seed: int
    metrics: Mapping[str, float]
    protocol: str
    fingerprint: str
    minutes: float = 0.0
    stored: StoredRun | None = None
    precision: str = ""


def column(runs: Sequence[Run], metric: str) -> list[float]:
    """Return a metric of each run; nothing where one lacks it."""
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return values if len(values) == len(runs) else []


# -- files -------------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[Tier, Record]:
    """Read the records of an ``expected.yaml``, by tier.

    Raises:
        UserError: It is missing, or has another form.
    """
    try:
        with opened(file, 2**20) as stream:
            return TypeAdapter(dict[Tier, Record]).validate_python(yaml.safe_load(stream.read()))
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; write it by record=true, or name the folder of the records by records=DIR "
            "(experiments/ of a checkout: an installed package has none)"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: not a record, {where} {first['msg']}; restore it, or move it away") from error


def write(file: Path, name: str, records: Mapping[Tier, Record]) -> None:
    """Write an ``expected.yaml``."""
    head = f"# Expected numbers of python -m flr.reproduce name={name}; its record=true writes this file.\n"
    body = yaml.safe_dump({tier: asdict(record) for tier, record in records.items()}, sort_keys=False,
                          default_flow_style=None, width=120)  # fmt: skip
    write_file(file, head + body)


# -- recording ---------------------------------------------------------------------------------------------------------


def check_clean_tree(exclude: Sequence[str] = ()) -> None:
    """Check that the code is that of a commit, which a record names, but for the files named in `exclude`.

    Raises:
        UserError: Another file differs, or there is no commit.
    """
    changed = provenance.changed_files(exclude)
    if changed is None:
        raise UserError("record=true names a commit, and this code has none; run it in a checkout")
    if changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise UserError(f"record=true names a commit, and the tree differs from it in {listed}; commit first")


def check_recordable(run: StoredRun) -> None:
    """Raise `UserError` for a run that is not finished or was not trained in a clean tree."""
    if run.status != "FINISHED":
        raise UserError(f"run {run.run_id} is {run.status}, and a record is of finished runs; finish it")
    commit, dirty = run.tags.get("commit"), run.tags.get("dirty")
    if dirty != "false":
        raise UserError(
            f"run {run.run_id} was not trained in a clean tree (commit {commit}, dirty {dirty}), and a record names a "
            "commit; train it again from one"
        )


def of_smoke(command: str, run: Run, again: Run) -> Record:
    """Make the record of the smoke tier.

    A tolerance is five times the difference that a second thread makes, and at least a share of the value (`FLOORS`). Measured on
    the published models: a second thread, AVX2 or SSE instead of AVX-512, and torch's own kernels instead of oneDNN's change
    the first loss by 4e-6 at most, the motion of the weights by 1e-3, later losses by 1e-2 (Adam takes the sign of
    gradients that are almost zero) and the validation by 2e-3; those of ytf_cnn_wide, with its batch norm of four faces, by
    more. A rate that is 2 % higher changes that motion by 2e-2, a contrast that is .01 wider the first loss by 2e-4 (not of
    muct_cnn, whose points in pixels outweigh its images), another loss or seed by 3e-2 and more.

    Args:
        command: Command that obtains the numbers again.
        run: Result on one thread.
        again: Result on two.
    """
    metrics = {}
    for metric, value in run.metrics.items():
        tolerance = max(5 * abs(again.metrics[metric] - value), FLOORS.get(metric, FLOOR) * abs(value))
        metrics[metric] = Level(_rounded(value, 7), None, _rounded(tolerance, 2))
    commit, lock = provenance.code_state()[0]["commit"], provenance.lock_hash()
    hardware = provenance.hardware() | {"threads": "1"}
    return _record(command, [run], metrics, commit, lock, provenance.versions(), hardware)


def of_runs(command: str, runs: Sequence[Run]) -> Record:
    """Make the record of trainings.

    A mean's tolerance is four times the standard deviation over seeds, and at least 2 % of the mean (5 % for a single seed,
    whose deviation is unknown; twice that for a square), or one percentage point for a share of faces.

    Raises:
        UserError: The runs are of several commits, or their own tests gave other results.
    """
    stored = [run.stored for run in runs if run.stored]
    commits = sorted({one.tags["commit"] for one in stored})
    if len(commits) > 1:
        raise UserError(f"a record names one commit, and these runs have {' and '.join(commits)}; train them at one")
    for run, one in zip(runs, stored, strict=True):
        if "nme" not in run.metrics:  # the detector, whose recall is that of its own validation
            continue
        logged, nme = one.metrics.get("test/nme", math.nan), run.metrics.get("nme", math.nan)
        if one.tags["protocol"] != run.protocol or not math.isclose(logged, nme, rel_tol=1e-3):
            raise UserError(
                f"run {one.run_id}: its own test gave NME {logged:.3f} on {one.tags['protocol']}, this one {nme:.3f} on "
                f"{run.protocol}; a record is of the run's own best.ckpt and data"
            )
    metrics = {}
    for metric in runs[0].metrics:
        if values := column(runs, metric):
            mean, deviation = mean_and_deviation(values)
            several = len(values) > 1
            least = (0.02 if several else 0.05) * (2 if metric == "mse" else 1) * abs(mean)
            tolerance = max(4 * deviation, 1.0 if metric.startswith(("fr", "auc")) else least)
            metrics[metric] = Level(
                _rounded(mean, 5), _rounded(deviation, 3) if several else None, _rounded(tolerance, 2)
            )

    def joined(prefix: str) -> dict[str, str]:
        keys = [key for key in stored[0].params if key.startswith(prefix)]
        return {
            key.removeprefix(prefix): "; ".join(sorted({one.params.get(key, "") for one in stored})) for key in keys
        }

    hardware = joined("hardware.") | {"precision": _precision(runs)}
    lock = "; ".join(sorted({one.tags["lock"] for one in stored}))
    return _record(command, runs, metrics, commits[0], lock, joined("version."), hardware)


def _record(
    command: str, runs: Sequence[Run], metrics: dict[str, Level], commit: str, lock: str, versions: dict[str, str],
    hardware: dict[str, str],
) -> Record:  # fmt: skip
    minutes, seeds = [_rounded(run.minutes, 3) for run in runs], [run.seed for run in runs]
    return Record(
        command, commit, lock, versions, hardware, minutes, seeds, runs[0].protocol, runs[0].fingerprint, metrics
    )


def _precision(runs: Sequence[Run]) -> str:
    return "; ".join(sorted({run.precision for run in runs}))


# What another part of a fingerprint, `flr.data.table.FINGERPRINT_PARTS`, means.
PART_MEANINGS = (
    "names or groups of faces differ: another selection or copy of the dataset",
    "the faces are split otherwise, or their subsets differ",
    "the form, the scheme or a reduction differs",
    "values in the files differ (labels, boxes, sizes of image files): another release, edited labels or re-saved "
    "images; of rendered faces another version or other settings of the renderer",
)


def data_differences(expected: Record, run: Run) -> list[str]:
    """Describe which parts of a run's data differ from a record's, and what that means."""
    if run.fingerprint == expected.fingerprint:
        return []
    if "-" not in expected.fingerprint and "-" not in run.fingerprint:  # the detector's scenes
        return [f"scenes: {expected.protocol} in the record, {run.protocol} here"]
    titles = ("form", "scheme", "faces in train/val/test", "box policy", "normaliser")
    there, here = (protocol.rsplit(" ", len(titles)) for protocol in (expected.protocol, run.protocol))
    parts = zip(titles, there, here, strict=False)
    lines = [f"{title}: {old} in the record, {new} here" for title, old, new in parts if old != new]
    recorded, obtained = expected.fingerprint.split("-"), run.fingerprint.split("-")
    if len(recorded) != len(obtained):
        return [*lines, f"fingerprint: {expected.fingerprint} in the record is of flr 0.1, which cannot be compared"]
    return lines + [mean for mean, old, new in zip(PART_MEANINGS, recorded, obtained, strict=True) if old != new]


def differences(expected: Record, runs: Sequence[Run]) -> list[str]:
    """Describe how this machine and its packages differ from those of a record."""
    here = provenance.hardware()
    pairs = [("lock", expected.lock, provenance.lock_hash())]
    pairs += [(key, expected.versions.get(key, "none"), value) for key, value in provenance.versions().items()]
    pairs += [(key, expected.hardware.get(key, "none"), here[key]) for key in ("cpu", "gpu")]
    pairs += [("precision", expected.hardware.get("precision", ""), _precision(runs))]
    lines = [f"{key}: {there or 'unknown'} there, {now} here" for key, there, now in pairs if there != now]
    if not torch.backends.mkl.is_available():
        lines.append("torch has no MKL here: its dropout draws other masks than on x86-64, where records are from")
    return lines


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
