"""Every run in MLflow. The only module that writes there; mlflow is imported when a run starts, not before."""

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from flr.errors import UserError
from flr.tracking.provenance import process_alive, process_tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

PARAM_LIMIT = 6000  # MLflow's own, characters
FLUSH_SECONDS = 5.0
SPACE = 64 << 20  # bytes that a new database and a small checkpoint need
# Tells the MLflow UI to show training charts for this experiment, not chat traces.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
PREFIX = "flr."  # of the project's own tags


def connect(uri: str) -> "MlflowClient":
    """A client of a tracking store that has been seen to answer.

    Args:
        uri: ``sqlite:///`` and an absolute path, or the address of an ``mlflow server``.

    Raises:
        UserError: nothing answers there, or the database's folder cannot be written.
    """
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            answer = requests.get(uri.rstrip("/") + "/health", timeout=5)
            if answer.status_code >= 500:
                raise requests.RequestException(f"status {answer.status_code}")
        except requests.RequestException as error:
            reason = type(error).__name__ if not error.args else str(error.args[0])[:120]
            raise UserError(
                f"tracking.uri={uri}: no MLflow server answers ({reason}); start it or set another"
            ) from error
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.is_absolute():
            raise UserError(f"tracking.uri={uri}: name the database by an absolute path, sqlite:////folder/mlflow.db")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # MLflow would try for minutes to open a database that cannot be opened.
            with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
                database.execute("BEGIN IMMEDIATE")
                tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            free = shutil.disk_usage(path.parent).free
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"tracking.uri={uri}: cannot be written ({error}); set paths.output_dir or another"
            ) from error
        if tables and "alembic_version" not in tables:
            raise UserError(f"tracking.uri={uri}: a database of another application; name a file of its own")
        if free < SPACE:
            raise UserError(f"tracking.uri={uri}: only {free >> 20} MiB free there; free space or set paths.output_dir")
    elif "://" not in uri or uri.startswith("file:"):
        raise UserError(f"tracking.uri={uri}: MLflow's file store is gone; use sqlite:////folder/mlflow.db or a server")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    # MLflow reports each migration of a new database; a user of the embedded one asked for none of it.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        with _one_at_a_time(uri):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's and MLflow's own kinds, by the store
        raise UserError(
            f"tracking.uri={uri}: cannot be opened ({_first_line(error)}); mend it or set another"
        ) from error
    return client


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Two processes that make the tables of one new sqlite file at once break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        with FileLock(path.with_suffix(".lock")):
            yield
    except OSError as error:
        raise UserError(f"tracking.uri={uri}: cannot be written ({error.strerror}); set another") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Tracker(Logger):
    """One run: metrics in batches, everything else as it comes. Does nothing on ranks other than 0.

    Args:
        uri: of the tracking store; see `connect`.
        experiment: the MLflow experiment's name, created where there is none.
        artifacts: where the embedded store keeps artifacts; a server decides for itself.
        system_metrics: whether CPU, memory, disk and GPU use are sampled.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path, system_metrics: bool = True) -> None:
        super().__init__()
        self.uri, self.experiment, self.artifacts, self.system_metrics = uri, experiment, artifacts, system_metrics
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._pending: list[Any] = []
        self._flushed = time.monotonic()
        self._monitor: Any = None
        self.run_id = ""

    # -- a run's life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, make the experiment, and close what dead processes of this host left running."""
        self.client = connect(self.uri)
        with _one_at_a_time(self.uri):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                local = self.uri.startswith("sqlite:///")
                location = (self.artifacts.absolute() / self.experiment).as_uri() if local else None
                self.experiment_id = self.client.create_experiment(self.experiment, location, TRAINING)
            elif found.lifecycle_stage != "active":
                raise UserError(
                    f"tracking.experiment={self.experiment} is deleted in MLflow; restore it or name another"
                )
            else:
                self.experiment_id = found.experiment_id
        self._close_dead()

    def _close_dead(self) -> None:
        me = process_tag()
        query = f"attributes.status = 'RUNNING' and tags.`{PREFIX}host` = '{me['host']}'"
        for run in self.client.search_runs([self.experiment_id], query):
            if not process_alive(run.data.tags.get(f"{PREFIX}process", "")):
                run_id = run.info.run_id
                self.keep_checkpoints(Path(run.data.tags.get(f"{PREFIX}folder", "")), run_id)
                self.client.set_tag(run_id, f"{PREFIX}end", "its process died")
                self.client.set_terminated(run_id, "KILLED")

    def keep_checkpoints(self, folder: Path, run_id: str | None = None) -> None:
        """Both checkpoints of a run that was stopped, so that it can go on where its folder is not."""
        for name in ("best.ckpt", "last.ckpt"):
            path = folder / "checkpoints" / name
            if path.is_file():
                self.client.log_artifact(run_id or self.run_id, str(path), "checkpoints")

    def start(self, name: str, tags: Mapping[str, str], run_id: str | None = None) -> str:
        """Create a run, or go on with `run_id`; returns its id."""
        tags = {**{PREFIX + key: value for key, value in {**tags, **process_tag()}.items()}}
        if run_id is None:
            run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
            self.run_id = run.info.run_id
        else:
            self.run_id = run_id
            self.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
            self._read_history()
        if self.system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=run_id is not None)
            self._monitor.start()
        return self.run_id

    def attach(self, run_id: str) -> None:
        """Write to a run without changing its status."""
        self.client, self.run_id = connect(self.uri), run_id

    def _read_history(self) -> None:
        for name in self.client.get_run(self.run_id).data.metrics:
            if not name.startswith("system/"):
                rows = self.client.get_metric_history(self.run_id, name)
                self.history[name] = sorted((row.step, row.value) for row in rows)

    def end(self, status: str) -> None:
        """Deliver what is pending and set the status: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if self.run_id:
            self.flush()
            self.client.set_terminated(self.run_id, status)

    # -- what a run holds ------------------------------------------------------------------------------------------

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters, unclipped up to MLflow's limit. Known ones are left: MLflow refuses to change a parameter."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        rows = [Param(key, str(value)[:PARAM_LIMIT]) for key, value in values.items() if key not in known]
        for first in range(0, len(rows), 100):
            self.client.log_batch(self.run_id, params=rows[first : first + 100])

    def tag(self, **tags: str) -> None:
        for key, value in tags.items():
            self.client.set_tag(self.run_id, PREFIX + key, value)

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """The data set that the run learns from, in MLflow's own place for it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        row = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
        self.client.log_inputs(self.run_id, [DatasetInput(row, [InputTag("mlflow.data.context", "training")])])

    def text(self, text: str, path: str) -> None:
        self.client.log_text(self.run_id, text, path)

    def file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def figure(self, fig: "Figure", path: str) -> None:
        self.client.log_figure(self.run_id, fig, path)

    def picture(self, image: np.ndarray, path: str) -> None:
        """A picture (H, W, 3) RGB uint8 as an artifact."""
        self.client.log_image(self.run_id, image, path)

    def picture_of_step(self, image: np.ndarray, key: str, step: int) -> None:
        """A picture (H, W, 3) RGB uint8 for MLflow's image grid, by step."""
        self.client.log_image(self.run_id, image, key=key, step=step)

    # -- Lightning's logger ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.experiment

    @property
    def version(self) -> str:
        return self.run_id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the composed config is logged once, by `params`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in metrics.items():
            number = float(value)
            if np.isfinite(number):  # MLflow stores inf as 1.8e308 and cannot plot NaN
                self.history[key].append((step or 0, number))
                self._pending.append(Metric(key, number, now, step or 0))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Send what is pending, as Lightning asks at the end of an epoch; what cannot be sent now waits."""
        try:
            self.flush()
        except Exception as error:  # a busy database or a server that is away: the training need not know
            self._flushed = time.monotonic()
            print(f"flr: metrics wait, the tracking store does not take them ({_first_line(error)})", file=sys.stderr)

    def flush(self) -> None:
        """Send the pending metrics."""
        while self._pending:
            self.client.log_batch(self.run_id, metrics=self._pending[:1000])
            del self._pending[:1000]
        self._flushed = time.monotonic()
