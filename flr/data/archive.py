"""Unpack zip and tar archives of a dataset; a file becomes visible under the dataset's root only when it is whole."""

import filecmp
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

from tqdm import tqdm

from flr.errors import UserError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)
CHUNK = 2**20


def check_space(folder: Path, need: int, what: str) -> None:
    """Raise a `UserError` if a folder's disk has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: {what} takes {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; free space there, or set "
            "data.root=DIR on another disk"
        )


def unpack(archive: Path, folder: Path, strip: Sequence[str]) -> None:
    """Unpack a zip or tar into a folder, which may hold the files of other archives.

    Args:
        archive: The zip or tar, packed in any way that `tarfile` reads.
        folder: Where the files go; created if needed. A folder next to it is used on the way.
        strip: Folders at the top of the archive whose content goes straight to `folder`.

    Raises:
        UserError: The archive is damaged, encrypted or empty, a member would be written outside of `folder`, the disk
            is too small, or another archive has a file of the same name and other content.
    """
    own = folder.with_name(f"{folder.name}-{archive.name}")
    own.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, own)
        else:
            _unpack_tar(archive, own)
    except tarfile.FilterError as error:
        raise _unsafe(archive, str(error)) from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        reason = str(error).partition(":")[0] or type(error).__name__
        raise UserError(
            f"{archive}: damaged, encrypted, or neither a zip nor a tar ({reason}); delete it and fetch it again"
        ) from error
    if all(path.is_dir() for path in own.rglob("*")):
        raise UserError(f"{archive}: holds no file; delete it and fetch it again")
    for part in [own / name for name in strip if (own / name).is_dir()]:
        move_files(part, folder)
    move_files(own, folder)


def _unsafe(archive: Path, fault: str) -> UserError:
    return UserError(f"{archive}: unsafe ({fault}); nothing was unpacked; delete it, and check where it came from")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts:
                raise _unsafe(archive, f"{member.filename!r} leads out of its folder")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, f"{member.filename!r} is a link or a device")
        total = sum(member.file_size for member in members)
        check_space(folder, total, f"unpacking {archive.name}")
        with _progress(archive, total) as bar:
            for member in members:
                opened.extract(member, folder)
                bar.update(member.file_size)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        # tarfile takes a damaged header for the end, and stops before gzip's checksum, which follows the padding.
        while opened.fileobj is not None and (rest := opened.fileobj.read(CHUNK)):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a header is damaged")
        total = sum(member.size for member in members)
        check_space(folder, total, f"unpacking {archive.name}")
        with _progress(archive, total) as bar:
            for member in members:
                opened.extract(member, folder, filter="data")
                bar.update(member.size)


def _progress(archive: Path, total: int) -> "tqdm[NoReturn]":
    return tqdm(total=total, desc=f"Unpacking {archive.name}", unit="B", unit_scale=True, disable=None)


def move_files(source: Path, target: Path) -> None:
    """Move the files of a folder into another, all or none; a file that is there with the same content stays.

    Raises:
        UserError: Something else is in the way.
    """
    # Files in folders first: a dataset's tables lie next to its folders of images, and a reader finds it by its tables.
    files = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    files.sort(key=lambda path: -len(path.parts))
    for name in files:
        place = target / name
        blocked = [parent for parent in place.parents if parent.is_relative_to(target) and parent.is_file()]
        same = place.is_file() and filecmp.cmp(source / name, place, shallow=False)
        if blocked or (os.path.lexists(place) and not same):
            raise UserError(
                f"{(blocked or [place])[0]}: a file of this name and other content exists; move it away, or set data.root=DIR"
            )
    for name in files:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.rename(source / name, place)
    shutil.rmtree(source)
