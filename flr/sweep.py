"""A sweep in MLflow: a run that holds its grid and its table, and below it a run a job.

The parts meet in the tracking store alone, since a job may run in another process or on another machine: the sweep's run
has a tag for each job that was begun, by number, which names the job's run. A job is done when a finished run of the
experiment has its recipe (the config, less what changes no result), its code and its data.
"""

import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from flr.checkpoints import RunFolder, find_run, load_checkpoint
from flr.config import NO_RESULT, Grid, flat, key_of, label_of, plain, under
from flr.errors import UserError
from flr.tracking.mlflow import Tracker
from flr.tracking.provenance import code_digest
from flr.tracking.store import GRID, PREFIX, StoredRun, find_runs, first_line, get_run

LONGEST = 5000  # characters of a tag, as servers of before took them
CRASH, REFUSED = 1, 2  # exit codes


def recipe(cfg: DictConfig, more: Sequence[str] = ()) -> str:
    """The digest of a composed config, less what changes no result.

    Args:
        cfg: the config.
        more: overrides that count although they change none, as the devices of a sweep over devices.
    """
    try:
        values = plain(cfg)
    except UserError:  # which the job's check will tell
        values = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    kept = sorted((key, str(value)) for key, value in flat(values) if not under(key, NO_RESULT))
    return hashlib.sha256(json.dumps([kept, sorted(more)]).encode()).hexdigest()[:16]


def name_of(grid: Grid, experiment: str, again: bool) -> str:
    """A sweep's name: the same for the same jobs in the same experiment, however they were typed.

    Args:
        grid: its jobs; where the sweeper finds them as it goes, each start is a sweep of its own.
        experiment: of MLflow.
        again: whether it is a new one in any case.
    """
    about = re.sub(r"[^\w.-]+", "-", "-".join(sorted(key.rpartition(".")[2] for key in grid.values)) or "one")
    if again or not grid.jobs:
        return f"{about[:60]}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    idle = {*NO_RESULT, "sweep"} - set(grid.values)
    jobs = sorted(sorted(word.lstrip("+") for word in words if not under(key_of(word), idle)) for words in grid.jobs)
    return f"{about[:60]}-{hashlib.sha256(json.dumps([experiment, jobs]).encode()).hexdigest()[:8]}"


def _tracker(cfg: DictConfig) -> Tracker:
    artifacts = Path(cfg.paths.output_dir).absolute() / "artifacts"
    uri, experiment = str(cfg.tracking.uri), str(cfg.tracking.experiment)
    return Tracker(uri, experiment, artifacts, system_metrics=False, register=False)


def _named(name: str) -> str:
    mark = '"' if "'" in name else "'"
    return f"tags.`{PREFIX}sweep` = {mark}{name}{mark}"


# -- the sweep ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What came of a job.

    Attributes:
        job: its name.
        status: its run's, or ``not started``.
        run_id: its run; empty where it has none.
        kept: whether that run was finished before.
        val: the lowest ``val/nme``, percent.
        test: ``test/nme``, percent.
        reason: why it failed.
        exit_code: as if it were a command; 0 for success.
    """

    job: str
    status: str
    run_id: str = ""
    kept: bool = False
    val: float | None = None
    test: float | None = None
    reason: str = ""
    exit_code: int = CRASH


def begin(cfg: DictConfig, name: str, grid: Grid, folder: Path) -> Tracker:
    """Create the run of a sweep, or go on with the one of its name.

    Args:
        cfg: the sweep's composed config: that of its jobs, but for what varies.
        name: of `name_of`, or the user's.
        grid: its jobs.
        folder: of the sweep.
    """
    tracker = _tracker(cfg)
    tracker.open()
    found = find_runs(tracker.client, tracker.experiment, _named(name), sweeps=True)
    title = f"{cfg.name}: " if cfg.name else ""
    title += f"sweep {grid.preset}" if grid.preset else f"sweep of {', '.join(grid.values) or 'one'}"
    if not grid.values.keys() & {"data", "experiment"}:
        title += f" on {cfg.data.name}"
    about = {GRID: str(grid)[:LONGEST], "keys": json.dumps(list(grid.values)), "folder": str(folder), "sweep": name}
    tracker.start(title, about, found[-1].run_id if found else None)
    if found:
        tracker.untag(*(key for key in found[-1].tags if key.startswith("job.")))
    return tracker


def discard(tracker: Tracker, name: str) -> None:
    """Delete the run of a sweep that no job ever came to."""
    if not find_runs(tracker.client, tracker.experiment, _named(name)):
        tracker.discard()


def rows(tracker: Tracker, grid: Grid, folder: Path, over: bool) -> list[Row]:
    """What came of each job.

    Args:
        tracker: of the sweep's run.
        grid: its jobs.
        folder: with the output of those that had a process of their own.
        over: whether no job is left that may still run.
    """
    tracker.open()  # closes the runs of jobs that died here
    client, found = tracker.client, []
    tags = get_run(client, tracker.run_id).tags
    known = {int(key[4:]): json.loads(value) for key, value in tags.items() if key.startswith("job.")}
    for number in sorted({*known, *range(len(grid.jobs))}):
        log = folder / f"{number}.log"
        where = f"see {log.name}" if log.is_file() else ""
        if number not in known:
            label = label_of(grid.jobs[number], grid.values) or f"job {number}"
            found.append(Row(label, "not started", reason=where))
            continue
        about = known[number]
        run = get_run(client, about["run"])
        if over and run.status == "RUNNING" and not about["kept"]:  # on another machine
            lost = Tracker(tracker.uri, tracker.experiment, tracker.artifacts, False, False)
            lost.attach(run.run_id)
            lost.tag(end="its process died")
            lost.end("KILLED")
            run = get_run(client, run.run_id)
        done = run.status == "FINISHED"
        nme = [point.value for point in client.get_metric_history(run.run_id, "val/nme")]
        row = Row(
            about["job"], run.status, run.run_id, about["kept"], min(nme, default=None), run.metrics.get("test/nme"),
            "" if done else "; ".join(filter(None, (run.tags.get("end"), where))),
            0 if done else int(run.tags.get("exit", CRASH)),
        )  # fmt: skip
        found.append(row)
    return found


# -- a job -------------------------------------------------------------------------------------------------------------


class Job:
    """One job of a sweep.

    Args:
        cfg: its composed config.
        words: its overrides.
        given: what `flr.config.SWEEP` holds.
        otherwise: its name where nothing varies.

    Attributes:
        label: its name.
        sweep: its sweep's name.
        tags: of its run.
        run_id: its run, once it has begun.

    Raises:
        UserError: the tracking store does not answer, or does not know the sweep.
    """

    def __init__(self, cfg: DictConfig, words: Sequence[str], given: str, otherwise: str) -> None:
        self.parent, _, self.number = given.partition("/")
        self.cfg, self._tracker = cfg, _tracker(cfg)
        self._tracker.open()
        about = get_run(self._tracker.client, self.parent).tags
        keys = json.loads(about["keys"])
        self.label = label_of(list(words), keys) or otherwise
        # Of SLURM, which starts a job again under its number.
        self._attempt = ".".join(os.environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "RESTART_COUNT"))
        more = [word for word in words if key_of(word) in keys and under(key_of(word), NO_RESULT)]
        self.tags = {"sweep": about["sweep"], "job": self.label, "recipe": recipe(cfg, more), "code": code_digest()}
        query = f"tags.`{PREFIX}recipe` = '{self.tags['recipe']}'"
        known = find_runs(self._tracker.client, self._tracker.experiment, query)
        # A sweep that is to be a new one knows its own runs alone.
        self._known = [run for run in known if self._mine(run) or not cfg.again]
        self._stopped: list[StoredRun] = []

    def _mine(self, run: StoredRun) -> bool:
        return run.tags.get("sweep") == self.tags["sweep"]

    @property
    def run_id(self) -> str:
        return self._tracker.run_id

    def done(self, fingerprint: Callable[[], str]) -> StoredRun | None:
        """The finished run that stands for this job, where there is one.

        Args:
            fingerprint: gives that of the job's data; asked for only where a run may stand for the job.
        """
        same = [run for run in self._known if run.tags.get("code") == self.tags["code"]]
        if any("protocol" in run.tags for run in same):
            data = fingerprint()
            same = [run for run in same if run.tags.get("protocol", data).endswith(data)]
        finished = [run for run in same if run.status == "FINISHED"]
        if finished:
            self._register(finished[-1].run_id, kept=True)
            return finished[-1]
        self._stopped = [run for run in same if self._mine(run)]
        if others := [run for run in self._known if run.status == "FINISHED"]:
            what = "data" if others[-1].tags.get("code") == self.tags["code"] else "code"
            print(f"note: run {others[-1].run_id} had this config, but other {what}, so {self.label} is trained anew")
        return None

    def wait(self) -> tuple[RunFolder | None, dict[str, Any] | None] | None:
        """What rank 0 of this job, which SLURM has started with this one, gets of `begin`; None where it trains nothing.

        It may never say: SLURM then ends this rank with it.
        """
        about: dict[str, Any] = {}
        while about.get("attempt") != self._attempt:
            time.sleep(0.2)
            tags = get_run(self._tracker.client, self.parent).tags
            about = json.loads(tags.get(f"job.{self.number}", "{}"))
        if about["kept"]:
            return None
        folder = RunFolder(Path(get_run(self._tracker.client, about["run"]).tags.get("folder", "")))
        # A new run has no checkpoint before all its ranks are there.
        return (folder, load_checkpoint(folder.last)["flr"]) if folder.last.is_file() else (None, None)

    def begin(self) -> tuple[RunFolder | None, dict[str, Any] | None]:
        """Begin the job's run, or go on with one that was stopped, from its last checkpoint where there is one.

        Returns:
            Its folder and the ``flr`` part of that checkpoint, each None where there is none.

        Raises:
            UserError: another process is at it.
        """
        for run in reversed(self._stopped):
            local = Path(run.tags.get("folder", ""))
            if run.status == "RUNNING" and not ("folder" in run.tags and local.is_dir()):
                continue  # on a machine of which nothing is known here
            if "folder" not in run.tags:  # it never came to train
                self._start(run.run_id)
                return None, None
            try:
                folder = find_run(run.run_id, self._tracker.uri, Path(self.cfg.paths.output_dir))
                before = load_checkpoint(folder.last)["flr"] if folder.last.is_file() else None
            except UserError:
                continue  # nothing of it is left
            try:
                with FileLock(folder.path / "run.lock", timeout=0):
                    pass
            except Timeout as error:
                raise UserError(f"another process is training it, run {run.run_id}; wait for it or stop it") from error
            self._start(run.run_id)
            print(f"going on with run {run.run_id}")
            return folder, before
        self._start(None)
        return None, None

    def _start(self, run_id: str | None) -> None:
        self._register(self._tracker.start(self.label, self.tags, run_id, self.parent))

    def _register(self, run_id: str, kept: bool = False) -> None:
        sweep = _tracker(self.cfg)
        sweep.attach(self.parent)
        about = {"run": run_id, "job": self.label, "kept": kept, "attempt": self._attempt}
        sweep.tag(**{f"job.{self.number}": json.dumps(about)})

    def failed(self, error: Exception) -> None:
        """Have the job's run say why it failed; one that failed early gets its run now."""
        if not self.run_id:
            early = [
                run for run in self._known if self._mine(run) and "folder" not in run.tags and run.status == "FAILED"
            ]
            self._start(early[-1].run_id if early else None)
        refused = isinstance(error, UserError)
        reason = str(error) if refused else f"{type(error).__name__}: {first_line(error)}"
        self._tracker.tag(end=reason[:LONGEST], exit=str(REFUSED if refused else CRASH))
        if not refused:
            self._tracker.text("".join(traceback.format_exception(error)), "error.txt")
        self._tracker.end("FAILED")

    def stopped(self) -> None:
        """Close the job's run, where its training has not done so."""
        if self.run_id and get_run(self._tracker.client, self.run_id).status == "RUNNING":
            self._tracker.end("KILLED")
