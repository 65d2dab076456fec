"""What is written to a run: sent at once, or kept in the run's folder until the tracking store takes it."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flr.errors import UserError
from flr.files import writing
from flr.system import undisturbed
from flr.tracking.connection import PREFIX, first_line
from flr.tracking.registry import register

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAM_LIMIT = 6000  # MLflow's own, characters
RETRY_SECONDS = 10.0  # until a store that did not answer is asked again, and at least ten times what asking took


class Outbox:
    """The letters to a run, delivered in their order; an outage of the store stops no training and loses none.

    Args:
        client: of the store.
        uri: of the store.
        run_id: the run.
        folder: where letters wait while the store does not take them, ``RUN/outbox``; None raises its errors instead.
        back: called when the store takes letters again.
    """

    def __init__(
        self, client: "MlflowClient", uri: str, run_id: str, folder: Path | None = None,
        back: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.client, self.uri, self.run_id, self.folder, self._back = client, uri, run_id, folder, back
        self.letters: list[dict[str, Any]] = []
        self.away = False
        self._again = 0.0
        self._numbers = count()
        self._list = f"letters-{time.time_ns()}.jsonl"  # what another process has left stays

    @classmethod
    def left_in(cls, client: "MlflowClient", uri: str, run_id: str, file: Path) -> "Outbox":
        """What an earlier process could not deliver.

        Raises:
            UserError: its list is damaged, or names files that are not the run's.
        """
        folder = file.parent
        box = cls(client, uri, run_id, folder)
        box._list, box.away = file.name, True
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            # The last line may have been cut by a kill.
            box.letters = [json.loads(line) for line in lines if line.endswith("}")]
            paths = [Path(letter["path"]).resolve() for letter in box.letters if "path" in letter]
            if not all(path.is_relative_to(folder.parent.resolve()) for path in paths):
                raise ValueError("it names a file outside the run's folder")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)}); remove {folder} to give it up") from error
        return box

    def post(self, kind: str, **about: Any) -> None:
        """Send a letter, or keep it: ``metrics`` rows, ``params``, ``tag``, ``untag``, ``file``, ``image``,
        ``dataset``, ``register``, ``end``."""
        self.letters.append({"kind": kind, **about})
        if not self.away or time.monotonic() >= self._again:
            self.deliver()
        elif self.folder:
            with contextlib.suppress(OSError), (self.folder / self._list).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.letters[-1]) + "\n")

    def write(self, kind: str, name: str, save: Callable[[Path], object], **about: Any) -> None:
        """Post a file that is made for it.

        Args:
            kind: ``file`` or ``image``.
            name: of the artifact, with its folder.
            save: writes it to a path.
            about: the letter.
        """
        import tempfile

        holder = Path(tempfile.mkdtemp(prefix="flr-")) if self.folder is None else self._slot()
        path = holder / Path(name).name
        try:
            save(path)
            folder = str(Path(name).parent) if Path(name).parent != Path() else None
            self.post(kind, path=str(path), **({"folder": folder} if kind == "file" else about))
        finally:
            if self.folder is None or not self.letters:
                shutil.rmtree(holder, ignore_errors=True)

    def _slot(self) -> Path:
        assert self.folder
        while (slot := self.folder / str(next(self._numbers))).exists():
            pass  # of an earlier process
        slot.mkdir(parents=True)
        return slot

    def deliver(self) -> bool:
        """Send what waits; whether all is gone."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        while self.letters:
            began = time.monotonic()
            try:
                with undisturbed():  # an open transaction would lock the database
                    self._send(self.letters[0])
                    sent = self.letters.pop(0)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if self.folder is None:
                    self.letters.clear()
                    raise
                if not self.away:
                    print(
                        f"flr: the tracking store does not take what is sent to run {self.run_id}, which goes on and "
                        f"keeps it in {self.folder} ({first_line(error)})",
                        file=sys.stderr,
                    )
                self.away = True
                now = time.monotonic()
                self._again = now + max(RETRY_SECONDS, 10 * (now - began))
                self._keep()
                return False
            if self.folder and self.folder in Path(str(sent.get("path", ""))).parents:
                shutil.rmtree(Path(sent["path"]).parent, ignore_errors=True)
        if self.folder:
            if self.away:
                (self.folder / self._list).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not there, or another process has left something in it
                self.folder.rmdir()
        if self.away:
            self.away = False
            print(f"flr: the tracking store has taken all that waited for run {self.run_id}", file=sys.stderr)
            self._back()
        return True

    def _keep(self) -> None:
        assert self.folder
        try:
            with writing(self.folder / self._list) as aside:
                aside.write_text("".join(json.dumps(letter) + "\n" for letter in self.letters), encoding="utf-8")
        except UserError as error:  # the same full disk, perhaps
            print(f"flr: what waits for run {self.run_id} is in memory alone: {error}", file=sys.stderr)

    def _send(self, letter: Mapping[str, Any]) -> None:
        client, run_id = self.client, self.run_id
        match letter:
            case {"kind": "metrics", "rows": rows}:
                from mlflow.entities import Metric

                for first in range(0, len(rows), 1000):
                    client.log_batch(run_id, metrics=[Metric(*row) for row in rows[first : first + 1000]])
            case {"kind": "params", "values": values}:
                from mlflow.entities import Param

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
                from PIL import Image

                with Image.open(path) as image:
                    client.log_image(run_id, image, key=key, step=step, timestamp=when)
            case {"kind": "dataset", "name": name, "digest": digest, "source": source, "profile": profile}:
                from mlflow.entities import Dataset, DatasetInput, InputTag

                row = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
                client.log_inputs(run_id, [DatasetInput(row, [InputTag("mlflow.data.context", "training")])])
            case {"kind": "register", "name": name, "points": points, "tags": tags, "more": more}:
                try:
                    number = register(client, self.uri, run_id, name, points, tags, tuple(more))
                except Exception as error:  # each kind of store has its own
                    client.get_run(run_id)  # raises where it is the store that is away
                    print(
                        f"flr: no model version of {name}, the registry does not take it ({first_line(error)})",
                        file=sys.stderr,
                    )
                else:
                    print(f"model models:/{name}/{number}")
            case {"kind": "end", "status": status, "time": when}:
                client.set_terminated(run_id, status, when)
            case _:
                raise UserError(f"{self.folder}: a letter of an unknown kind; remove that folder to give it up")
