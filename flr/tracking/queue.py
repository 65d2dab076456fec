"""Write to a run in MLflow, and queue in the run's folder what the tracking store does not take."""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from PIL import Image, UnidentifiedImageError
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from flr.errors import UserError
from flr.files import write_file
from flr.system import defer_signals
from flr.tracking.connection import PREFIX, first_line
from flr.tracking.registry import register

PARAM_LIMIT = 6000  # MLflow's own, characters
# MLflow's codes for an item that it will never take. BAD_REQUEST is also its word for a database that is damaged.
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")
RETRY_SECONDS = 10.0  # until a store that did not answer is asked again, and at least ten times what asking took


class OfflineQueue:
    """Items for a run, sent in their order. An outage of the store stops no training and loses no item.

    An item that the store refuses for its own sake, or whose file is missing, is reported and dropped: it would block
    all items behind it.

    Args:
        client: Client of the store.
        uri: Address of the store.
        run_id: The run.
        folder: Where items wait while the store does not take them, ``RUN/queue``; None to raise its errors instead.
        on_return: Called when the store takes items again.
    """

    def __init__(
        self, client: MlflowClient, uri: str, run_id: str, folder: Path | None = None,
        on_return: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.client, self.uri, self.run_id, self.folder, self._on_return = client, uri, run_id, folder, on_return
        self.items: list[dict[str, Any]] = []
        self.offline = False
        self._retry_at = 0.0
        self._numbers = count()
        self._journal = f"items-{time.time_ns()}.jsonl"  # those of other processes stay

    @classmethod
    def from_file(cls, client: MlflowClient, uri: str, run_id: str, file: Path) -> "OfflineQueue":
        """Read what an earlier process could not send.

        Raises:
            UserError: The file is damaged, or names files that are not the run's.
        """
        folder = file.parent
        queue = cls(client, uri, run_id, folder)
        queue._journal, queue.offline = file.name, True
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            queue.items = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
            for item in queue.items:
                path = Path(item.get("path", folder)).resolve()
                if not path.is_relative_to(folder.parent.resolve()):
                    if run_id not in path.parts:
                        raise ValueError("it names a file outside the run's folder")
                    # The output folder was moved.
                    item["path"] = str(folder.parent.joinpath(*path.parts[path.parts.index(run_id) + 1 :]))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"cannot be read ({first_line(error)}); remove {folder} to give it up") from error
        return queue

    def enqueue(self, kind: str, **values: Any) -> None:
        """Send an item, or keep it. See `_send` for the kinds."""
        self.items.append({"kind": kind, **values})
        if not self.offline or time.monotonic() >= self._retry_at:
            self.flush()
        elif self.folder:
            with contextlib.suppress(OSError), (self.folder / self._journal).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.items[-1]) + "\n")

    def enqueue_new_file(self, kind: str, name: str, save: Callable[[Path], object], **values: Any) -> None:
        """Write a file and enqueue it.

        Args:
            kind: ``file`` or ``image``.
            name: Path of the artifact in the run.
            save: Writes the file to a path.
            values: The rest of the item.
        """
        folder = self._new_folder() if self.folder else Path(tempfile.mkdtemp(prefix="flr-"))
        path = folder / Path(name).name
        try:
            save(path)
            if kind == "file":
                values["folder"] = str(Path(name).parent) if Path(name).parent != Path() else None
            self.enqueue(kind, path=str(path), **values)
        finally:
            if self.folder is None or not self.items:
                shutil.rmtree(folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        assert self.folder
        while (folder := self.folder / str(next(self._numbers))).exists():
            pass  # of an earlier process
        folder.mkdir(parents=True)
        return folder

    def flush(self) -> bool:
        """Send what waits; return whether all was taken."""
        while self.items:
            began = time.monotonic()
            try:
                with defer_signals():  # an open transaction would lock the database
                    self._send(self.items[0])
                    sent = self.items.pop(0)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if self.folder is None:
                    self.items.clear()
                    raise
                if self._is_refused(self.items[0], error):
                    self._drop(error)
                    continue
                self._go_offline(error, time.monotonic() - began)
                return False
            if self.folder and self.folder in Path(str(sent.get("path", ""))).parents:
                shutil.rmtree(Path(sent["path"]).parent, ignore_errors=True)
        if self.folder:
            if self.offline:
                (self.folder / self._journal).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not there, or another process has left something in it
                self.folder.rmdir()
        if self.offline:
            self.offline = False
            print(f"flr: the tracking store has taken all that waited for run {self.run_id}", file=sys.stderr)
            self._on_return()
        return True

    def _is_refused(self, item: Mapping[str, Any], error: Exception) -> bool:
        """Return whether a store that takes other items of this run will never take this one."""
        if isinstance(error, OSError) and "path" in item:
            return not Path(item["path"]).is_file() or isinstance(error, UnidentifiedImageError)
        of_item = isinstance(error.__cause__, DataError | IntegrityError)
        if not isinstance(error, MlflowException) or not (of_item or error.error_code in REFUSED):
            return False
        try:  # nothing is refused for its own sake while the run is deleted
            return self.client.get_run(self.run_id).info.lifecycle_stage == "active"
        except (MlflowException, SQLAlchemyError, OSError):
            return False

    def _drop(self, error: Exception) -> None:
        """Take the first item apart, so that its other metrics or parameters are sent, or give it up."""
        parts = _parts(self.items[0])
        if len(parts) > 1:
            self.items[:1] = parts
            return
        item = self.items.pop(0)
        what = next((item[key] for key in ("path", "key", "name") if key in item), None) or _names(item)
        print(f"flr: run {self.run_id} goes without {item['kind']} {what}: {first_line(error)}", file=sys.stderr)

    def _go_offline(self, error: Exception, seconds: float) -> None:
        """Write the items to the run's folder, and set the time of the next attempt by how long this one took."""
        assert self.folder
        if not self.offline:
            print(
                f"flr: the tracking store does not take what is sent to run {self.run_id}, which continues and keeps it "
                f"in {self.folder} ({first_line(error)})",
                file=sys.stderr,
            )
        self.offline = True
        self._retry_at = time.monotonic() + max(RETRY_SECONDS, 10 * seconds)
        try:
            write_file(self.folder / self._journal, "".join(json.dumps(item) + "\n" for item in self.items))
        except UserError as full_disk:
            print(f"flr: what waits for run {self.run_id} is only in memory: {full_disk}", file=sys.stderr)

    def _send(self, item: Mapping[str, Any]) -> None:
        client, run_id = self.client, self.run_id
        match item:
            case {"kind": "metrics", "rows": rows}:
                for first in range(0, len(rows), 1000):
                    client.log_batch(run_id, metrics=[Metric(*row) for row in rows[first : first + 1000]])
            case {"kind": "params", "values": values}:
                known = client.get_run(run_id).data.params  # which MLflow refuses to change
                new = [Param(key, value[:PARAM_LIMIT]) for key, value in values.items() if key not in known]
                for first in range(0, len(new), 100):
                    client.log_batch(run_id, params=new[first : first + 100])
            case {"kind": "tag", "key": key, "value": value}:
                client.set_tag(run_id, key, value)
            case {"kind": "untag", "keys": keys}:
                for key in {PREFIX + key for key in keys} & set(client.get_run(run_id).data.tags):
                    client.delete_tag(run_id, key)
            case {"kind": "file", "path": path, "folder": folder}:
                client.log_artifact(run_id, path, folder)
            case {"kind": "image", "path": path, "key": key, "step": step, "time": when}:
                with Image.open(path) as image:
                    client.log_image(run_id, image, key=key, step=step, timestamp=when)
            case {"kind": "dataset", "name": name, "digest": digest, "source": source, "profile": profile}:
                row = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
                client.log_inputs(run_id, [DatasetInput(row, [InputTag("mlflow.data.context", "training")])])
            case {"kind": "register", "name": name, "points": points, "tags": tags, "more": packages}:
                self._register(name, points, tags, tuple(packages))
            case {"kind": "end", "status": status, "time": when}:
                client.set_terminated(run_id, status, when)
            case _:
                raise UserError(f"{self.folder}: an item of an unknown kind; remove that folder to give it up")

    def _register(self, name: str, points: int, tags: Mapping[str, str], packages: tuple[str, ...]) -> None:
        try:
            number = register(self.client, self.uri, self.run_id, name, points, tags, packages)
        except Exception as error:  # each kind of store has its own
            self.client.get_run(self.run_id)  # raises where the whole store does not answer
            reason = first_line(error)
            print(f"flr: no model version of {name}, the registry does not take it ({reason})", file=sys.stderr)
        else:
            print(f"model models:/{name}/{number}")


def _names(item: Mapping[str, Any]) -> str:
    """Return the names of the metrics or parameters of an item."""
    return ", ".join(dict.fromkeys(row[0] for row in item.get("rows", ())) or item.get("values", ()))


def _parts(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split an item into one for each metric or parameter."""
    match item:
        case {"kind": "metrics", "rows": rows}:
            names = dict.fromkeys(row[0] for row in rows)
            return [{"kind": "metrics", "rows": [row for row in rows if row[0] == name]} for name in names]
        case {"kind": "params", "values": values}:
            return [{"kind": "params", "values": {key: value}} for key, value in values.items()]
    return [dict(item)]
