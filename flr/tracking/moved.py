"""Make the embedded database of a moved or copied output folder name the files that are now next to it."""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

# Columns of MLflow's tables with the address of a file.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path) -> None:
    """Replace, in a database ``OUTPUT/NAME.db``, the output folder from which it was moved or copied.

    It was where an experiment's artifacts are in ``OUTPUT/artifacts``, and those it names are gone or those of the
    database from which this one was copied.
    """
    new = database.parent.resolve()
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for (location,) in connection.execute("SELECT artifact_location FROM experiments").fetchall():
            named = Path(url2pathname(urlparse(location or "").path))
            old = named.parents[1] if len(named.parents) > 2 else named
            if (
                named.parent.name != "artifacts"
                or old.resolve() == new
                or not (new / "artifacts" / named.name).is_dir()
            ):
                continue
            if not named.is_dir() or (old / database.name).is_file():
                _replace(connection, old, new)


def _replace(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    addresses = [(table, column, old.as_uri(), new.as_uri()) for table, column in COLUMNS if table in tables]
    for table, column, before, after in [*addresses, ("tags", "value", str(old), str(new))]:
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            + (" AND key = 'flr.folder'" if table == "tags" else ""),
            (after + "/", len(before) + 2, len(before) + 1, before + "/"),
        )
