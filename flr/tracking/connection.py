"""The tracking store: reaching it, and reading runs back. Neither torch nor Lightning is needed for that."""

import contextlib
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flr.errors import UserError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPACE = 64 << 20  # bytes that a new database and a small checkpoint need
PREFIX = "flr."  # of the project's own tags
GRID = "grid"  # the tag that a sweep's own run has, beside those of its jobs
# A URI's part up to a password: before the last @ (an unescaped one may hold any sign), or among the query's words.
PASSWORD = re.compile(r"^(?!sqlite:)([^:]+://)(?:[^@]*:.*@|.*[?&]password=).*", re.DOTALL)


class Away(UserError):
    """A server that does not answer, and may do so later."""


def connect(uri: str, create: bool = True) -> "MlflowClient":
    """A client of a tracking store that has been seen to answer.

    Args:
        uri: ``sqlite:///`` and an absolute path, or the address of an ``mlflow server``.
        create: whether a database that is not there yet is made.

    Raises:
        Away: no server answers there.
        UserError: it does not take this account, the database's folder cannot be written, or
            `uri` holds a password, which would be kept with every run.
    """
    if secret := PASSWORD.match(uri):
        raise UserError(
            f"tracking.uri={secret[1]}...: holds a password, which would be kept with every run; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a PostgreSQL database: PGPASSWORD)"
        )
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            answer = requests.get(uri.rstrip("/") + "/health", timeout=5)
            if answer.status_code >= 500:
                raise requests.RequestException(f"status {answer.status_code}")
        except requests.RequestException as error:
            reason = type(error).__name__ if not error.args else str(error.args[0])[:120]
            raise Away(f"tracking.uri={uri}: no MLflow server answers ({reason}); start it or set another") from error
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.is_absolute():
            raise UserError(f"tracking.uri={uri}: name the database by an absolute path, sqlite:////folder/mlflow.db")
        if not create and not path.is_file():
            raise UserError(f"tracking.uri={uri}: no such database; set tracking.uri, or paths.output_dir of the runs")
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
    # MLflow would ask a server that is away for minutes; what it does not take waits in the outbox.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # MLflow reports each migration of a new database; a user of the embedded one asked for none of it.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.ERROR)
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        with one_at_a_time(uri), permitted(uri, "its experiments"):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's and MLflow's own kinds, by the store
        raise UserError(f"tracking.uri={uri}: cannot be opened ({first_line(error)}); fix it or set another") from error
    return client


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
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


@contextlib.contextmanager
def permitted(uri: str, what: str) -> Iterator[None]:
    """Tells what a server with accounts refuses as the user's error that it is.

    Args:
        uri: of the store.
        what: is read or written.
    """
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    try:
        yield
    except (MlflowException, HTTPError) as error:
        status = error.response.status_code if isinstance(error, HTTPError) else error.get_http_status_code()
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if status == 401:
            told = f"does not know {user} by this password" if user else "wants to know who you are"
            raise UserError(
                f"tracking.uri={uri}: the server {told}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        if status == 403:
            raise UserError(
                f"tracking.uri={uri}: {user or 'this account'} lacks the permission for {what}; ask an admin of the "
                "server for it, or name another"
            ) from error
        raise


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# -- reading runs back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredRun:
    """A run as the store keeps it.

    Attributes:
        run_id: its id.
        name: its name.
        status: ``FINISHED``, ``FAILED``, ``KILLED``, ``RUNNING`` or ``SCHEDULED``.
        tags: by name, the project's own without their prefix.
        params: the flattened config and what else was recorded once.
        metrics: the last value of each.
        minutes: wall time from its first start to its end; 0 where it has not ended.
        artifacts: the address of its files.
    """

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    minutes: float
    artifacts: str

    def get(self, key: str) -> str | None:
        """The tag of that name, or else the parameter."""
        return self.tags.get(key, self.params.get(key))


def find_runs(client: "MlflowClient", experiment: str, query: str, sweeps: bool = False) -> list[StoredRun]:
    """The runs of an experiment, oldest first.

    Args:
        client: of `connect`.
        experiment: its name.
        query: what they must fulfil, in MLflow's search syntax; empty for all.
        sweeps: whether the runs of sweeps are asked for, which hold the table of their jobs, instead of trainings.

    Raises:
        UserError: no such experiment, or the store does not take the query.
    """
    from mlflow.exceptions import MlflowException

    try:
        known = {found.name: found.experiment_id for found in pages(client.search_experiments)}
        if experiment not in known:
            raise UserError(f"tracking.experiment={experiment}: no such experiment there{nearest(experiment, known)}")
        words = {"experiment_ids": [known[experiment]], "filter_string": query, "order_by": ["attributes.start_time"]}
        found = [_stored(run) for run in pages(client.search_runs, **words)]
        return [run for run in found if (GRID in run.tags) == sweeps]
    except MlflowException as error:
        raise UserError(f"filter={query}: the tracking store says: {first_line(error)}") from error


def usable_runs(client: "MlflowClient", most: int) -> list[StoredRun]:
    """The newest finished trainings of all experiments whose best checkpoint is there, the newest first.

    Args:
        client: of `connect`.
        most: how many are looked at.

    Raises:
        UserError: this account may not read them.
    """
    with permitted(client.tracking_uri, "its runs"):
        ids = [found.experiment_id for found in pages(client.search_experiments)]
        words = {
            "filter_string": "attributes.status = 'FINISHED'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": most,
        }
        found = map(_stored, islice(pages(client.search_runs, experiment_ids=ids, **words), most) if ids else ())
        return [run for run in found if GRID not in run.tags and _has_best(client, run)]


def _has_best(client: "MlflowClient", run: StoredRun) -> bool:
    best = "checkpoints/best.ckpt"
    if (Path(run.tags.get("folder", "")) / best).is_file():
        return True
    return any(item.path == best for item in client.list_artifacts(run.run_id, "checkpoints"))


def get_run(client: "MlflowClient", run_id: str) -> StoredRun:
    """The run of an id.

    Raises:
        UserError: there is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        with permitted(client.tracking_uri, f"run {run_id}"):
            return _stored(client.get_run(run_id))
    except MlflowException as error:
        raise UserError(f"no run {run_id} in the tracking store; fix the id or set tracking.uri") from error


def fetch(client: "MlflowClient", run: StoredRun, path: str, folder: Path) -> Path:
    """A copy of a run's artifact under `folder`, wherever the store keeps it.

    By the address of the run's files, since by its id MLflow would read the whole run twice for each of them.

    Raises:
        UserError: it is not there.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    address = f"{run.artifacts}/{path}"
    try:
        found = Path(download_artifacts(address, dst_path=str(folder), tracking_uri=client.tracking_uri))
        if found.is_file():
            return found
    except (MlflowException, OSError):
        pass  # each kind of store has its own error for a file that is gone
    raise UserError(f"{path} is not in the tracking store")


def _stored(run: Any) -> StoredRun:
    tags = {key.removeprefix(PREFIX): value for key, value in run.data.tags.items()}
    info = run.info
    minutes = (info.end_time - info.start_time) / 60_000 if info.end_time else 0.0
    return StoredRun(
        info.run_id, info.run_name, info.status, tags, dict(run.data.params), dict(run.data.metrics), minutes,
        info.artifact_uri,
    )  # fmt: skip


def pages(search: Callable[..., Any], **words: Any) -> Iterator[Any]:
    """All that a paged search finds."""
    token = None
    while True:
        page = search(**words, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
