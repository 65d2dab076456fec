"""Connect to the tracking store, and read runs back. Needs neither torch nor Lightning."""

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
from typing import Any

import mlflow
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from flr.errors import UserError, nearest
from flr.tracking.moved import relocate

MIN_SPACE = 64 << 20  # bytes that a new database and a small checkpoint need
PREFIX = "flr."  # of the project's own tags
GRID = "grid"  # tag of a sweep's or study's own run
# A URI's part up to a password: before the last @ (an unescaped one may hold any sign), or among the query's words.
PASSWORD = re.compile(r"^(?!sqlite:)([^:]+://)(?:[^@]*:.*@|.*[?&]password=).*", re.DOTALL)
SQLITE = "sqlite:///"


class ServerUnavailable(UserError):
    """A server that does not answer, and may do so later."""


def connect(uri: str, create: bool = True) -> MlflowClient:
    """Return a client of a tracking store that answers.

    Args:
        uri: ``sqlite:///`` and an absolute path, or the address of an ``mlflow server``.
        create: Whether a missing database is created.

    Raises:
        ServerUnavailable: No server answers.
        UserError: The store does not take this account, the database's folder cannot be written, or `uri` holds a password.
    """
    if secret := PASSWORD.match(uri):
        raise UserError(
            f"tracking.uri={secret[1]}...: holds a password, which would be kept with every run; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a PostgreSQL database: PGPASSWORD)"
        )
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith(SQLITE):
        _check_database(uri, create)
    elif "://" not in uri or uri.startswith("file:"):
        raise UserError(f"tracking.uri={uri}: MLflow's file store is gone; use sqlite:////folder/mlflow.db or a server")
    _configure_mlflow()
    mlflow.set_tracking_uri(uri)
    try:
        with database_lock(uri), translate_auth_errors(uri, "its experiments"):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's and MLflow's own kinds, by the store
        raise UserError(f"tracking.uri={uri}: cannot be opened ({first_line(error)}); fix it or set another") from error
    return client


def _check_server(uri: str) -> None:
    try:
        answer = requests.get(uri.rstrip("/") + "/health", timeout=5)
        if answer.status_code >= 500:
            raise requests.RequestException(f"status {answer.status_code}")
    except requests.RequestException as error:
        reason = type(error).__name__ if not error.args else str(error.args[0])[:120]
        raise ServerUnavailable(
            f"tracking.uri={uri}: no MLflow server answers ({reason}); start it or set another"
        ) from error


def _check_database(uri: str, create: bool) -> None:
    path = Path(uri.removeprefix(SQLITE))
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
        raise UserError(f"tracking.uri={uri}: cannot be written ({error}); set paths.output_dir or another") from error
    if tables and "alembic_version" not in tables:
        raise UserError(f"tracking.uri={uri}: a database of another application; name a file of its own")
    if free < MIN_SPACE:
        raise UserError(f"tracking.uri={uri}: only {free >> 20} MiB free there; free space or set paths.output_dir")
    if "experiments" in tables:
        relocate(path)


def _configure_mlflow() -> None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would retry for minutes; what a server does not take is queued.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # MLflow reports each migration of a new database; a user of the embedded one asked for none of it.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.ERROR)


@contextlib.contextmanager
def database_lock(uri: str) -> Iterator[None]:
    """Hold the lock of a sqlite file: two processes that create its tables at once break it."""
    if not uri.startswith(SQLITE):
        yield
        return
    try:
        with FileLock(Path(uri.removeprefix(SQLITE)).with_suffix(".lock")):
            yield
    except OSError as error:
        raise UserError(f"tracking.uri={uri}: cannot be written ({error.strerror}); set another") from error


@contextlib.contextmanager
def translate_auth_errors(uri: str, what: str) -> Iterator[None]:
    """Turn a server's refusal of an account into a `UserError`, which names `what` is read or written."""
    try:
        yield
    except (MlflowException, requests.HTTPError) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else error.response.status_code
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if status == 401:
            reason = f"does not know {user} by this password" if user else "wants to know who you are"
            raise UserError(
                f"tracking.uri={uri}: the server {reason}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        if status == 403:
            raise UserError(
                f"tracking.uri={uri}: {user or 'this account'} lacks the permission for {what}; ask an admin of the "
                "server for it, or name another"
            ) from error
        raise


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# -- reading runs back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredRun:
    """A run as the store keeps it.

    Attributes:
        status: ``FINISHED``, ``FAILED``, ``KILLED``, ``RUNNING`` or ``SCHEDULED``.
        tags: By name, the project's own without their prefix.
        params: The flattened config and what else was recorded once.
        metrics: The last value of each.
        minutes: Wall time from the first start to the end; 0 where the run has not ended.
        artifacts: Address of the run's files.
        experiment_id: Id of its experiment.
        started: Time of its first start, seconds since 1970.
    """

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    minutes: float
    artifacts: str
    experiment_id: str
    started: float

    def get(self, key: str) -> str | None:
        """Return the tag of a name, or else the parameter."""
        return self.tags.get(key, self.params.get(key))


def find_runs(client: MlflowClient, experiment: str, query: str = "", sweeps: bool = False) -> list[StoredRun]:
    """Find the runs of an experiment, oldest first.

    Args:
        client: Client of the store.
        experiment: Name of the experiment.
        query: Condition in MLflow's search syntax; empty for all runs.
        sweeps: Whether to find the runs of sweeps, which hold the table of their jobs, instead of trainings.

    Raises:
        UserError: There is no such experiment, or this account may not read it.
    """
    with translate_auth_errors(client.tracking_uri, f"tracking.experiment={experiment}"):
        known = {found.name: found.experiment_id for found in pages(client.search_experiments)}
        if experiment not in known:
            raise UserError(f"tracking.experiment={experiment}: no such experiment there{nearest(experiment, known)}")
        options = {"experiment_ids": [known[experiment]], "order_by": ["attributes.start_time"]}
        found = [_stored(run) for run in pages(client.search_runs, filter_string=query, **options)]
    return [run for run in found if (GRID in run.tags) == sweeps]


def usable_runs(client: MlflowClient, most: int) -> list[StoredRun]:
    """Return those of the `most` newest finished trainings of all experiments that still have a best checkpoint, the newest first.

    Raises:
        UserError: This account may not read them.
    """
    with translate_auth_errors(client.tracking_uri, "its runs"):
        ids = [found.experiment_id for found in pages(client.search_experiments)]
        options = {"filter_string": "attributes.status = 'FINISHED'", "order_by": ["attributes.start_time DESC"]}
        found = pages(client.search_runs, experiment_ids=ids, max_results=most, **options) if ids else iter(())
        runs = map(_stored, islice(found, most))
        return [run for run in runs if GRID not in run.tags and _has_best(client, run)]


def _has_best(client: MlflowClient, run: StoredRun) -> bool:
    best = "checkpoints/best.ckpt"
    if (Path(run.tags.get("folder", "")) / best).is_file():
        return True
    return any(item.path == best for item in client.list_artifacts(run.run_id, "checkpoints"))


def get_run(client: MlflowClient, run_id: str) -> StoredRun:
    """Return the run of an id.

    Raises:
        UserError: There is none.
    """
    try:
        with translate_auth_errors(client.tracking_uri, f"run {run_id}"):
            return _stored(client.get_run(run_id))
    except MlflowException as error:
        raise UserError(f"no run {run_id} in the tracking store; fix the id or set tracking.uri") from error


def knows_run(uri: str, run_id: str) -> bool:
    """Return whether a tracking store answers and has a run; no database is created."""
    try:
        get_run(connect(uri, create=False), run_id)
    except UserError:
        return False
    return True


def fetch(client: MlflowClient, run: StoredRun, path: str, folder: Path) -> Path:
    """Copy an artifact of a run into `folder`.

    Raises:
        UserError: It is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{run.artifacts}/{path}"  # by the run's id, MLflow would read the whole run twice for each file
    try:
        found = Path(download_artifacts(address, dst_path=str(folder), tracking_uri=client.tracking_uri))
        if found.is_file():
            return found
    except (MlflowException, OSError):
        pass  # each kind of store has its own error for a missing file
    raise UserError(f"{path} is not in the tracking store")


def _stored(run: Any) -> StoredRun:
    tags = {key.removeprefix(PREFIX): value for key, value in run.data.tags.items()}
    info = run.info
    minutes = (info.end_time - info.start_time) / 60_000 if info.end_time else 0.0
    return StoredRun(
        info.run_id, info.run_name, info.status, tags, dict(run.data.params), dict(run.data.metrics), minutes,
        info.artifact_uri, info.experiment_id, info.start_time / 1000,
    )  # fmt: skip


def pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """Yield all that a paged search finds."""
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
