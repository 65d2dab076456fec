"""Fetch a dataset's archives from its publisher, and unpack them where its reader looks.

No publisher gives checksums for the datasets here. What is known of the archives:

- MUCT, https://github.com/StephenMilborrow/muct: ``muct-{a,b,c,d,e}-jpg-v1.tar.gz``, one a camera, each ``jpg/``;
  ``muct-landmarks-v1.tar.gz`` holds ``muct-landmarks/muct76-opencv.csv`` and other forms.
- 300-W in dlib's XML, https://dlib.net/files/data/ibug_300W_large_face_landmark_dataset.tar.gz, about 1.7 GB: all in
  one folder of the archive's name.
- YouTube Faces frames as a course on computer vision gives them, ``train-test-data.zip`` on Amazon S3, 338613624 bytes
  in 2019: ``training/``, ``test/`` and the two tables, in no folder.
"""

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock

from flr.data.archive import check_space, move_files, unpack
from flr.errors import UserError
from flr.files import write_json

FOLDER = (
    "download"  # under a dataset's root: on the same disk, so that what is unpacked there can be renamed into place
)
RECORD, LOCK, TEMPORARY = "record.json", "lock", "temporary"  # in it, next to the archives
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
RETRIES = 1
HEADERS = {"Accept-Encoding": "identity"}  # the file's own bytes, of which the checksum and the length are known


@dataclass(frozen=True)
class Download:
    """The archives of one dataset.

    Attributes:
        urls: Their http(s) addresses, whose last parts name the files.
        sha256: Their checksums as published, in the same order; None where there are none.
        strip: Folders at the top of an archive whose content goes straight under the root.
    """

    urls: list[str]
    sha256: list[str] | None = None
    strip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for url in self.urls:
            parts = urlsplit(url)
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or _name(url) in ("", "..", RECORD, LOCK, TEMPORARY)
            ):
                raise UserError(
                    f"data.download.urls: {url}: not an http(s) address of a file; set https://HOST/.../FILE"
                )
        if not self.urls or len({_name(url) for url in self.urls}) < len(self.urls):
            raise UserError("data.download.urls: set one or more addresses, each ending in another file name")
        if self.sha256 is not None and (
            len(self.sha256) != len(self.urls) or not all(re.fullmatch("[0-9a-fA-F]{64}", s) for s in self.sha256)
        ):
            raise UserError("data.download.sha256: set one checksum of 64 hexadecimal digits for each of urls, or null")

    def fetch(self, root: Path) -> None:
        """Bring the dataset under `root`; nothing of it shows there before all archives are fetched and unpacked.

        The archives stay in ``download/`` under the root and may be deleted; one that was put there by hand is used.
        ``download/record.json`` has the checksums of those that were unpacked, so that a second call does nothing.

        Raises:
            UserError: The publisher cannot be reached or sends something else, a checksum differs, an archive is
                damaged or unsafe, a file of other content is in the way, or the disk is full or cannot be written.
        """
        folder = root / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / LOCK):
                if not self._is_unpacked(folder):
                    self._fetch(root, folder)
        except OSError as error:
            raise UserError(
                f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); free space or change "
                "the permissions there, or set data.root=DIR"
            ) from error

    def _is_unpacked(self, folder: Path) -> bool:
        """Return whether all archives were unpacked, with the published checksums where there are any."""
        path = folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            known = [record.get(_name(url)) for url in self.urls]
        except FileNotFoundError:
            return False
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a record of a download ({error}); delete it to fetch anew") from error
        return known == self._checksums if self.sha256 else None not in known

    @property
    def _checksums(self) -> list[str | None]:
        return [checksum.lower() for checksum in self.sha256] if self.sha256 else [None] * len(self.urls)

    def _fetch(self, root: Path, folder: Path) -> None:
        temporary = folder / TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        record = {}
        try:
            for url, known in zip(self.urls, self._checksums, strict=True):
                _retrieve(url, folder, known)
            for url in self.urls:
                archive = folder / _name(url)
                unpack(archive, temporary / "all", self.strip)
                record[archive.name] = pooch.file_hash(str(archive))
            move_files(temporary / "all", root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        write_json(folder / RECORD, record)


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _retrieve(url: str, folder: Path, known: str | None) -> None:
    """Download an archive into a folder, or check the one that is there.

    Raises:
        UserError: It cannot be fetched, is a web page, or has another checksum than `known`.
    """
    path = folder / _name(url)
    by_hand = f"fetch it in a browser, put it at {path} and run this again"
    check_source = "if the publisher has changed it, correct data.download.sha256"
    if path.exists():
        _check_not_a_page(path, path)
        if known not in (None, actual := pooch.file_hash(str(path))):
            raise UserError(f"{path}: its sha256 is {actual}, not {known}; delete it to fetch it again; {check_source}")
        return
    pooch.get_logger().setLevel("WARNING")
    files = pooch.create(
        folder / TEMPORARY, base_url="", registry={path.name: known}, urls={path.name: url}, retry_if_failed=RETRIES
    )
    downloader = ArchiveDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT, headers=HEADERS)
    try:
        os.replace(files.fetch(path.name, downloader=downloader), path)
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}".strip()
        raise UserError(
            f"{url}: the server answered {status}; check the address (data.download.urls), or {by_hand}"
        ) from error
    except requests.RequestException as error:
        raise UserError(f"{url}: cannot be fetched ({_cause(error)}); try later, or {by_hand}") from error
    except ValueError as error:  # pooch's, with both checksums
        raise UserError(f"{url}: {error} Run this again; {check_source}") from error


class ArchiveDownloader(pooch.HTTPDownloader):
    """Download a file after a check of the free space, and refuse a web page in its place."""

    def __call__(self, url: str, output_file: Any, pooch: pooch.Pooch | None, check_only: bool = False) -> bool | None:
        """Download `url` to the path `output_file`.

        Raises:
            UserError: The disk is too small, or the file is a web page.
            requests.RequestException: There was no answer, an error, or an answer that was cut.
        """
        length = ""
        with suppress(requests.RequestException):  # some servers answer no HEAD
            length = requests.head(url, allow_redirects=True, **self.kwargs).headers.get("Content-Length", "")
        if length.isdecimal():
            check_space(Path(output_file).parent, int(length), f"{_name(url)}")
        super().__call__(url, output_file, pooch)
        _check_not_a_page(Path(output_file), url)
        return None


def _check_not_a_page(path: Path, source: object) -> None:
    with path.open("rb") as stream:
        if stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
            raise UserError(
                f"{source}: a web page (HTML or XML) instead of the archive, such as a login or an error; open the address "
                "in a browser, put the archive into the folder download/ of the dataset and run this again"
            )


def _cause(error: BaseException) -> str:
    """Return the error of the system, below the layers that wrap it."""
    while below := error.__cause__ or error.__context__:
        error = below
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
