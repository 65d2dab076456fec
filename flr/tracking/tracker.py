"""Write a run to MLflow."""

import contextlib
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from PIL import Image
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from flr.errors import UserError
from flr.tracking.connection import PREFIX, SQLITE, connect, database_lock, first_line, knows_run, translate_auth_errors
from flr.tracking.pages import VIEW_TAG, experiment_page, run_page, server_hint, view_state
from flr.tracking.provenance import process_alive, process_tag, source_tags
from flr.tracking.queue import OfflineQueue
from flr.tracking.registry import MODEL_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DESCRIPTION = 4900  # characters: tags of some servers take 5000
FLUSH_SECONDS = 5.0
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: view_state()}


class Tracker(Logger):
    """Lightning logger of one run. Metrics are sent in batches; ranks other than 0 send nothing.

    Args:
        uri: Address of the tracking store (see `connect`).
        experiment: Name of the MLflow experiment, which is created where it is missing.
        artifacts: Folder of the embedded store's artifacts; a server has its own.
        system_metrics: Whether CPU, memory, disk and GPU use are sampled.
        register: Whether a finished run becomes a model version, named by its data and model; or that name.

    Raises:
        UserError: No model can have that name.
    """

    def __init__(
        self, uri: str, experiment: str, artifacts: Path, system_metrics: bool = True, register: bool | str = True
    ) -> None:
        super().__init__()
        if isinstance(register, str) and not re.fullmatch(MODEL_NAME, register):
            raise UserError(f"tracking.register={register}: a model's name has only letters, digits, blanks and . _ -")
        self.register_as = register
        self.uri, self.experiment, self.artifacts, self.system_metrics = uri, experiment, artifacts, system_metrics
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._pending: list[tuple[str, float, int, int]] = []
        self._queue: OfflineQueue
        self._flushed = time.monotonic()
        self._monitor: Any = None
        self.run_id = ""

    # -- a run's life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, create the experiment, and close the runs of dead processes of this host."""
        self.client = connect(self.uri)
        local = self.uri.startswith(SQLITE)
        with database_lock(self.uri), translate_auth_errors(self.uri, f"tracking.experiment={self.experiment}"):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                location = (self.artifacts.absolute() / self.experiment).as_uri() if local else None
                self.experiment_id = self.client.create_experiment(self.experiment, location, EXPERIMENT_TAGS)
            elif found.lifecycle_stage != "active":
                raise UserError(
                    f"tracking.experiment={self.experiment} is deleted in MLflow; restore it or name another"
                )
            else:
                self.experiment_id = found.experiment_id
                # An account that may only read is refused now, before the data are prepared.
                for key, value in EXPERIMENT_TAGS.items():
                    if not local or found.tags.get(key) != value:
                        self.client.set_experiment_tag(self.experiment_id, key, value)
        self._flush_left_queues()
        self._close_dead()

    def _flush_left_queues(self) -> None:
        """Send what runs of ended processes could not send to this store."""
        runs = self.artifacts.absolute().parent / "runs"
        for file in sorted([*runs.glob("*/queue/*.jsonl"), *runs.glob("*/outbox/*.jsonl")]):  # outbox: of flr 0.1
            folder = file.parent.parent
            try:
                note = json.loads((folder / "run.json").read_text(encoding="utf-8"))
                if note["uri"] != self.uri and (
                    knows_run(note["uri"], note["run_id"]) or not knows_run(self.uri, note["run_id"])
                ):
                    continue
                with FileLock(folder / "run.lock", timeout=0):
                    if not OfflineQueue.from_file(self.client, self.uri, note["run_id"], file).flush():
                        raise UserError(f"the tracking store refuses it; remove {file.parent} to give it up")
            except Timeout:
                continue  # its process still runs
            except (OSError, ValueError, KeyError, UserError) as error:
                print(f"flr: {file}: not sent ({first_line(error)})", file=sys.stderr)

    def _close_dead(self) -> None:
        me = process_tag()
        query = f"attributes.status = 'RUNNING' and tags.`{PREFIX}host` = '{me['host']}'"
        for run in self.client.search_runs([self.experiment_id], query):
            if not process_alive(run.data.tags.get(f"{PREFIX}process", "")):
                run_id = run.info.run_id
                if folder := run.data.tags.get(f"{PREFIX}folder"):
                    self.upload_checkpoints(Path(folder), run_id)
                self.client.set_tag(run_id, f"{PREFIX}end", "its process died")
                # All ranks end when one dies, and a living rank 0 reports that as a failure.
                self.client.set_terminated(run_id, "FAILED" if f"{PREFIX}ranks" in run.data.tags else "KILLED")

    def upload_checkpoints(self, folder: Path, run_id: str | None = None) -> None:
        """Upload both checkpoints of a stopped run, so that it can resume without its folder."""
        queue = OfflineQueue(self.client, self.uri, run_id, folder / "queue") if run_id else self._queue
        for name in ("best.ckpt", "last.ckpt"):
            path = folder / "checkpoints" / name
            if path.is_file():
                queue.enqueue("file", path=str(path), folder="checkpoints")

    def start(self, name: str, tags: Mapping[str, str], run_id: str | None = None, parent: str | None = None) -> str:
        """Create a run, below `parent` where one is given, or resume `run_id`; return its id."""
        tags = {PREFIX + key: value for key, value in {**tags, **process_tag()}.items()}
        if parent:
            tags["mlflow.parentRunId"] = parent
        if run_id is None:
            tags |= source_tags(tags.get(f"{PREFIX}commit", ""))
            run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
            self.run_id = run.info.run_id
        else:
            self.run_id = run_id
            self.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
            self._read_history()
        self._queue = OfflineQueue(self.client, self.uri, self.run_id, on_return=self._sample_system)
        if run_id is not None:
            self.untag("end", "exit")
        self._sample_system(run_id is not None)
        return self.run_id

    def set_queue_dir(self, folder: Path) -> None:
        """Queue in a folder, from now on, what the store does not take."""
        self._queue.folder = folder

    def _sample_system(self, resume: bool = True) -> None:
        """Sample the system in a thread, which ends for good when the store does not answer."""
        if self.system_metrics:
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=resume)
            self._monitor.start()

    def attach(self, run_id: str) -> None:
        """Write to a run without changing its status."""
        self.client, self.run_id = connect(self.uri, create=False), run_id
        self._queue = OfflineQueue(self.client, self.uri, run_id)

    def _read_history(self) -> None:
        for name in self.client.get_run(self.run_id).data.metrics:
            if not name.startswith("system/"):
                rows = self.client.get_metric_history(self.run_id, name)
                self.history[name] = sorted((row.step, row.value) for row in rows)

    def end(self, status: str) -> None:
        """Send what is pending and set the status: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if self.run_id:
            self.save()
            self._queue.enqueue("end", status=status, time=_now())
            if not self.flush():
                with contextlib.suppress(Exception):  # works where only artifacts are refused
                    self.client.set_terminated(self.run_id, status)

    def flush(self) -> bool:
        """Send what is pending; return whether the store took it all."""
        self.save()
        sent = self._queue.flush()
        if not sent:
            print(
                f"flr: the tracking store still does not take what waits in {self._queue.folder}; the next flr.train "
                "with this tracking.uri and paths.output_dir sends it",
                file=sys.stderr,
            )
        return sent

    def pages(self) -> str:
        """Return where MLflow shows the run and its experiment, in lines."""
        lines = [
            f"MLflow run   {run_page(self.uri, self.experiment_id, self.run_id)}",
            f"MLflow runs  {experiment_page(self.uri, self.experiment_id)}",
        ]
        if hint := server_hint(self.uri):
            lines.append(f"             (after: {hint})")
        return "\n".join(lines)

    # -- what a run holds ------------------------------------------------------------------------------------------

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, cut at MLflow's limit. Those that the run has stay: MLflow refuses to change a parameter."""
        self._queue.enqueue("params", values={key: str(value) for key, value in values.items()})

    def tag(self, **tags: str) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._queue.enqueue("tag", key=PREFIX + key, value=value)

    def untag(self, *keys: str) -> None:
        """Delete tags."""
        self._queue.enqueue("untag", keys=list(keys))

    def describe(self, markdown: str) -> None:
        """Set the description on MLflow's page of the run, cut after a line where the store would not take more."""
        if len(markdown) > MAX_DESCRIPTION:
            markdown = f"{markdown[:MAX_DESCRIPTION].rpartition(chr(10))[0]}\n\n..."
        self._queue.enqueue("tag", key="mlflow.note.content", value=markdown)

    def discard(self) -> None:
        """Delete the run, as MLflow does: it can be restored."""
        self.client.delete_run(self.run_id)

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the training dataset as MLflow's dataset of the run."""
        self._queue.enqueue("dataset", name=name, digest=digest, source=source, profile=dict(profile))

    def text(self, text: str, path: str) -> None:
        """Log a text as an artifact."""
        self._queue.enqueue_new_file("file", path, lambda file: file.write_text(text, encoding="utf-8"))

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._queue.enqueue("file", path=str(path), folder=folder)

    def figure(self, fig: "Figure", path: str) -> None:
        """Log a figure as an artifact."""
        self._queue.enqueue_new_file("file", path, fig.savefig)

    def image(self, image: np.ndarray, path: str) -> None:
        """Log an image (H, W, 3) RGB uint8 as an artifact."""
        self._queue.enqueue_new_file("file", path, Image.fromarray(image).save)

    def image_of_step(self, image: np.ndarray, key: str, step: int) -> None:
        """Log an image (H, W, 3) RGB uint8 for MLflow's image grid, by step."""
        self._queue.enqueue_new_file(
            "image", f"{key}.png", Image.fromarray(image).save, key=key, step=step, time=_now()
        )

    def register(self, name: str, points: int, tags: Mapping[str, str], packages: tuple[str, ...] = ()) -> None:
        """Make the uploaded best checkpoint a model version (see `flr.tracking.registry.register`).

        A registry that fails is reported in one line and fails no run.
        """
        if not self.register_as:
            return
        name = self.register_as if isinstance(self.register_as, str) else re.sub(r"[^\w. -]+", "-", name)[:200]
        self._queue.enqueue("register", name=name, points=points, tags=dict(tags), more=list(packages))

    # -- Lightning's logger ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """MLflow's experiment."""
        return self.experiment

    @property
    def version(self) -> str:
        """Id of the run."""
        return self.run_id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the composed config is logged once, by `params`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the next batch."""
        now = _now()
        for key, value in metrics.items():
            number = float(value)
            if np.isfinite(number):  # MLflow stores inf as 1.8e308 and cannot plot NaN
                self.history[key].append((step or 0, number))
                self._pending.append((key, number, now, step or 0))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Send what is pending, as Lightning asks at the end of an epoch."""
        if self._pending:
            self._queue.enqueue("metrics", rows=self._pending)
            self._pending = []
        self._flushed = time.monotonic()


def _now() -> int:
    return int(time.time() * 1000)
