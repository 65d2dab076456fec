"""An Optuna study whose trials are trainings.

The processes of a study share Optuna's storage. In MLflow a study is one run, and the parent of one run per trial. Trials
do not score the test part; the command that the study prints trains the best values in full and tests them once.
"""

import contextlib
import hashlib
import json
import math
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from omegaconf import DictConfig
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from flr.config.instantiate import build
from flr.config.schema import Train
from flr.config.validate import check
from flr.errors import UserError
from flr.sweeps.job import ChildRun, ResumeState
from flr.sweeps.record import connect_with_retry, parent_tracker
from flr.sweeps.space import Dimension, compose_trial, format_short, space_overrides, training_overrides
from flr.sweeps.study_report import StudyReport, current_trials
from flr.tracking.connection import GRID, first_line, get_run
from flr.tracking.provenance import process_alive, process_tag
from flr.training.callbacks import Stop
from flr.training.recipe import data_name, model_name, recipe
from flr.training.session import TrainingSession

HEARTBEAT, GRACE = 60, 180  # seconds: a running trial without a heartbeat for GRACE is tried again by another process
RETRIES = 3  # of a trial whose process died, perhaps because of the trial
FIRST_FAILURES = 3  # a study in which only failures came so far ends after so many


class TrialFailed(Exception):
    """A trial failed, which does not stop the study."""


class TuningStudy:
    """A study, as one of its processes sees it.

    Raises:
        UserError: The storage cannot be used, or holds another study with that name.
    """

    def __init__(self, cfg: DictConfig, space: list[Dimension]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        # A trial that was stopped in the middle of an epoch reports it again.
        warnings.filterwarnings("ignore", "The reported value is ignored")
        self.cfg, self.space = cfg, space
        self.interrupted: int | None = None  # number of the trial that an exception stopped
        training = compose_trial([])
        values = [[dimension.key, *map(str, vars(dimension.values).items())] for dimension in space]
        digest = hashlib.sha256(json.dumps([recipe(training), sorted(values)]).encode()).hexdigest()[:8]
        model = training.model._target_.rpartition(".")[2]
        self.name = cfg.tune.study or f"{model}-{training.data.name}-{digest}"
        if not re.fullmatch(r"[\w.-]{1,200}", self.name):
            raise UserError(f"tune.study={self.name}: a study's name has only letters, digits and . _ -")
        self.folder = Path(cfg.paths.output_dir).absolute() / "studies" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder.parent / "lock")  # one process at a time makes tables, or publishes
        self.tracker = parent_tracker(cfg)
        connect_with_retry(self.tracker)
        title = f"{cfg.name}: " if cfg.name else ""
        title += f"tune {', '.join(dimension.key.rpartition('.')[2] for dimension in space)}"
        with self.lock:
            self.study = self._open(digest)
            self._open_run(title, {"model": model_name(training.model._target_), "data": data_name(training)})
            self._requeue_dead()
        size = math.prod(dimension.values.size for dimension in space)
        trials = cfg.tune.trials
        self.trials = int(min(trials, size)) if "BruteForce" in cfg.tune.sampler._target_ else trials
        self.report = StudyReport(self.study, space, self.trials, self.folder, self.tracker)

    def _open(self, digest: str) -> optuna.Study:
        """Open the study, or create it with the config's own values as its first trial."""
        search = self.cfg.tune
        study = optuna.create_study(
            storage=_open_storage(str(search.storage)), study_name=self.name, direction="minimize", load_if_exists=True,
            pruner=build(search.pruner),
        )  # fmt: skip
        is_new = "config" not in study.user_attrs
        if study.user_attrs.get("config", digest) != digest:
            raise UserError(
                f"tune.study={self.name} is of another config or space; restore them, or name another study"
            )
        study.set_user_attr("config", digest)
        if is_new:
            outside = [dimension for dimension in self.space if dimension.default not in dimension.values]
            if outside:
                value = f"{outside[0].key}={outside[0].default}"
                print(f"note: {value}, the config's own value, is outside tune.space, so it is not tried first")
            else:
                study.enqueue_trial({one.key: one.default for one in self.space}, {"default": True})
        # Each process draws values of its own.
        process = study.user_attrs.get("processes", 0)
        study.set_user_attr("processes", process + 1)
        seed = {"seed": int(np.random.SeedSequence([search.seed, process]).generate_state(1)[0])}
        study.sampler = build(search.sampler, **({} if "seed" in search.sampler else seed))
        return study

    def _open_run(self, title: str, tags: Mapping[str, str]) -> None:
        """Open the study's run for this process; create it where the study is new."""
        run_id = self.study.user_attrs.get("run")
        if run_id:
            get_run(self.tracker.client, run_id)  # raises for another tracking store than the study's
        grid = " ".join(f"{dimension.key}={vars(dimension.values)}" for dimension in self.space)[:5000]
        tags = {**tags, GRID: grid, "study": self.name, "folder": str(self.folder)}
        self.study.set_user_attr("run", self.tracker.start(title, tags, run_id))

    def run(self) -> None:
        """Run trials until the study has them all or the time is over.

        Raises:
            UserError: A trial was refused as all others would be, since none has trained yet.
        """
        minutes = self.cfg.tune.timeout
        status = "FINISHED"
        try:
            if not self._is_complete():
                self.study.optimize(
                    self._objective, timeout=60 * minutes if minutes else None, catch=(TrialFailed,),
                    callbacks=[self._after_trial], gc_after_trial=True,  # a training's tensors are in cycles
                )  # fmt: skip
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            if self.interrupted is not None:
                self._requeue(self.interrupted, None)
            raise
        finally:
            with self.lock:
                self.report.publish(status)

    def _is_complete(self) -> bool:
        """Whether all processes together have started enough trials, or the first ones have all failed.

        Optuna's MaxTrialsCallback cannot tell failed trials, which count, from interrupted ones, which are tried again.
        """
        fail_stale_trials(self.study)
        states = [trial.state for trial in current_trials(self.study) if trial.state != TrialState.WAITING]
        ended = [state for state in states if state != TrialState.RUNNING]
        return len(states) >= self.trials or (len(ended) >= FIRST_FAILURES and set(ended) == {TrialState.FAIL})

    def _after_trial(self, study: optuna.Study, _: FrozenTrial) -> None:
        with self.lock:
            self.report.publish()
        if self._is_complete():
            study.stop()

    def _requeue_dead(self) -> None:
        """Have the trials of dead processes of this machine tried again at once, not only after `GRACE`."""
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            process = trial.user_attrs.get("process", "")
            if trial.user_attrs.get("host") == process_tag()["host"] and not process_alive(process):
                self._requeue(trial.number, RETRIES)

    def _requeue(self, number: int, retries: int | None) -> None:
        """Have a trial that was stopped tried again, in its run, at most `retries` times."""
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        retry = RetryHeartbeatStaleTrialCallback(retries, inherit_intermediate_values=True)
        retry(self.study, self.study.trials[number])

    # -- one trial -------------------------------------------------------------------------------------------------

    def _objective(self, trial: optuna.Trial) -> float:
        for key, value in process_tag().items():
            trial.set_user_attr(key, value)
        try:
            return self._train_trial(trial, {dimension.key: dimension.suggest(trial) for dimension in self.space})
        except (TrialFailed, optuna.TrialPruned):
            raise
        except BaseException:
            self.interrupted = trial.number
            raise

    def _train_trial(self, trial: optuna.Trial, values: dict[str, Any]) -> float:
        """Train a trial, or resume it where it was stopped, and return its lowest ``val/nme``."""
        overrides = space_overrides(self.space, values)
        child = ChildRun(compose_trial(overrides), self.study.user_attrs["run"])
        stop = Stop(lambda epoch, nme: self._should_stop(trial, child, epoch, nme))
        child.label = " ".join(f"{key.rpartition('.')[2]} {format_short(value)}" for key, value in values.items())
        child.score_test, child.callbacks = False, [stop]
        child.tags = {"study": self.name, "trial": str(trial.number)}
        state = self._begin(trial, child)
        try:
            check(child.cfg, Train, trusted=False)
            TrainingSession(child.cfg, training_overrides(overrides), *state, child).run()
            self._check_protocol(child)
        except Exception as error:
            child.mark_failed(error)
            self._raise_failure(trial, error, started=stop.begun)
        except BaseException:
            child.mark_stopped()
            raise
        nme = min(self.study.trials[trial.number].intermediate_values.values(), default=math.inf)
        print(f"Trial {trial.number}: val/nme {nme:.2f} %, {child.stop_reason or 'finished'}")
        if child.stop_reason:
            # The least useful of all checkpoints, and a study may prune hundreds of trials.
            shutil.rmtree(Path(child.cfg.paths.output_dir) / "runs" / child.run_id / "checkpoints", ignore_errors=True)
            raise optuna.TrialPruned
        return nme

    def _begin(self, trial: optuna.Trial, child: ChildRun) -> ResumeState:
        """Start the trial's run, or resume the one of a trial that was stopped."""
        run_id = trial.user_attrs.get("run")
        state: ResumeState = (None, None)
        if run_id:
            try:
                state = child.resume_state(run_id)
            except (UserError, Timeout):  # nothing of it is left here, or its process lives
                run_id = None
        trial.set_user_attr("run", child.start(run_id))
        print(f"Trial {trial.number}: {child.label}" + (f", resuming run {run_id}" if run_id else ""))
        return state

    def _should_stop(self, trial: optuna.Trial, child: ChildRun, epoch: int, nme: float) -> bool:
        """Report a validation to Optuna; whether the training shall stop."""
        trial.report(nme, epoch)
        # The config's own values are what all others are compared with.
        if "default" in trial.user_attrs or epoch + 1 == child.cfg.trainer.max_epochs or not trial.should_prune():
            return False
        child.stop_reason = f"pruned at epoch {epoch + 1}"
        trial.set_user_attr("end", child.stop_reason)
        return True

    def _check_protocol(self, child: ChildRun) -> None:
        protocol = get_run(self.tracker.client, child.run_id).tags["protocol"]
        expected = self.study.user_attrs.get("protocol", protocol)
        if protocol != expected:
            raise UserError(f"its protocol is {protocol}, the study's {expected}: their errors cannot be compared")
        self.study.set_user_attr("protocol", protocol)

    def _raise_failure(self, trial: optuna.Trial, error: Exception, started: bool) -> NoReturn:
        """Report why a trial failed; raise `TrialFailed`, or the error where all other trials would fail likewise."""
        if isinstance(error, UserError):
            if not started and not any(one.intermediate_values for one in self.study.get_trials(deepcopy=False)):
                raise error
            print(f"flr: trial {trial.number}: {error}", file=sys.stderr)
            trial.set_user_attr("end", str(error))
        else:
            traceback.print_exception(error)
            trial.set_user_attr("end", f"{type(error).__name__}: {first_line(error)}")
        raise TrialFailed from error


def _open_storage(uri: str) -> RDBStorage:
    """Open Optuna's storage.

    Raises:
        UserError: It is neither sqlite nor PostgreSQL, or a database of another application.
    """
    scheme = uri.partition("://")[0]  # what follows may hold a password
    if not re.match(r"sqlite:////|postgresql(\+\w+)?://", uri):
        raise UserError(
            f"tune.storage={scheme}://...: name sqlite:/// and an absolute path, or postgresql+psycopg2://USER@HOST/DATABASE"
        )
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()
    if tables and "studies" not in tables:
        raise UserError(f"tune.storage={scheme}://...: a database of another application; name one of its own")
    # A busy sqlite file is waited for; a connection that a server has closed is opened again.
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if scheme == "sqlite" else {"pool_pre_ping": True}
    retry = RetryHeartbeatStaleTrialCallback(RETRIES, inherit_intermediate_values=True)
    return RDBStorage(
        uri, arguments, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
    )


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the errors of a storage that cannot be used into one line, without the password that its address may hold."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"tune.storage: {reason}; fix it, and the same command resumes the study") from error
    except ModuleNotFoundError as error:
        if "psycopg" not in str(error):
            raise
        raise UserError(f"tune.storage: {error}; pip install psycopg2-binary") from error
