"""``python -m flr.tune``: a study, each trial of which trains with values that Optuna chooses by the validation faces.

Its processes, on one machine or many, meet in Optuna's storage alone; in MLflow a study is a run above one run a trial. The
test part is not scored: the winner's command trains it in full, and tests it once.
"""

import contextlib
import copy
import gc
import hashlib
import importlib.util
import json
import math
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
import numpy as np
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from flr.cli import quiet, run_command
from flr.config.compose import flat, groups, key_of, plain, task_overrides, under
from flr.config.instantiate import build
from flr.config.schema import RESULT_NEUTRAL_KEYS, Train, Tune
from flr.config.validate import check
from flr.errors import UserError, nearest
from flr.files import writing
from flr.reporting.tables import TextTable, markdown, print_table, write_csv

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

    from flr.sweep import Child
    from flr.tracking.tracker import Tracker

HEARTBEAT, GRACE = 60, 180  # seconds: a trial of another machine without a heartbeat for longer than GRACE is lost
RETRIES = 3  # of a trial whose process died: it may be the trial that kills it
HOPELESS = 3  # failures with which a study that nothing has come of yet ends
ENOUGH = 4  # finished trials that importance is told of
ORDER = ("finished", "pruned", "failed", "running", "waiting", "retried")


def main(cfg: DictConfig) -> None:
    """Run trials until the study has them all."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("a study takes neither -m nor sweep=: what varies stands in tune.space")
    check(cfg, Tune, trusted=False)
    if cfg.run is not None:
        raise UserError(f"run={cfg.run} goes on with one run by flr.train; a study goes on by its own command")
    space = dimensions(cfg)
    print(f"Tuning {', '.join(dimension.key for dimension in space)} of {cfg.model._target_} on {cfg.data.name}")
    quiet()
    from flr.training.distributed import started_outside

    if _devices(cfg.trainer.devices) != 1 or cfg.trainer.get("num_nodes", 1) != 1 or started_outside():
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: a trial trains on one device; start this command once a device, "
            "and the processes share the study"
        )
    stopped: list[int] = []

    def terminate(*_: Any) -> None:
        stopped.append(143)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with _answering(str(cfg.tune.storage)):
            Study(cfg, space).run()
    except KeyboardInterrupt:
        if stopped:
            sys.exit(143)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _devices(given: Any) -> Any:
    """How many devices are named, where it says so."""
    return len(given) if isinstance(given, ListConfig) else given


# -- the space ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Values between two bounds, whole numbers where both bounds are.

    Attributes:
        low, high: both inside.
        log: whether they are drawn evenly on a logarithmic scale.
        step: from one value to the next.
        scales: keys that each become their value in the config times this one, in place of the key that the range has.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    scales: list[str] | None = None


@dataclass(frozen=True)
class Choice:
    """One of some values, or of a group's choices."""

    choices: list[str | int | float | bool | list[Any] | None]


@dataclass(frozen=True)
class Dimension:
    """One direction of the space.

    Attributes:
        key: of the config, or the name of a factor.
        shape: its values.
        base: what each key that it sets is in the config; of a group, its choice.
    """

    key: str
    shape: Range | Choice
    base: dict[str, Any]

    @property
    def own(self) -> Any:
        """The value that leaves the config as it is."""
        if isinstance(self.shape, Range) and self.shape.scales:
            return 1
        value = self.base[self.key]
        return _spelled(value) if isinstance(value, list) else value

    @property
    def distribution(self) -> "BaseDistribution":
        """As Optuna knows it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        shape = self.shape
        if isinstance(shape, Choice):
            return CategoricalDistribution(cast(list[str], shape.choices))
        if all(isinstance(bound, int) for bound in (shape.low, shape.high, shape.step or 1)):
            return IntDistribution(int(shape.low), int(shape.high), shape.log, int(shape.step or 1))
        return FloatDistribution(shape.low, shape.high, shape.log, shape.step)

    @property
    def size(self) -> float:
        """How many values it has."""
        shape = self.shape
        if isinstance(shape, Choice):
            return len(shape.choices)
        whole = isinstance(shape.low, int) and isinstance(shape.high, int)
        step = shape.step or (1 if whole else None)
        return math.inf if step is None else int((shape.high - shape.low) / step + 1e-9) + 1

    def shown(self, value: Any) -> Any:
        """A value as a figure's axis has it."""
        return _spelled(value) if isinstance(self.shape, Choice) else value

    def words(self, value: Any) -> list[str]:
        """The overrides that set it."""
        if isinstance(self.shape, Range):
            factors = self.base if self.shape.scales else {self.key: 1}
            return [f"{key}={_spelled(value * factor)}" for key, factor in factors.items()]
        quoted = isinstance(value, str) and not value.startswith("[") and not re.fullmatch(r"[\w./-]+", value)
        return [f"{self.key}={json.dumps(value) if quoted else _spelled(value)}"]


def _spelled(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{','.join(map(_spelled, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def dimensions(cfg: DictConfig) -> list[Dimension]:
    """The directions of a checked config's space; each of their ends gives a config that can be trained.

    Raises:
        UserError: one is no range, or of no key, or leads where nothing can be trained.
    """
    values = plain(cfg)
    leaves = {key: value for key, value in flat(values) if not key.startswith("tune.")}
    chosen = HydraConfig.get().runtime.choices
    found = []
    for key, leaf in _leaves(values["tune"]["space"]):
        where = f"tune.space.{key}"
        if not isinstance(leaf, dict) or not leaf:
            raise UserError(f"{where}={leaf} is no range; write {{low: A, high: B}} or {{choices: [A, B]}}")
        kind = Choice if "choices" in leaf else Range
        check(OmegaConf.create(leaf), kind, path=where)
        if kind is Choice:  # of lists, Optuna keeps the text
            leaf = {"choices": [_spelled(one) if isinstance(one, list) else one for one in leaf["choices"]]}
        shape = kind(**leaf)
        if isinstance(shape, Range):
            _refuse_range(where, shape)
        elif len(shape.choices) < 2:
            raise UserError(f"{where}.choices={shape.choices} leaves no choice; name two or more")
        keys = shape.scales if isinstance(shape, Range) and shape.scales else [key]
        base = {}
        for one in keys:
            if isinstance(shape, Choice) and one in groups() and one in chosen:
                base[one] = chosen[one]
            elif one in leaves:
                base[one] = leaves[one]
            else:
                known = [*leaves, *(name for name in groups() if name in chosen)]
                raise UserError(f"{where}: no config key '{one}'{nearest(one, known)}; mend it or leave it out")
            if under(one, (*RESULT_NEUTRAL_KEYS, "seed", "sweep", "debug")):
                raise UserError(f"{where}: {one} is nothing to choose by its NME; leave it out")
            if isinstance(shape, Range) and shape.scales and not isinstance(base[one], int | float):
                raise UserError(f"{where}: {one}={base[one]} is no number that a factor could scale; leave it out")
        found.append(Dimension(key, shape, base))
    if not found:
        raise UserError("tune.space is empty; name keys with their ranges, or choose tune=NAME")
    twice = [key for key in (key for one in found for key in one.base) if sum(key in one.base for one in found) > 1]
    if twice:
        raise UserError(f"tune.space sets {twice[0]} twice; leave one of them out")
    for dimension in found:
        shape = dimension.shape
        ends = (shape.low, shape.high) if isinstance(shape, Range) else shape.choices
        for value in ends:
            try:
                own = compose(dimension.words(value))
                check(own, Train, trusted=False)
                build(own.augment)
            except UserError as error:
                raise UserError(f"tune.space.{dimension.key}: {error}") from error
    if "BruteForce" in cfg.tune.sampler._target_:
        endless = [one.key for one in found if math.isinf(one.size)]
        if endless:
            raise UserError(f"tune/sampler=grid needs a step or choices; tune.space.{endless[0]} has neither")
    return found


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, range) of a space, in which the dots of a key may be levels."""
    for key, value in node.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:  # null takes a preset's out
            yield f"{prefix}{key}", value


def _refuse_range(where: str, shape: Range) -> None:
    if not shape.low < shape.high:
        raise UserError(f"{where}: low={shape.low} is not below high={shape.high}; mend them")
    if shape.log and shape.low <= 0:
        raise UserError(f"{where}: log=true needs low above 0, not {shape.low}")
    if shape.step is not None and (shape.log or shape.step <= 0 or shape.step > shape.high - shape.low):
        raise UserError(f"{where}: step={shape.step} must be above 0 and within low..high, and has no meaning with log")


def compose(words: Sequence[str]) -> DictConfig:
    """The training's config of what the user typed and some overrides, which win."""
    more = [word for word in HydraConfig.get().overrides.hydra if key_of(word) == "hydra.searchpath"]
    return hydra.compose("train", [*typed(words), *more])


def typed(words: Sequence[str]) -> list[str]:
    """What the user typed for the training, and some overrides, which win."""
    keys = {key_of(word) for word in words}
    own = [word for word in task_overrides() if not re.match(r"[+~]*tune\b", word)]
    return [*(word for word in own if word.startswith("+") or key_of(word) not in keys), *words]


# -- the study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What came of a trial.

    Attributes:
        trial: its number.
        state: ``finished``, ``pruned``, ``failed``, ``retried``, ``running`` or ``waiting``.
        val: the lowest ``val/nme``, percent.
        epochs: validated.
        values: by the space's key.
        run_id: its run.
        own: whether they are the config's own.
        reason: why it failed or was pruned.
    """

    trial: int
    state: str
    val: float | None
    epochs: int
    values: dict[str, Any]
    run_id: str
    own: bool
    reason: str


class Study:
    """A study, as one of its processes sees it.

    Args:
        cfg: of `flr.config.schema.Tune`, checked.
        space: of `dimensions`.

    Raises:
        UserError: its storage cannot be used, or holds another study of that name.
    """

    def __init__(self, cfg: DictConfig, space: list[Dimension]) -> None:
        import optuna
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

        from flr.sweep import reach, recipe, tracker_of
        from flr.tracking.connection import get_run

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # _try has it beat
        warnings.filterwarnings("ignore", "The reported value is ignored")  # of the epoch in which a trial was stopped
        self.cfg, self.space, search = cfg, space, cfg.tune
        own = compose([])
        shapes = [[one.key, *map(str, vars(one.shape).items())] for one in self.space]
        digest = hashlib.sha256(json.dumps([recipe(own), sorted(shapes)]).encode()).hexdigest()[:8]
        model = own.model._target_.rpartition(".")[2]
        self.name = search.study or f"{model}-{own.data.name}-{digest}"
        if not re.fullmatch(r"[\w.-]{1,200}", self.name):
            raise UserError(f"tune.study={self.name}: a study's name is made of letters, digits and . _ - alone")
        self.uri = str(search.storage)
        if not re.match(r"sqlite:////|postgresql(\+\w+)?://", self.uri):
            kind = self.uri.partition("://")[0]  # what follows may hold a password
            raise UserError(
                f"tune.storage={kind}://...: name sqlite:/// and an absolute path, or postgresql://USER@HOST/DATABASE"
            )
        if importlib.util.find_spec("psycopg") is None:  # what newer SQLAlchemy would take
            self.uri = re.sub("^postgresql://", "postgresql+psycopg2://", self.uri)
        self.folder = Path(self.cfg.paths.output_dir).absolute() / "studies" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tracker: Tracker = tracker_of(self.cfg)
        reach(self.tracker)
        self.again = partial(RetryHeartbeatStaleTrialCallback, inherit_intermediate_values=True)
        with self.alone():
            _refuse_storage(self.uri)
            self.storage = RDBStorage(
                self.uri, _engine_words(self.uri), heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                heartbeat_stale_trial_callback=self.again(RETRIES),
            )  # fmt: skip
            self.study = optuna.create_study(
                storage=self.storage, study_name=self.name, direction="minimize", load_if_exists=True,
                pruner=build(search.pruner),
            )  # fmt: skip
            known = self.study.user_attrs
            if known.get("config", digest) != digest:
                raise UserError(
                    f"tune.study={self.name} is of another config or space; give it back, or name another study"
                )
            self.study.set_user_attr("config", digest)
            if "run" in known:
                get_run(self.tracker.client, known["run"])  # refuses another tracking store than the study's
            else:
                if search.enqueue:
                    self._enqueue()
                title = f"{self.cfg.name}: " if self.cfg.name else ""
                title += f"tuning {', '.join(one.key for one in self.space)} of {model} on {own.data.name}"
                self.study.set_user_attr("title", title)
            self._claim()
        grid = math.prod(one.size for one in self.space)
        self.trials = int(min(search.trials, grid)) if "BruteForce" in search.sampler._target_ else search.trials

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process of the study at a time, on all its machines."""
        if self.uri.startswith("sqlite:"):
            with FileLock(f"{self.uri.removeprefix('sqlite:///')}.lock"):
                yield
            return
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.uri)
        try:
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7093)"))  # let go where it ends
                yield
        finally:
            engine.dispose()

    def _enqueue(self) -> None:
        """Have the first trial be that of the config's own values, where they lie in the space."""
        values = {one.key: one.own for one in self.space}
        for one in self.space:
            distribution, value = one.distribution, values[one.key]
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):  # no number, or no choice
                inside = False
            if not inside:
                print(f"note: {one.key}={value}, the config's own, lies outside tune.space, so it is not tried first")
                return
        self.study.enqueue_trial(values, {"own": True})

    def _claim(self) -> None:
        """Have this process keep the study's run: begin it, or go on with it."""
        from flr.tracking.connection import GRID

        about = {
            GRID: " ".join(f"{one.key}={vars(one.shape)}" for one in self.space)[:5000], "study": self.name,
            "folder": str(self.folder),
        }  # fmt: skip
        known = self.study.user_attrs
        run_id = self.tracker.start(known.get("title", self.name), about, known.get("run"))
        if "run" not in known:
            self.study.set_user_attr("run", run_id)

    # -- trials ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trials, until the study has them all or the time is over; then what came of them."""
        print(f"Study {self.name}, {self.trials} trials: {self.folder}")
        end = time.monotonic() + 60 * (self.cfg.tune.timeout or math.inf)
        rows: list[Row] = []
        try:
            while time.monotonic() < end and not _hopeless(rows) and (trial := self._ask()):
                self._try(trial)
                gc.collect()  # a training's tensors lie in cycles
                with self.alone():
                    rows = self.publish()
        except BaseException as error:
            with self.alone():
                self.publish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        with self.alone():
            rows = self.publish("FINISHED")
        self.conclude(rows)

    def _ask(self) -> "optuna.Trial | None":
        """The next trial; None where the study has all."""
        import optuna
        from optuna.trial import TrialState

        from flr.tracking.provenance import process_alive, process_tag

        me = process_tag()
        with self.alone():
            optuna.storages.fail_stale_trials(self.study)
            for other in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                about = other.user_attrs
                # Between being asked for and having a process no other process sees a trial.
                if "process" not in about or (about["host"] == me["host"] and not process_alive(about["process"])):
                    self._give_back(other, RETRIES)
            trials = self.study.get_trials(deepcopy=False)
            if sum(row.state not in ("retried", "waiting") for row in self.rows()) >= self.trials:
                return None
            node = self.cfg.tune.sampler
            seed = np.random.SeedSequence([self.cfg.tune.seed, len(trials)]).generate_state(1)[0]
            self.study.sampler = build(node, **({} if "seed" in node else {"seed": int(seed)}))
            trial = self.study.ask({one.key: one.distribution for one in self.space})
            if isinstance(self.study.sampler, optuna.samplers.BruteForceSampler):
                # At the end of its grid it would stop Study.optimize, which does not run here.
                self.study.sampler = optuna.samplers.RandomSampler()
            for key, value in me.items():
                trial.set_user_attr(key, value)
            return trial

    def _give_back(self, trial: "FrozenTrial", most: int | None = None) -> None:
        """Have a trial that was stopped be tried again."""
        from optuna.trial import TrialState

        self.study.tell(trial.number, state=TrialState.FAIL)
        self.again(most)(self.study, copy.deepcopy(trial))  # which it alters

    def _try(self, trial: "optuna.Trial") -> None:
        """One trial, and its end in the study."""
        import optuna
        from optuna.storages._heartbeat import get_heartbeat_thread  # what Study.optimize itself beats with
        from optuna.trial import TrialState

        from flr.sweep import Child

        words = self.words(trial.params)
        try:
            with get_heartbeat_thread(trial._trial_id, self.storage):
                state = self._train(trial, words, Child(compose(words), self.study.user_attrs["run"]))
        except BaseException:
            self._give_back(self.storage.get_trial(trial._trial_id))
            raise
        nmes = self.storage.get_trial(trial._trial_id).intermediate_values
        nme = min(nmes.values(), default=math.inf)
        try:
            self.study.tell(trial, nme if state == TrialState.COMPLETE else None, state=state)
        except optuna.exceptions.UpdateFinishedTrialError:
            print(
                f"note: trial {trial.number} was taken for lost, as after a sleep, and is begun again", file=sys.stderr
            )
        if nmes:
            print(f"Trial {trial.number}: val/nme {nme:.2f} %, {trial.user_attrs.get('end') or 'finished'}")

    def _train(self, trial: "optuna.Trial", words: list[str], one: "Child") -> "TrialState":
        """Train a trial, anew or on from where it was stopped.

        Raises:
            UserError: it is refused, as all others would be: none has trained yet.
        """
        from optuna.trial import TrialState

        from flr.tracking.connection import first_line, get_run
        from flr.training.callbacks import Stop
        from flr.training.session import TrainingSession

        def hopeless(epoch: int, nme: float) -> bool:
            trial.report(nme, epoch)
            # The config's own values are what all else is held against.
            if "own" in trial.user_attrs or epoch + 1 == one.cfg.trainer.max_epochs or not trial.should_prune():
                return False
            one.cut = f"pruned at epoch {epoch + 1}"
            trial.set_user_attr("end", one.cut)
            return True

        values = (f"{key.rpartition('.')[2]} {_short(value)}" for key, value in trial.params.items())
        stop = Stop(hopeless)
        one.label, one.tested, one.callbacks = " ".join(values), False, [stop]
        one.tags = {"study": self.name, "trial": str(trial.number)}
        begun, folder, before = trial.user_attrs.get("run"), None, None
        if begun:
            try:
                folder, before = one.left(begun)
            except (UserError, Timeout):  # nothing is left here, or its process lives
                begun = None
        trial.set_user_attr("run", one.start(begun))
        print(f"Trial {trial.number}: {one.label}" + (f", going on with run {begun}" if begun else ""))
        try:
            check(one.cfg, Train, trusted=False)
            TrainingSession(one.cfg, typed(words), folder, before, one).run()
            protocol = get_run(self.tracker.client, one.run_id).tags["protocol"]
            if self.study.user_attrs.get("protocol", protocol) != protocol:
                raise UserError(
                    f"its protocol is {protocol}, the study's {self.study.user_attrs['protocol']}: not one column"
                )
            self.study.set_user_attr("protocol", protocol)
        except Exception as error:
            one.failed(error)
            refused = isinstance(error, UserError)
            others = self.study.get_trials(deepcopy=False)
            if refused and not stop.begun and not any(other.intermediate_values for other in others):
                raise
            if refused:
                print(f"flr: trial {trial.number}, {one.label}: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            trial.set_user_attr("end", str(error) if refused else f"{type(error).__name__}: {first_line(error)}")
            return TrialState.FAIL
        except BaseException:
            one.stopped()
            raise
        if one.cut:
            # The least useful of all checkpoints, and a study may prune hundreds.
            shutil.rmtree(Path(one.cfg.paths.output_dir) / "runs" / one.run_id / "checkpoints", ignore_errors=True)
            return TrialState.PRUNED
        return TrialState.COMPLETE

    # -- what came of it -------------------------------------------------------------------------------------------

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of a trial."""
        return [word for one in self.space for word in one.words(values[one.key])]

    def rows(self) -> list[Row]:
        """What came of each trial."""
        from optuna.trial import TrialState

        names = {
            TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
            TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
        }  # fmt: skip
        trials = self.study.get_trials(deepcopy=False)
        retried = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
        found = []
        for trial in trials:
            nmes, about = trial.intermediate_values, trial.user_attrs
            state = "retried" if trial.number in retried else names[trial.state]
            found.append(
                Row(
                    trial.number, state, min(nmes.values(), default=None), len(nmes), dict(trial.params),
                    about.get("run", ""), "own" in about, about.get("end", ""),
                )
            )  # fmt: skip
        return found

    def publish(self, status: str = "") -> list[Row]:
        """Have the study's run and folder show how it stands.

        Args:
            status: of the run from here on, unless trials run elsewhere; empty while this process goes on.
        """
        from flr.reporting import figures as pictures

        self._claim()
        rows, tracker = self.rows(), self.tracker
        finished = {row.trial: row.val for row in rows if row.state == "finished" and row.val is not None}
        pruned = {row.trial: row.val for row in rows if row.state == "pruned" and row.val is not None}
        write_csv(self.folder / "trials.csv", [asdict(row) | {"values": json.dumps(row.values)} for row in rows])
        tracker.file(self.folder / "trials.csv")
        logged = {step for step, _ in tracker.history["trial/val_nme"]}
        for number, nme in finished.items():
            if number not in logged:
                tracker.log_metrics({"trial/val_nme": nme, "best/val_nme": min(finished.values())}, number)
        states = {state: sum(row.state == state for row in rows) for state in ("finished", "pruned", "failed")}
        tracker.log_metrics({f"trials/{state}": count for state, count in states.items()}, len(rows))
        if best := _best(rows):
            tracker.tag(best=str(best.trial), **{f"best.{key}": str(value) for key, value in best.values.items()})
            own = next((row.trial for row in rows if row.own and row.state == "finished"), None)
            tracker.figure(pictures.study_figure(finished, pruned, own), "history.png")
            shown = [row for row in rows if row.trial in finished | pruned]
            columns = {one.key: [one.shown(row.values[one.key]) for row in shown] for one in self.space}
            log = {one.key for one in self.space if isinstance(one.shape, Range) and one.shape.log}
            nmes = [row.val for row in shown if row.val is not None]
            tracker.figure(
                pictures.slices_figure(columns, nmes, [row.trial in pruned for row in shown], log), "slices.png"
            )
            if shares := self.importances(len(finished)):
                tracker.figure(pictures.importance_figure(shares), "importances.png")
                tracker.tag(**{f"importance.{key}": f"{share:.3f}" for key, share in shares.items()})
            self._write_experiment(self.words(best.values))
        tracker.describe(f"{self.told(rows)}\n\n{markdown(self.grid(rows))}")
        if status and not any(row.state == "running" for row in rows):
            tracker.end(status if finished or status != "FINISHED" else "FAILED")
        else:
            tracker.save()
        return rows

    def importances(self, finished: int) -> dict[str, float]:
        """The share of each key in the spread of the NME of finished trials; empty where they are too few to tell."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        if finished < ENOUGH or len(self.space) < 2:
            return {}
        # Optuna's default looks at the best tenth of the trials alone, which of a few trials is one.
        return get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))

    def grid(self, rows: Sequence[Row]) -> TextTable:
        """The table of its trials, the best first."""
        order = sorted(rows, key=lambda row: (ORDER.index(row.state), row.val or 0.0))
        head = ["trial", "state", "val/nme, %", "epochs", *(one.key for one in self.space), "run", "why"]
        cells = [
            [f"{row.trial}{' (own)' * row.own}", row.state, "-" if row.val is None else f"{row.val:.2f}", str(row.epochs),
             *(_short(row.values[one.key]) if one.key in row.values else "-" for one in self.space),
             row.run_id, row.reason[:200]]
            for row in order if row.state != "retried"
        ]  # fmt: skip
        kept = [i for i in range(len(head)) if i < len(head) - 1 or any(row[-1] for row in cells)]
        return TextTable([head[i] for i in kept], [[row[i] for i in kept] for row in cells])

    def told(self, rows: Sequence[Row]) -> str:
        """The best trial, what was gained, and the command that trains it in full."""
        counts = (f"{n} {state}" for state in ORDER if (n := sum(row.state == state for row in rows)))
        lines = [f"study {self.name}: {', '.join(counts)} of {self.trials} trials"]
        if best := _best(rows):
            values = ", ".join(f"{key}={_short(value)}" for key, value in best.values.items())
            own = next((row.val for row in rows if row.own and row.state == "finished"), None)
            gain = "" if own is None or best.own else f"; the config's own values: {own:.2f} %"
            gain = " (the config's own values)" if best.own else gain
            lines.append(f"best: trial {best.trial}, val/nme {best.val:.2f} % with {values}{gain}")
            lines.append(shlex.join(["python", "-m", "flr.train", *typed(self.words(best.values))]))
        return "\n\n".join(lines)

    def conclude(self, rows: Sequence[Row]) -> None:
        """Say what came of it; end the command where nothing did."""
        print_table(self.grid(rows))
        print(self.told(rows).replace("\n\n", "\n"))
        print(f"run {self.tracker.run_id}  {self.folder}")
        failed = [row for row in rows if row.state == "failed"]
        if failed and not _best(rows):
            print(
                f"flr: no trial of study {self.name} has finished; the last failed: {failed[-1].reason}",
                file=sys.stderr,
            )
            sys.exit(1)

    def _write_experiment(self, words: Sequence[str]) -> None:
        """The best config as ``experiment=tuned``, for ``--config-dir`` with the study's folder."""
        defaults: list[Any] = []
        values = OmegaConf.create()
        for override in OverridesParser.create().parse_overrides(typed(words)):
            key, value = override.key_or_group, override.value()
            if override.is_delete():
                return  # a config file cannot take away
            if key == "experiment":
                defaults.insert(0, value)
            elif key in groups():
                defaults.append({f"override /{key}": value})
            elif not under(key, RESULT_NEUTRAL_KEYS):
                OmegaConf.update(values, key, value, force_add=True)
        text = f"# @package _global_\n# The best trial of study {self.name}, by val/nme.\n"
        text += OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults})) if defaults else ""
        with writing(self.folder / "experiment" / "tuned.yaml") as aside:
            aside.write_text(text + OmegaConf.to_yaml(values), encoding="utf-8")


def _best(rows: Sequence[Row]) -> Row | None:
    finished = [row for row in rows if row.state == "finished"]
    return min(finished, key=lambda row: row.val or math.inf, default=None)


def _hopeless(rows: Sequence[Row]) -> bool:
    """Whether a study has begun with failures alone."""
    over = [row.state for row in rows if row.state in ("finished", "pruned", "failed")]
    return len(over) >= HOPELESS and set(over) == {"failed"}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _spelled(value)


# -- the storage -------------------------------------------------------------------------------------------------------


def _refuse_storage(uri: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()
    if tables and "studies" not in tables:
        raise UserError(f"tune.storage={_hidden(uri)}: a database of another application; name one of its own")


def _engine_words(uri: str) -> dict[str, Any]:
    # A busy sqlite file is waited for; a connection that a server has cut is made anew.
    return {"connect_args": {"timeout": 60}} if uri.startswith("sqlite:") else {"pool_pre_ping": True}


def _hidden(uri: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", uri)


@contextlib.contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Tell of a storage that cannot be reached in a line."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ModuleNotFoundError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) and "psycopg" not in str(cause):
            raise
        more = "; pip install psycopg2-binary" if isinstance(cause, ModuleNotFoundError) else ""
        raise UserError(
            f"tune.storage={_hidden(uri)}: {str(cause).splitlines()[0]}{more or '; mend it, and the same command goes on'}"
        ) from error


if __name__ == "__main__":
    run_command(main, "tune")
