"""The results of a study: its table, figures and best values, in the terminal, in its folder and in MLflow."""

import math
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances, plot_slice

from flr.files import writing
from flr.reporting.tables import TextTable, markdown_table, print_table
from flr.sweeps.space import Dimension, format_short, space_overrides, training_overrides
from flr.tracking.tracker import Tracker

MIN_TRIALS_FOR_IMPORTANCE = 4
COLUMNS = ("number", "state", "value", "params", "user_attrs")  # of trials.csv
STATES = {  # in the order of the table
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


def current_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study without those that were stopped and are tried again under a later number."""
    trials = study.get_trials(deepcopy=False)
    replaced = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    return [trial for trial in trials if trial.number not in replaced]


class StudyReport:
    """The results of a study of so many trials, in its folder and in its run."""

    def __init__(
        self, study: optuna.Study, space: Sequence[Dimension], trials: int, folder: Path, tracker: Tracker
    ) -> None:
        self.study, self.space, self.trials, self.folder, self.tracker = study, space, trials, folder, tracker

    def trials_in(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the current trials in one of some states."""
        return [trial for trial in current_trials(self.study) if trial.state in states]

    def publish(self, status: str = "") -> None:
        """Update the table and metrics of the study's run; where this process ends, also its figures and status.

        Args:
            status: Status of the run from now on, unless other processes run trials; empty while this process continues.
        """
        tracker = self.tracker
        tracker.start("", {}, tracker.run_id)  # another process may have ended it
        finished = {trial.number: trial.values[0] for trial in self.trials_in(TrialState.COMPLETE)}
        logged = {step for step, _ in tracker.history["trial/val_nme"]}
        for number in finished.keys() - logged:
            tracker.log_metrics({"trial/val_nme": finished[number], "best/val_nme": min(finished.values())}, number)
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            tracker.log_metrics({f"trials/{STATES[state]}": len(self.trials_in(state))}, len(self.study.trials))
        with writing(self.folder / "trials.csv") as partial_file:
            self.study.trials_dataframe(COLUMNS).to_csv(partial_file, index=False)
        tracker.file(self.folder / "trials.csv")
        if finished:
            best = self.study.best_trial
            tracker.tag(best=str(best.number), **{f"best.{key}": str(value) for key, value in best.params.items()})
            if status:
                self._plot(len(finished))
        tracker.describe(f"{self.summary()}\n\n{markdown_table(self.table())}")
        if status and not self.trials_in(TrialState.RUNNING):
            tracker.end("FAILED" if status == "FINISHED" and not finished else status)
        else:
            tracker.save()

    def _plot(self, finished: int) -> None:
        """Add Optuna's figures to the study's run."""
        plots: dict[str, Callable[..., Any]] = {"history.png": plot_optimization_history, "slices.png": plot_slice}
        if finished >= MIN_TRIALS_FOR_IMPORTANCE and len(self.space) > 1:
            plots["importances.png"] = plot_param_importances
        # Optuna sets matplotlib's global style; the figures must not open a window.
        with matplotlib.rc_context(), warnings.catch_warnings(action="ignore"):
            pyplot.switch_backend("agg")
            for name, plot in plots.items():
                # Optuna's default evaluator considers the best tenth of the trials, which of few trials is one.
                more = {"evaluator": FanovaImportanceEvaluator(seed=0)} if plot is plot_param_importances else {}
                plot(self.study, target=lambda trial: trial.value, target_name="val/nme, %", **more)
                figure = pyplot.gcf()
                figure.savefig(self.folder / name, bbox_inches="tight")
                pyplot.close(figure)
                self.tracker.file(self.folder / name)

    def table(self) -> TextTable:
        """Return the table of the trials, the best first."""
        head = ["trial", "state", "val/nme, %", "epochs", *(dimension.key for dimension in self.space), "run", "why"]
        rows = []
        for state in STATES:
            trials = [
                (min(trial.intermediate_values.values(), default=math.nan), trial) for trial in self.trials_in(state)
            ]
            for nme, trial in sorted(trials, key=lambda pair: pair[0]):
                name = f"{trial.number} (config)" if "default" in trial.user_attrs else str(trial.number)
                values = [format_short(trial.params[one.key]) if trial.params else "-" for one in self.space]
                run, reason = (trial.user_attrs.get(key, "") for key in ("run", "end"))
                epochs = str(len(trial.intermediate_values))
                rows.append([name, STATES[state], f"{nme:.2f}", epochs, *values, run, reason[:200]])
        return TextTable(head, rows)

    def summary(self) -> str:
        """Return the best trial, the error of the config's own values, and the command that trains the best in full."""
        counts = {name: len(self.trials_in(state)) for state, name in STATES.items()}
        counted = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        lines = [f"study {self.study.study_name}: {counted} of {self.trials} trials"]
        if finished := self.trials_in(TrialState.COMPLETE):
            best = self.study.best_trial
            values = ", ".join(f"{key}={format_short(value)}" for key, value in best.params.items())
            default = [
                f"; the config's own values: {one.value:.2f} %" for one in finished if "default" in one.user_attrs
            ]
            lines.append(f"best: trial {best.number}, val/nme {best.value:.2f} % with {values}{''.join(default)}")
            overrides = training_overrides(space_overrides(self.space, best.params))
            lines.append(shlex.join(["python", "-m", "flr.train", *overrides]))
        return "\n\n".join(lines)

    def print(self) -> None:
        """Print the table and the summary."""
        print_table(self.table())
        print(self.summary().replace("\n\n", "\n"))
        print(f"run {self.tracker.run_id}  {self.folder}\n{self.tracker.pages()}")
