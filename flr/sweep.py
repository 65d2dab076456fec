"""A sweep in MLflow: a run that holds its grid and its table, and below it a run a job.

The parts meet in the tracking store alone, since a job may run in another process or on another machine: the sweep's run
has a tag for each job that was begun, by number, which names the job's run. A job is done when a finished run of the
experiment has its recipe (the config, less what changes no result), its code and its data.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback

from flr.config.compose import flat, key_of, plain, under
from flr.config.schema import RESULT_NEUTRAL_KEYS
from flr.errors import UserError
from flr.module.checkpoints import RunFolder, find_run, load_last
from flr.sweeps.grid import Grid, label_of
from flr.tracking.connection import GRID, PREFIX, Away, StoredRun, find_runs, first_line, get_run, permitted
from flr.tracking.provenance import code_digest
from flr.tracking.tracker import Tracker

LONGEST = 5000  # characters of a tag, as servers of before took them
CRASH, REFUSED = 1, 2  # exit codes
PATIENCE = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0)  # seconds between looks for a server that is away


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
    kept = sorted((key, str(value)) for key, value in flat(values) if not under(key, RESULT_NEUTRAL_KEYS))
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
    idle = {*RESULT_NEUTRAL_KEYS, "sweep"} - set(grid.values)
    jobs = sorted(sorted(word.lstrip("+") for word in words if not under(key_of(word), idle)) for words in grid.jobs)
    return f"{about[:60]}-{hashlib.sha256(json.dumps([experiment, jobs]).encode()).hexdigest()[:8]}"


def tracker_of(cfg: DictConfig) -> Tracker:
    """A tracker of a sweep or a study itself, which trains nothing."""
    artifacts = Path(cfg.paths.output_dir).absolute() / "artifacts"
    uri, experiment = str(cfg.tracking.uri), str(cfg.tracking.experiment)
    return Tracker(uri, experiment, artifacts, system_metrics=False, register=False)


def reach(tracker: Tracker) -> None:
    """Open the store; a server that is away for some minutes shall not fail all jobs that come meanwhile."""
    for wait in PATIENCE:
        try:
            tracker.open()
        except Away as error:
            print(f"flr: {error}; asked again in {wait} s", file=sys.stderr)
            time.sleep(wait)
        else:
            return
    tracker.open()


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
    tracker = tracker_of(cfg)
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
    """Delete the run of a sweep that no job ever came to, where this account may delete."""
    if not find_runs(tracker.client, tracker.experiment, _named(name)):
        with contextlib.suppress(UserError), permitted(tracker.uri, "deleting"):
            tracker.discard()


def rows(tracker: Tracker, grid: Grid, folder: Path, over: bool) -> list[Row]:
    """What came of each job.

    Args:
        tracker: of the sweep's run.
        grid: its jobs.
        folder: with the output of those that had a process of their own.
        over: whether no job is left that may still run.
    """
    reach(tracker)  # closes the runs of jobs that died here
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


class Child:
    """A training's run below that of a sweep or a study, begun by either so that it also tells why none came of it.

    Args:
        cfg: the training's composed config.
        parent: the run above.

    Attributes:
        label: its name.
        tags: of its run.
        callbacks: what its training has beside the config's.
        tested: whether the test part is scored when it has trained.
        cut: why its training ended before its plan; empty where it did not.

    Raises:
        UserError: the tracking store does not answer.
    """

    def __init__(self, cfg: DictConfig, parent: str) -> None:
        self.cfg, self.parent, self._tracker = cfg, parent, tracker_of(cfg)
        self.label, self.cut, self.tested = "", "", True
        self.tags: dict[str, str] = {}
        self.callbacks: list[Callback] = []
        reach(self._tracker)

    @property
    def run_id(self) -> str:
        """Its run, once it has begun."""
        return self._tracker.run_id

    def start(self, run_id: str | None = None) -> str:
        """Begin a run, or go on with one; returns its id."""
        return self._tracker.start(self.label, self.tags, run_id, self.parent)

    def left(self, run_id: str) -> tuple[RunFolder, dict[str, Any] | None]:
        """What a run that was stopped has left: its folder and the ``flr`` part of its last checkpoint.

        Raises:
            UserError: nothing.
            Timeout: another process is at it.
        """
        folder = find_run(run_id, self._tracker.uri, Path(self.cfg.paths.output_dir))
        before = load_last(folder)
        with FileLock(folder.path / "run.lock", timeout=0):
            return folder, before["flr"] if before else None

    def failed(self, error: Exception) -> None:
        """Have the run say why it failed."""
        refused = isinstance(error, UserError)
        reason = str(error) if refused else f"{type(error).__name__}: {first_line(error)}"
        self._tracker.tag(end=reason[:LONGEST], exit=str(REFUSED if refused else CRASH))
        if not refused:
            self._tracker.text("".join(traceback.format_exception(error)), "error.txt")
        self._tracker.end("FAILED")

    def stopped(self) -> None:
        """Close the run, where its training has not done so."""
        if self.run_id and get_run(self._tracker.client, self.run_id).status == "RUNNING":
            self._tracker.end("KILLED")


class Job(Child):
    """One job of a sweep.

    Args:
        cfg: its composed config.
        words: its overrides.
        given: what `flr.sweeps.grid.SWEEP_ENV` holds.
        otherwise: its name where nothing varies.

    Raises:
        UserError: the tracking store does not answer, or does not know the sweep.
    """

    def __init__(self, cfg: DictConfig, words: Sequence[str], given: str, otherwise: str) -> None:
        parent, _, self.number = given.partition("/")
        super().__init__(cfg, parent)
        about = get_run(self._tracker.client, self.parent).tags
        keys = json.loads(about["keys"])
        self.label = label_of(list(words), keys) or otherwise
        # Of SLURM, which starts a job again under its number.
        self._attempt = ".".join(os.environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "RESTART_COUNT"))
        more = [word for word in words if key_of(word) in keys and under(key_of(word), RESULT_NEUTRAL_KEYS)]
        self.tags = {"sweep": about["sweep"], "job": self.label, "recipe": recipe(cfg, more), "code": code_digest()}
        query = f"tags.`{PREFIX}recipe` = '{self.tags['recipe']}'"
        known = find_runs(self._tracker.client, self._tracker.experiment, query)
        # A sweep that is to be a new one knows its own runs alone.
        self._known = [run for run in known if self._mine(run) or not cfg.again]
        self._stopped: list[StoredRun] = []

    def _mine(self, run: StoredRun) -> bool:
        return run.tags.get("sweep") == self.tags["sweep"]

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
        last = load_last(folder)
        return (folder, last["flr"]) if last else (None, None)

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
                self.start(run.run_id)
                return None, None
            try:
                found = self.left(run.run_id)
            except UserError:
                continue  # nothing of it is left
            except Timeout as error:
                raise UserError(f"another process is training it, run {run.run_id}; wait for it or stop it") from error
            self.start(run.run_id)
            print(f"going on with run {run.run_id}")
            return found
        self.start()
        return None, None

    def start(self, run_id: str | None = None) -> str:
        self._register(super().start(run_id))
        return self.run_id

    def _register(self, run_id: str, kept: bool = False) -> None:
        sweep = tracker_of(self.cfg)
        sweep.attach(self.parent)
        about = {"run": run_id, "job": self.label, "kept": kept, "attempt": self._attempt}
        sweep.tag(**{f"job.{self.number}": json.dumps(about)})

    def failed(self, error: Exception) -> None:
        if not self.run_id:  # it failed early, and gets its run now
            early = [
                run for run in self._known if self._mine(run) and "folder" not in run.tags and run.status == "FAILED"
            ]
            self.start(early[-1].run_id if early else None)
        super().failed(error)
