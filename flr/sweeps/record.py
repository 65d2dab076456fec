"""The MLflow run of a sweep, which holds its grid and its table, and is the parent of the runs of its jobs.

A job may run in another process or on another machine, so sweep and jobs exchange data only through the tracking store:
the sweep's run has one tag per started job, ``job.NUMBER``, that names the job's run.
"""

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from flr.config.compose import key_of, label_of, under
from flr.config.schema import RESULT_NEUTRAL_KEYS
from flr.errors import UserError
from flr.reporting.tables import TextTable, markdown_table, print_table, write_csv
from flr.sweeps.grid import Grid
from flr.tracking.connection import GRID, PREFIX, ServerUnavailable, find_runs, get_run, translate_auth_errors
from flr.tracking.tracker import Tracker
from flr.training.recipe import data_name

MAX_TAG = 5000  # characters of a tag, the limit of older servers
CRASHED, REFUSED = 1, 2  # exit codes
RETRY_WAITS = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0)  # seconds between attempts to reach a server


def sweep_name(grid: Grid, experiment: str, again: bool) -> str:
    """Name a sweep: the same name for the same jobs in the same experiment, however they were typed.

    Args:
        grid: The jobs.
        experiment: MLflow's experiment.
        again: Whether the sweep is a new one in any case.
    """
    keys = re.sub(r"[^\w.-]+", "-", "-".join(sorted(key.rpartition(".")[2] for key in grid.values)) or "one")
    if again:
        return f"{keys[:60]}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    ignored = {*RESULT_NEUTRAL_KEYS, "sweep"} - set(grid.values)
    jobs = sorted(sorted(word.lstrip("+") for word in job if not under(key_of(word), ignored)) for job in grid.jobs)
    return f"{keys[:60]}-{hashlib.sha256(json.dumps([experiment, jobs]).encode()).hexdigest()[:8]}"


def parent_tracker(cfg: DictConfig) -> Tracker:
    """Return a tracker for the run of a sweep or study itself, which trains nothing."""
    artifacts = Path(cfg.paths.output_dir).absolute() / "artifacts"
    uri, experiment = str(cfg.tracking.uri), str(cfg.tracking.experiment)
    return Tracker(uri, experiment, artifacts, system_metrics=False, register=False)


def connect_with_retry(tracker: Tracker) -> None:
    """Open the tracking store; wait for some minutes for a server, so that a short outage does not fail all jobs.

    Raises:
        UserError: The store cannot be used, or the server does not answer in that time.
    """
    for wait in RETRY_WAITS:
        try:
            tracker.open()
        except ServerUnavailable as error:
            print(f"flr: {error}; asked again in {wait} s", file=sys.stderr)
            time.sleep(wait)
        else:
            return
    tracker.open()


@dataclass(frozen=True)
class JobRow:
    """The result of one job.

    Attributes:
        status: The status of its run, or ``not started``.
        run_id: Its run; empty where it has none.
        reused: Whether an earlier start had finished that run.
        val: Lowest ``val/nme``, percent.
        test: ``test/nme``, percent.
        exit_code: Exit code of the same training as a command; 0 for success.
    """

    job: str
    status: str
    run_id: str = ""
    reused: bool = False
    val: float | None = None
    test: float | None = None
    reason: str = ""
    exit_code: int = CRASHED


class SweepRecord:
    """The run of a sweep; `folder` has the logs of jobs that had a process of their own.

    Raises:
        UserError: The tracking store cannot be used.
    """

    def __init__(self, cfg: DictConfig, name: str, grid: Grid, folder: Path) -> None:
        self.name, self.grid, self.folder = name, grid, folder
        self.tracker = parent_tracker(cfg)
        self.tracker.open()
        previous = find_runs(self.tracker.client, self.tracker.experiment, self._query, sweeps=True)
        title = f"{cfg.name}: " if cfg.name else ""
        keys = ", ".join(key.rpartition(".")[2] for key in grid.values)
        title += f"sweep {grid.preset or keys or 'one'}"
        # MLflow shows 23 characters of a name, so what all jobs share is in tags, which are columns of the table.
        shared = {} if grid.values.keys() & {"data", "experiment"} else {"data": data_name(cfg)}
        tags = {GRID: str(grid)[:MAX_TAG], "keys": json.dumps(list(grid.values)), "folder": str(folder), "sweep": name}
        tags |= shared
        self.tracker.start(title, tags, previous[-1].run_id if previous else None)
        if previous:
            self.tracker.untag(*(key for key in previous[-1].tags if key.startswith("job.")))

    @property
    def _query(self) -> str:
        quote = '"' if "'" in self.name else "'"
        return f"tags.`{PREFIX}sweep` = {quote}{self.name}{quote}"

    def rows(self, jobs_ended: bool) -> list[JobRow]:
        """Return the result of each job.

        Args:
            jobs_ended: Whether no job can still run on any machine.
        """
        connect_with_retry(self.tracker)  # closes the runs of processes that died on this machine
        tags = get_run(self.tracker.client, self.tracker.run_id).tags
        started = {int(key[4:]): json.loads(value) for key, value in tags.items() if key.startswith("job.")}
        found = []
        for number in sorted({*started, *range(len(self.grid.jobs))}):
            log = self.folder / f"{number}.log"
            see_log = f"see {log.name}" if log.is_file() else ""
            if number in started:
                found.append(self._row(started[number], see_log, jobs_ended))
            else:
                label = label_of(self.grid.jobs[number], self.grid.values) or f"job {number}"
                found.append(JobRow(label, "not started", reason=see_log))
        return found

    def _row(self, job: dict[str, Any], see_log: str, jobs_ended: bool) -> JobRow:
        client = self.tracker.client
        run = get_run(client, job["run"])
        if jobs_ended and run.status == "RUNNING" and not job["reused"]:  # its process died on another machine
            tracker = Tracker(self.tracker.uri, self.tracker.experiment, self.tracker.artifacts, False, False)
            tracker.attach(run.run_id)
            tracker.tag(end="its process died")
            tracker.end("KILLED")
            run = get_run(client, run.run_id)
        finished = run.status == "FINISHED" and "test/nme" in run.metrics
        end = "no test/nme" if run.status == "FINISHED" else run.tags.get("end")
        reason = "" if finished else "; ".join(filter(None, (end, see_log)))
        exit_code = 0 if finished else int(run.tags.get("exit", CRASHED))
        val = min((point.value for point in client.get_metric_history(run.run_id, "val/nme")), default=None)
        test = run.metrics.get("test/nme")
        return JobRow(job["job"], run.status, run.run_id, job["reused"], val, test, reason, exit_code)

    def publish(self, rows: list[JobRow]) -> None:
        """Show the table of the jobs in the terminal, in the sweep's folder and in its run."""

        def percent(value: float | None) -> str:
            return "-" if value is None else f"{value:.2f}"

        head = ["job", "status", "val/nme, %", "test/nme, %", "run", "why"]
        cells = [
            [row.job, row.status + " before" * row.reused, percent(row.val), percent(row.test), row.run_id, row.reason[:200]]
            for row in rows
        ]  # fmt: skip
        table = TextTable(head, cells)
        finished = sum(not row.exit_code for row in rows)
        summary = f"{finished} of {len(rows)} jobs finished"
        # In the terminal a reason takes a line of its own, so that the run's id stays on one.
        shown = [0, 2, 3, 4] if all(row.status == "FINISHED" and not row.reused for row in rows) else [0, 1, 2, 3, 4]
        print_table(TextTable([head[i] for i in shown], [[line[i] for i in shown] for line in cells]))
        for row in rows:
            if row.reason:
                print(f"{row.job}: {row.reason}")
        print(f"{summary}; sweep {self.name}, run {self.tracker.run_id}")
        if rows:
            write_csv(self.folder / "table.csv", [asdict(row) for row in rows])
            self.tracker.file(self.folder / "table.csv")  # MLflow cuts a long description
        self.tracker.describe(f"{summary}\n\n{markdown_table(table)}")
        self.tracker.tag(jobs=summary)
        print(self.tracker.pages())
        if finished > 1:
            words = (
                f"'where={{sweep: {self.name}}}' group={self._group()} tracking.experiment={self.tracker.experiment}"
            )
            print(f"Compare its jobs: python -m flr.compare {words}")

    def _group(self) -> str:
        """Return what the jobs are compared by: all that varies but the seed, as a value of ``group=``."""
        keys = [key for key in self.grid.values if key != "seed"] or ["model"]
        return keys[0] if len(keys) == 1 else f"[{','.join(keys)}]"

    def discard_unused(self) -> None:
        """Delete the run if no job ever started, where this account may delete."""
        if not find_runs(self.tracker.client, self.tracker.experiment, self._query):
            with contextlib.suppress(UserError), translate_auth_errors(self.tracker.uri, "deleting"):
                self.tracker.discard()


@contextlib.contextmanager
def recorded_sweep(cfg: DictConfig, grid: Grid, folder: Path) -> Iterator[str]:
    """Keep the run of a sweep open while its jobs run, then publish its table.

    Yields:
        The id of the sweep's run.

    Raises:
        UserError: Another process runs this sweep, or the tracking store cannot be used.
        SystemExit: A job failed; with 2 where all that failed were refused, else with 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "sweep.lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process runs this sweep; wait for it or stop it") from error
    with lock:
        record = SweepRecord(cfg, folder.name, grid, folder)
        print(f"Sweep {folder.name}, {len(grid.jobs)} jobs: {grid}")
        try:
            yield record.tracker.run_id
        finally:
            stopped_by = sys.exception()
            rows = record.rows(jobs_ended=stopped_by is None)
            exit_codes = {row.exit_code for row in rows} - {0}
            if isinstance(stopped_by, Exception) and not any(row.run_id for row in rows):
                record.tracker.end("FAILED")
                record.discard_unused()  # the config of a job does not compose
            else:
                record.publish(rows)
                killed = stopped_by is not None and not isinstance(stopped_by, Exception)
                record.tracker.end("KILLED" if killed else "FAILED" if exit_codes else "FINISHED")
    if exit_codes:
        sys.exit(min(exit_codes))
