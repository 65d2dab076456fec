"""Files that become visible whole: write aside, then rename."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from flr.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` (same suffix) to write to; renamed onto `path` at the end, removed on any failure.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix)
        os.close(handle)
    aside = Path(name)
    try:
        with telling(path):
            yield aside
            aside.chmod(0o644)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """As `writing`, for a whole folder that does not exist yet. The caller holds a lock on it: leftovers are removed."""
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        with telling(path):
            yield aside
            aside.chmod(0o755)
            os.rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Have what the system refuses `path` be a user's error."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        fix = "free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "clear the way"
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); {fix}, or name another place with the command's out= "
            "(if it has one), paths.output_dir= or paths.cache_dir="
        ) from error


def opened(path: Path, most: int = 2**30) -> BinaryIO:
    """A file to read, once it is seen to be one: a pipe might never end, and a sparse file can claim any size.

    Raises:
        OSError: it is missing or closed to us, no regular file, or of more than `most` bytes.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if state.st_size > most:
        raise OSError(errno.EFBIG, f"its {state.st_size:,} bytes are too many", str(path))
    return path.open("rb")


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or not at all."""
    write_file(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Write text, in UTF-8, or bytes to a file, whole or not at all."""
    with writing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
