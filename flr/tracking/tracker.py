"""Every run in MLflow. The only module that writes there; mlflow is imported when a run starts, not before."""

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
from PIL import Image
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from flr.errors import UserError
from flr.tracking.connection import PREFIX, connect, first_line, one_at_a_time, permitted
from flr.tracking.provenance import process_alive, process_tag
from flr.tracking.queue import Outbox
from flr.tracking.registry import MODEL_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIBED = 4900  # characters of a description: tags of some servers take 5000
FLUSH_SECONDS = 5.0
# Tells the MLflow UI to show training charts for this experiment, not chat traces.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}


class Tracker(Logger):
    """One run: metrics in batches, everything else as it comes. Does nothing on ranks other than 0.

    Args:
        uri: of the tracking store; see `connect`.
        experiment: the MLflow experiment's name, created where there is none.
        artifacts: where the embedded store keeps artifacts; a server decides for itself.
        system_metrics: whether CPU, memory, disk and GPU use are sampled.
        register: whether a finished run becomes a model version, named by its data and net; or that name.

    Raises:
        UserError: no model can have that name.
    """

    def __init__(
        self, uri: str, experiment: str, artifacts: Path, system_metrics: bool = True, register: bool | str = True
    ) -> None:
        super().__init__()
        if isinstance(register, str) and not re.fullmatch(MODEL_NAME, register):
            raise UserError(
                f"tracking.register={register}: a model's name is made of letters, digits, blanks and . _ - alone"
            )
        self.register_as = register
        self.uri, self.experiment, self.artifacts, self.system_metrics = uri, experiment, artifacts, system_metrics
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._pending: list[tuple[str, float, int, int]] = []
        self._box: Outbox
        self._flushed = time.monotonic()
        self._monitor: Any = None
        self.run_id = ""

    # -- a run's life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, make the experiment, and close what dead processes of this host left running."""
        self.client = connect(self.uri)
        local = self.uri.startswith("sqlite:///")
        with one_at_a_time(self.uri), permitted(self.uri, f"tracking.experiment={self.experiment}"):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                location = (self.artifacts.absolute() / self.experiment).as_uri() if local else None
                self.experiment_id = self.client.create_experiment(self.experiment, location, TRAINING)
            elif found.lifecycle_stage != "active":
                raise UserError(
                    f"tracking.experiment={self.experiment} is deleted in MLflow; restore it or name another"
                )
            else:
                self.experiment_id = found.experiment_id
                # An account that may only read is told now, not when the data are prepared.
                for key, value in TRAINING.items() if not local else ():
                    self.client.set_experiment_tag(self.experiment_id, key, found.tags.get(key, value))
        self._deliver_left()
        self._close_dead()

    def _deliver_left(self) -> None:
        """Send what runs whose process has ended could not, where it was for this store."""
        for file in sorted((self.artifacts.absolute().parent / "runs").glob("*/outbox/letters*.jsonl")):
            folder = file.parent.parent
            try:
                note = json.loads((folder / "run.json").read_text(encoding="utf-8"))
                if note["uri"] != self.uri:
                    continue
                with FileLock(folder / "run.lock", timeout=0):
                    box = Outbox.left_in(self.client, self.uri, note["run_id"], file)
                    if not box.deliver():
                        print(
                            f"flr: {file.parent}: the tracking store refuses it; remove it to give it up",
                            file=sys.stderr,
                        )
            except Timeout:
                continue  # its process sees to it
            except (OSError, ValueError, KeyError, UserError) as error:
                print(f"flr: {file}: not delivered ({first_line(error)})", file=sys.stderr)

    def _close_dead(self) -> None:
        me = process_tag()
        query = f"attributes.status = 'RUNNING' and tags.`{PREFIX}host` = '{me['host']}'"
        for run in self.client.search_runs([self.experiment_id], query):
            if not process_alive(run.data.tags.get(f"{PREFIX}process", "")):
                run_id = run.info.run_id
                if folder := run.data.tags.get(f"{PREFIX}folder"):
                    self.keep_checkpoints(Path(folder), run_id)
                self.client.set_tag(run_id, f"{PREFIX}end", "its process died")
                # Several ranks all end when one is lost: a failure, as where rank 0 is left to say so.
                self.client.set_terminated(run_id, "FAILED" if f"{PREFIX}ranks" in run.data.tags else "KILLED")

    def keep_checkpoints(self, folder: Path, run_id: str | None = None) -> None:
        """Both checkpoints of a run that was stopped, so that it can go on where its folder is not."""
        box = Outbox(self.client, self.uri, run_id, folder / "outbox") if run_id else self._box
        for name in ("best.ckpt", "last.ckpt"):
            path = folder / "checkpoints" / name
            if path.is_file():
                box.post("file", path=str(path), folder="checkpoints")

    def start(self, name: str, tags: Mapping[str, str], run_id: str | None = None, parent: str | None = None) -> str:
        """Create a run, below `parent` where one is given, or go on with `run_id`; returns its id."""
        tags = {**{PREFIX + key: value for key, value in {**tags, **process_tag()}.items()}}
        if parent:
            tags["mlflow.parentRunId"] = parent
        if run_id is None:
            run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
            self.run_id = run.info.run_id
        else:
            self.run_id = run_id
            self.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
            self._read_history()
        self._box = Outbox(self.client, self.uri, self.run_id, back=self._sample)
        if run_id is not None:
            self.untag("end", "exit")
        self._sample(run_id is not None)
        return self.run_id

    def wait_in(self, folder: Path) -> None:
        """From here on an outage stops nothing: what the store does not take waits in a folder of the run."""
        self._box.folder = folder

    def _sample(self, resume: bool = True) -> None:
        """Sample the system in a thread, which ends for good when the store does not answer."""
        if self.system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=resume)
            self._monitor.start()

    def attach(self, run_id: str) -> None:
        """Write to a run without changing its status."""
        self.client, self.run_id = connect(self.uri), run_id
        self._box = Outbox(self.client, self.uri, run_id)

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
            self.save()
            self._box.post("end", status=status, time=_now())
            if not self._box.deliver():
                with contextlib.suppress(Exception):  # where only its artifacts are refused
                    self.client.set_terminated(self.run_id, status)
                print(
                    f"flr: the tracking store still does not take what waits in {self._box.folder}; the next flr.train "
                    "with this tracking.uri and paths.output_dir delivers it",
                    file=sys.stderr,
                )

    # -- what a run holds ------------------------------------------------------------------------------------------

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters, unclipped up to MLflow's limit. Known ones are left: MLflow refuses to change a parameter."""
        self._box.post("params", values={key: str(value) for key, value in values.items()})

    def tag(self, **tags: str) -> None:
        for key, value in tags.items():
            self._box.post("tag", key=PREFIX + key, value=value)

    def untag(self, *keys: str) -> None:
        self._box.post("untag", keys=list(keys))

    def describe(self, markdown: str) -> None:
        """What MLflow's page of the run begins with; cut after a line where the store would not take more."""
        if len(markdown) > DESCRIBED:
            markdown = f"{markdown[:DESCRIBED].rpartition(chr(10))[0]}\n\n..."
        self._box.post("tag", key="mlflow.note.content", value=markdown)

    def discard(self) -> None:
        """Delete the run, as MLflow does: it can be restored."""
        self.client.delete_run(self.run_id)

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """The data set that the run learns from, in MLflow's own place for it."""
        self._box.post("dataset", name=name, digest=digest, source=source, profile=dict(profile))

    def text(self, text: str, path: str) -> None:
        self._box.write("file", path, lambda file: file.write_text(text, encoding="utf-8"))

    def file(self, path: Path, folder: str | None = None) -> None:
        self._box.post("file", path=str(path), folder=folder)

    def figure(self, fig: "Figure", path: str) -> None:
        self._box.write("file", path, fig.savefig)

    def picture(self, image: np.ndarray, path: str) -> None:
        """A picture (H, W, 3) RGB uint8 as an artifact."""
        self._box.write("file", path, Image.fromarray(image).save)

    def picture_of_step(self, image: np.ndarray, key: str, step: int) -> None:
        """A picture (H, W, 3) RGB uint8 for MLflow's image grid, by step."""
        self._box.write("image", f"{key}.png", Image.fromarray(image).save, key=key, step=step, time=_now())

    def register(self, name: str, points: int, tags: Mapping[str, str], more: tuple[str, ...] = ()) -> None:
        """Make the uploaded best checkpoint a model version (see `flr.tracking.registry.register`).

        A registry that fails is told in a line and fails no run: all that the version points to is in the run.

        Args:
            name: of the registered model where ``tracking.register`` gives none.
            points: K.
            tags: of the version.
            more: packages that this net runs on beside the usual.
        """
        if not self.register_as:
            return
        name = self.register_as if isinstance(self.register_as, str) else re.sub(r"[^\w. -]+", "-", name)[:200]
        self._box.post("register", name=name, points=points, tags=dict(tags), more=list(more))

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
            self._box.post("metrics", rows=self._pending)
            self._pending = []
        self._flushed = time.monotonic()


def _now() -> int:
    return int(time.time() * 1000)
