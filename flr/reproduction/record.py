"""The record of an experiment, ``experiments/NAME/expected.yaml``: numbers to come back to, and where they came from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Lt, MinLen

from flr.errors import UserError
from flr.evaluation.results import spread
from flr.files import opened, writing
from flr.tracking import provenance
from flr.tracking.connection import StoredRun

Tier = Literal["smoke", "train"]  # a run that is given is held against the trainings

FLOORS = {"loss of step 1": 1e-4, "weights moved by": 1e-2}  # shares of the value; see `of_smoke`
FLOOR = 5e-2


@dataclass(frozen=True)
class Level:
    """What a metric is expected to be.

    Attributes:
        mean: over seeds.
        spread: the sample standard deviation over seeds; None of a single one.
        tolerance: how far another mean may lie from this one, in the metric's unit.
    """

    mean: float
    spread: float | None
    tolerance: Annotated[float, Ge(0), Lt(math.inf)]


@dataclass(frozen=True)
class Record:
    """A tier of ``expected.yaml``.

    Attributes:
        command: obtains the numbers again.
        commit: of the code, in a clean tree.
        lock: the digest of the lock.
        versions: of Python and the main packages.
        hardware: see `flr.tracking.provenance.hardware`; of trainings their precision too.
        minutes: wall time of each seed.
        seeds: in that order.
        protocol: its readable name.
        fingerprint: of the data.
        metrics: by name.
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
    """What came out of one seed.

    Attributes:
        seed: its seed.
        metrics: by name, all finite.
        protocol: its readable name.
        fingerprint: of the data.
        minutes: wall time.
        stored: a training that is to be recorded, as the tracking store has it.
        precision: it was trained in; of a short one "".
    """

    seed: int
    metrics: Mapping[str, float]
    protocol: str
    fingerprint: str
    minutes: float = 0.0
    stored: StoredRun | None = None
    precision: str = ""


def column(runs: Sequence[Run], metric: str) -> list[float]:
    """A metric of each run; empty where one has it not."""
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return values if len(values) == len(runs) else []


# -- files -------------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[Tier, Record]:
    """The records in an ``expected.yaml``, by tier.

    Raises:
        UserError: it is not there, or not of this form.
    """
    import yaml  # type: ignore[import-untyped, unused-ignore]
    from pydantic import TypeAdapter, ValidationError

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
    """``expected.yaml``, whole."""
    import yaml

    head = f"# What python -m flr.reproduce name={name} holds its numbers against; its record=true writes this.\n"
    body = yaml.safe_dump({tier: asdict(record) for tier, record in records.items()}, sort_keys=False,
                          default_flow_style=None, width=120)  # fmt: skip
    with writing(file) as aside:
        aside.write_text(head + body, encoding="utf-8")


# -- recording ---------------------------------------------------------------------------------------------------------


def refuse_dirty(besides: Sequence[str] = ()) -> None:
    """A record names a commit, so the code must be that commit's.

    Args:
        besides: names of files that may differ.

    Raises:
        UserError: another file is not as committed, or there is no commit.
    """
    changed = provenance.changed_files(besides)
    if changed is None:
        raise UserError("record=true names a commit, and this code has none; run it in a checkout")
    if changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise UserError(f"record=true names a commit, and the tree differs from it in {listed}; commit first")


def refuse_unfit(run: StoredRun) -> None:
    """Raises `UserError` for a run that no record may rest on: not finished, or not from a commit's clean tree."""
    if run.status != "FINISHED":
        raise UserError(f"run {run.run_id} is {run.status}, and a record is of finished runs; finish it")
    commit, dirty = run.tags.get("commit"), run.tags.get("dirty")
    if dirty != "false":
        raise UserError(
            f"run {run.run_id} was not trained in a clean tree (commit {commit}, dirty {dirty}), and a record names a "
            "commit; train it again from one"
        )


def of_smoke(command: str, run: Run, again: Run) -> Record:
    """The record of the smoke tier as it ran here.

    A tolerance stands well above what leaves a recipe alone and well below what changes it: five times what a second
    thread makes of the value, and at least a share of it. Measured on the published nets: a second thread, AVX2 or SSE
    in place of AVX-512, and torch's own kernels in place of oneDNN's change the first loss by 4e-6 at most, the way of
    the weights by 1e-3, later losses by 1e-2 (Adam takes the sign of gradients that are all but zero), the validation by
    2e-3; ytf_cnn_wide by more, for its batch norm of four faces. A rate 2 % higher changes that way by 2e-2, a contrast .01
    wider the first loss by 2e-4 (not of muct_cnn, whose points in pixels outweigh its pictures), another loss or seed by
    3e-2 and more.

    Args:
        command: obtains it again.
        run: on one thread.
        again: on two.
    """
    metrics = {}
    for metric, value in run.metrics.items():
        tolerance = max(5 * abs(again.metrics[metric] - value), FLOORS.get(metric, FLOOR) * abs(value))
        metrics[metric] = Level(_rounded(value, 7), None, _rounded(tolerance, 2))
    commit, lock = provenance.code_state()[0]["commit"], provenance.lock_hash()
    hardware = provenance.hardware() | {"threads": "1"}
    return _record(command, [run], metrics, commit, lock, provenance.versions(), hardware)


def of_runs(command: str, runs: Sequence[Run]) -> Record:
    """The record of trainings.

    A mean's tolerance is four times the spread over seeds, as a mean of other seeds may differ by, and at least 2 % of
    the mean (5 % of a single seed, whose spread is unknown; twice that of a square), or a point of a share of faces.

    Raises:
        UserError: the runs are of several commits, or their own tests gave something else.
    """
    stored = [run.stored for run in runs if run.stored]
    commits = sorted({one.tags["commit"] for one in stored})
    if len(commits) > 1:
        raise UserError(f"a record names one commit, and these runs have {' and '.join(commits)}; train them at one")
    for run, one in zip(runs, stored, strict=True):
        own, nme = one.metrics.get("test/nme", math.nan), run.metrics.get("nme", math.nan)
        if one.tags["protocol"] != run.protocol or not math.isclose(own, nme, rel_tol=1e-3):
            raise UserError(
                f"run {one.run_id}: its own test gave NME {own:.3f} on {one.tags['protocol']}, this one {nme:.3f} on "
                f"{run.protocol}; a record is of the run's own best.ckpt and data"
            )

    metrics = {}
    for metric in runs[0].metrics:
        if values := column(runs, metric):
            mean, deviation = spread(values)
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
    """Say which parts of the data of a run are not those of a record, and what that means; empty where none differs."""
    if run.fingerprint == expected.fingerprint:
        return []
    words = ("form", "scheme", "faces in train/val/test", "box policy", "normaliser")
    there, here = (protocol.rsplit(" ", len(words)) for protocol in (expected.protocol, run.protocol))
    lines = [
        f"{word}: {old} in the record, {new} here"
        for word, old, new in zip(words, there, here, strict=False)
        if old != new
    ]
    recorded, own = expected.fingerprint.split("-"), run.fingerprint.split("-")
    if len(recorded) != len(own):
        return [*lines, f"fingerprint: {expected.fingerprint} in the record is of flr 0.1, which cannot be compared"]
    return lines + [mean for mean, old, new in zip(PART_MEANINGS, recorded, own, strict=True) if old != new]


def differences(expected: Record, runs: Sequence[Run]) -> list[str]:
    """Where this machine and its packages are not those of a record, which may be why its numbers are not met."""
    import torch

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
