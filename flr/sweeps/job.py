"""Run one job of a sweep: skip it where a finished run has its settings, resume it, or train it.

A job is finished when a finished run of the experiment has its recipe (the config without the keys that do not change the
result), its code and its data.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flr.cli import quiet
from flr.config.compose import key_of, label_of, task_overrides, under
from flr.config.schema import RESULT_NEUTRAL_KEYS, Train
from flr.config.validate import check
from flr.errors import CommandFailed, UserError
from flr.module.assembly import build_data
from flr.module.checkpoints import RunFolder, find_run, load_last
from flr.sweeps.record import CRASHED, MAX_TAG, REFUSED, connect_with_retry, parent_tracker
from flr.tracking.connection import PREFIX, StoredRun, find_runs, first_line, get_run
from flr.tracking.provenance import code_digest
from flr.training.distributed import is_first_rank
from flr.training.recipe import default_name, recipe
from flr.training.session import OpenedRun, TrainingSession

# What a training resumes from: the run's folder and the ``flr`` part of its last checkpoint, each None where there is none.
ResumeState = tuple[RunFolder | None, dict[str, Any] | None]


class ChildRun(OpenedRun):
    """The run of a training below that of a sweep or study, which exists before the training and records why it failed.

    Raises:
        UserError: The tracking store does not answer.
    """

    def __init__(self, cfg: DictConfig, parent: str) -> None:
        super().__init__()
        self.cfg, self.parent, self._tracker = cfg, parent, parent_tracker(cfg)
        connect_with_retry(self._tracker)

    def start(self, run_id: str | None = None) -> str:
        """Start a run, or resume one, and return its id."""
        self.run_id = self._tracker.start(self.name or self.label, self.tags, run_id, self.parent)
        return self.run_id

    def resume_state(self, run_id: str) -> ResumeState:
        """Return what a stopped run can be resumed from.

        Raises:
            UserError: Nothing of the run is left.
            Timeout: Another process trains it.
        """
        folder = find_run(run_id, self._tracker.uri, Path(self.cfg.paths.output_dir))
        checkpoint = load_last(folder)
        with FileLock(folder.path / "run.lock", timeout=0):
            return folder, checkpoint["flr"] if checkpoint else None

    def mark_failed(self, error: Exception) -> None:
        """End the run as failed, with the reason."""
        reason = str(error)
        if not isinstance(error, CommandFailed | UserError):
            reason = f"{type(error).__name__}: {first_line(error)}"
            self._tracker.text("".join(traceback.format_exception(error)), "error.txt")
        self._tracker.tag(end=reason[:MAX_TAG], exit=str(REFUSED if isinstance(error, UserError) else CRASHED))
        self._tracker.end("FAILED")

    def mark_stopped(self) -> None:
        """End the run as stopped, where its training has not ended it."""
        run_id = self._tracker.run_id
        if run_id and get_run(self._tracker.client, run_id).status == "RUNNING":
            self._tracker.end("KILLED")


class Job(ChildRun):
    """One job of a sweep; `identity` is the id of the sweep's run, a slash, and the job's number.

    Raises:
        UserError: The tracking store does not answer, or does not know the sweep.
    """

    def __init__(self, cfg: DictConfig, overrides: Sequence[str], identity: str) -> None:
        sweep_run, _, self.number = identity.partition("/")
        super().__init__(cfg, sweep_run)
        sweep_tags = get_run(self._tracker.client, sweep_run).tags
        self._sweep, keys = sweep_tags["sweep"], json.loads(sweep_tags["keys"])
        self.label = label_of(list(overrides), keys) or default_name(cfg, overrides)
        if set(keys) <= {"seed"}:  # "seed 0", or nothing, does not name the model
            self.name = f"{cfg.name} seed {cfg.seed}" if cfg.name else default_name(cfg, overrides)
        # SLURM starts a requeued job again under the same id.
        self._attempt = ".".join(os.environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "RESTART_COUNT"))
        counted = [word for word in overrides if key_of(word) in keys and under(key_of(word), RESULT_NEUTRAL_KEYS)]
        self.tags = {
            "sweep": self._sweep, "job": self.label, "recipe": recipe(cfg, counted), "code": code_digest(),
        }  # fmt: skip
        query = f"tags.`{PREFIX}recipe` = '{self.tags['recipe']}'"
        same_recipe = find_runs(self._tracker.client, self._tracker.experiment, query)
        self._same_recipe = [run for run in same_recipe if self._of_sweep(run) or not cfg.again]
        self._stopped: list[StoredRun] = []

    def _of_sweep(self, run: StoredRun) -> bool:
        return run.tags.get("sweep") == self._sweep

    def finished_run(self, fingerprint: Callable[[], str]) -> StoredRun | None:
        """Return the finished run with the settings of this job, if any.

        Args:
            fingerprint: Returns the fingerprint of the job's data; called only where a run may stand for the job.
        """
        code = self.tags["code"]
        same = [run for run in self._same_recipe if run.tags.get("code") == code]
        if any("protocol" in run.tags for run in same):
            data = fingerprint()
            same = [run for run in same if run.tags.get("protocol", data).endswith(data)]
        finished = [run for run in same if run.status == "FINISHED" and "test/nme" in run.metrics]
        if finished:
            self._register(finished[-1].run_id, reused=True)
            return finished[-1]
        self._stopped = [run for run in same if self._of_sweep(run)]
        if others := [run for run in self._same_recipe if run.status == "FINISHED"]:
            what = "data" if others[-1].tags.get("code") == code else "code"
            print(f"note: run {others[-1].run_id} had this config, but other {what}, so {self.label} is trained anew")
        return None

    def wait_for_first_rank(self) -> ResumeState | None:
        """Return what the first rank of this job, which SLURM started too, resumes from; None where it trains nothing.

        SLURM ends this rank where the first one fails before it reports.
        """
        job: dict[str, Any] = {}
        while job.get("attempt") != self._attempt:
            time.sleep(0.2)
            tags = get_run(self._tracker.client, self.parent).tags
            job = json.loads(tags.get(f"job.{self.number}", "{}"))
        if job["reused"]:
            return None
        folder = RunFolder(Path(get_run(self._tracker.client, job["run"]).tags.get("folder", "")))
        # A new run has no checkpoint before all its ranks have started.
        checkpoint = load_last(folder)
        return (folder, checkpoint["flr"]) if checkpoint else (None, None)

    def begin(self) -> ResumeState:
        """Start the job's run, or resume one that was stopped.

        Raises:
            UserError: Another process trains it.
        """
        for run in reversed(self._stopped):
            folder = run.tags.get("folder")
            if run.status == "RUNNING" and not (folder and Path(folder).is_dir()):
                continue  # on another machine
            if not folder:  # it failed before the training
                self.start(run.run_id)
                return None, None
            try:
                state = self.resume_state(run.run_id)
            except UserError:
                continue  # nothing of it is left
            except Timeout as error:
                raise UserError(f"another process is training it, run {run.run_id}; wait for it or stop it") from error
            self.start(run.run_id)
            print(f"resuming run {run.run_id}")
            return state
        self.start()
        return None, None

    def start(self, run_id: str | None = None) -> str:
        """Start a run, or resume one, and add it to the sweep."""
        self._register(super().start(run_id))
        return self.run_id

    def _register(self, run_id: str, reused: bool = False) -> None:
        sweep = parent_tracker(self.cfg)
        sweep.attach(self.parent)
        job = {"run": run_id, "job": self.label, "reused": reused, "attempt": self._attempt}
        sweep.tag(**{f"job.{self.number}": json.dumps(job)})

    def mark_failed(self, error: Exception) -> None:
        if not self._tracker.run_id:  # it failed early: create its run, or use the one that an earlier start has left
            early = [
                run for run in self._same_recipe
                if self._of_sweep(run) and "folder" not in run.tags and run.status == "FAILED"
            ]  # fmt: skip
            self.start(early[-1].run_id if early else None)
        super().mark_failed(error)


def run_job(cfg: DictConfig, identity: str) -> None:
    """Run one job; its failure is reported and recorded, and stops no other job.

    Args:
        cfg: Its composed config.
        identity: Value of the variable `flr.sweeps.grid.SWEEP_ENV`.
    """
    overrides, own_process = task_overrides(), HydraConfig.get().mode == RunMode.RUN
    if own_process:
        quiet()
    else:
        identity += f"/{HydraConfig.get().job.num}"
    first = is_first_rank()
    job, exit_code = None, 0
    try:
        job = Job(cfg, overrides, identity)
        if first:
            _train_unless_finished(job, overrides)
        elif (state := job.wait_for_first_rank()) is not None:
            TrainingSession(cfg, overrides, *state).run()
    except Exception as error:
        if isinstance(error, CommandFailed | UserError):
            print(f"flr: {job.label if job else overrides}: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        if job and first:
            job.mark_failed(error)
        exit_code = REFUSED if isinstance(error, UserError) else CRASHED
    except BaseException:
        if job and first:
            job.mark_stopped()
        raise
    if own_process and exit_code:
        sys.exit(exit_code)


def _train_unless_finished(job: Job, overrides: list[str]) -> None:
    cfg = job.cfg
    print(f"Job {job.number}: {job.label}")
    check(cfg, Train, trusted=False)

    def fingerprint() -> str:
        data = build_data(cfg)
        data.prepare()
        return str(data.protocol.fingerprint)

    if run := job.finished_run(fingerprint):
        print(f"done before, by run {run.run_id}")
        return
    TrainingSession(cfg, overrides, *job.begin(), job).run()
