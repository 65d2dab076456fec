"""Fetch a data set's archives from its publisher, and unpack them where its reader looks.

No checksum that a publisher of the sets here gives is known: the first whole fetch records them, and later ones are
held to that record. What is known of the archives:

- MUCT, https://github.com/StephenMilborrow/muct: ``muct-{a,b,c,d,e}-jpg-v1.tar.gz``, one a camera, each ``jpg/``;
  ``muct-landmarks-v1.tar.gz`` holds ``muct-landmarks/muct76-opencv.csv`` beside other forms.
- 300-W in dlib's XML, https://dlib.net/files/data/ibug_300W_large_face_landmark_dataset.tar.gz (the site is often
  named by http, and serves both), about 1.7 GB: all in one folder of the archive's name.
- YouTube Faces frames as a course on computer vision gives them, ``train-test-data.zip`` on Amazon S3, 338613624 bytes
  in 2019: ``training/``, ``test/`` and the two tables, in no folder.
"""

import errno
import filecmp
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal, NamedTuple
from urllib.parse import urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from flr.errors import UserError
from flr.files import write_json

FOLDER = "download"  # under a set's root: on the same disk, so that what is unpacked there can be renamed into place
OWN = RECORD, LOCK, ASIDE = "record.json", "lock", "unpacking"  # in it, beside the archives

TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
ATTEMPTS = 8
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
LONGEST_PAUSE = 16.0
PASSING = {408, 429, 500, 502, 503, 504}  # answers that another attempt may better

CHUNK = 2**16
RATIO = 200  # unpacked over packed size: photos have 1, these sets' tables up to 6, deflate's most is 1032
TAR_BLOCK = 512
LARGEST_TAR_EXTENSION = 2**20  # bytes of a long name or a pax header, which tarfile reads into memory
TAR_PADDING = 2**24
LONGEST_NAME = 1000  # letters of a member's path
ZIP_TAIL = 22 + 2**16  # bytes of a zip's last record with the longest comment


@dataclass(frozen=True)
class Record:
    """One archive that was fetched and unpacked whole.

    Attributes:
        url: where it came from.
        sha256: of the archive.
        files: path under the root -> bytes.
    """

    url: str
    sha256: str
    files: dict[str, int]

    def holds(self, root: Path) -> bool:
        """Whether all of its files still lie under `root`, by their sizes."""
        try:
            return all(os.stat(root / path).st_size == size for path, size in self.files.items())
        except OSError:
            return False


@dataclass(frozen=True)
class Download:
    """The archives of one data set.

    Attributes:
        urls: their http(s) addresses, whose last parts name the files.
        sha256: their checksums as published, one each in the same order; None where there are none.
        strip: folders at the top of an archive whose content goes straight under the root.
    """

    urls: list[str]
    sha256: list[str] | None = None
    strip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or _name(url) in ("", "..", *OWN):
                raise UserError(
                    f"data.download.urls: {url} is no http(s) address of a file; give https://HOST/.../FILE"
                )
        if not self.urls or len({_name(url) for url in self.urls}) < len(self.urls):
            raise UserError("data.download.urls: give one address or more, each ending in another file's name")
        if self.sha256 is not None and (
            len(self.sha256) != len(self.urls) or not all(re.fullmatch("[0-9a-fA-F]{64}", s) for s in self.sha256)
        ):
            raise UserError("data.download.sha256: give one sum of 64 hexadecimal digits for each of urls, or null")

    def fetch(self, root: Path) -> None:
        """Bring what is missing under `root`; nothing of an archive shows there before all are whole and unpacked.

        Archives lie in ``download/`` under the root: one that was put there by hand is used, one that was cut off
        (``.part``) is gone on with, and all may be deleted afterwards. ``download/record.json`` keeps their sums and
        their files: it makes a second call do nothing, and holds a later fetch to the same content.

        Raises:
            UserError: the publisher cannot be reached or gives something else; a checksum differs; an archive is
                damaged, or would write outside `root` or more than it should; a file of another content is in the way;
                the disk is full or cannot be written.
        """
        folder = root / FOLDER
        try:
            if self._missing(root):
                folder.mkdir(parents=True, exist_ok=True)
                with _alone(folder):
                    if missing := self._missing(root):  # else another process was faster
                        self._fetch(root, missing)
        except OSError as error:
            raise UserError(
                f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); free space or give "
                "rights there, or set data.root=DIR"
            ) from error

    def _missing(self, root: Path) -> list[str]:
        """The addresses of which something is not there yet, or came from another archive than is published now."""
        records = _read_records(root / FOLDER)
        missing = []
        for url in self.urls:
            record = records.get(_name(url))
            if not record or record.sha256 != self._published.get(url, record.sha256) or not record.holds(root):
                missing.append(url)
        return missing

    @property
    def _published(self) -> dict[str, str]:
        return {url: sha256.lower() for url, sha256 in zip(self.urls, self.sha256 or (), strict=False)}

    def _fetch(self, root: Path, urls: list[str]) -> None:
        folder = root / FOLDER
        records = _read_records(folder)
        sums = {url: _bring(url, folder, self._published.get(url), records.get(_name(url))) for url in urls}
        listings = {url: _listing(folder / _name(url), self.strip) for url in urls}
        aside = folder / ASIDE
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        total = sum(sum(files.values()) for files in listings.values())
        _make_room(folder, total, "unpacking")
        try:
            with tqdm(total=total, desc=f"Unpacking {root.name}", unit="B", unit_scale=True, disable=None) as bar:
                for url in urls:
                    _extract(folder / _name(url), aside / "one", self.strip, bar.update)
                    _merge(aside / "one", aside / "all")
            _merge(aside / "all", root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        records |= {_name(url): Record(url, sums[url], listings[url]) for url in urls}
        write_json(folder / RECORD, {name: asdict(record) for name, record in records.items()})


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _read_records(folder: Path) -> dict[str, Record]:
    path = folder / RECORD
    try:
        return {name: Record(**value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a record of a download ({error}); delete it to fetch and record anew") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: another process is fetching this set; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_room(folder: Path, need: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: {what} takes {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; free space there, or set "
            "data.root=DIR on another disk"
        )


# -- the way from the publisher ----------------------------------------------------------------------------------------


class _Cut(Exception):
    """A transfer ended early; another attempt may go on with it."""


def _bring(url: str, folder: Path, published: str | None, record: Record | None) -> str:
    """The archive at its place in `folder`, downloaded where it is not there. Returns its sha256."""
    path = folder / _name(url)
    by_hand = path.exists()
    file = path if by_hand else _download(url, path)
    with file.open("rb") as stream:
        page = stream.read(1024).lstrip()[:1] == b"<"
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = published or (record.sha256 if record else digest)
    if page or digest != expected:
        if not by_hand:
            _discard(file)
        if page:
            raise _a_page(str(file) if by_hand else url, url, path)
        source = "data.download.sha256 says" if published else f"the first fetch recorded in {folder / RECORD}"
        fix = f"delete {path} to fetch it anew" if by_hand else "run this again in case it was damaged on the way"
        other = "correct that sum" if published else "delete that record and what was unpacked"
        raise UserError(
            f"{file if by_hand else url}: its sha256 is {digest}, not {expected} as {source}; {fix}; or, if the "
            f"publisher is known to have changed it, {other}"
        )
    if not by_hand:
        os.replace(file, path)
        _discard(file)
    return digest


def _download(url: str, path: Path) -> Path:
    """The whole file beside `path` as ``.part``, after as many attempts as it takes and `ATTEMPTS` allows."""
    part = path.with_name(f"{path.name}.part")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
        try:
            _receive(url, path, part)
            return part
        except _Cut as error:
            reason = str(error)
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = _reason(error)
            if attempt == 0:  # nothing says that another would fare better, and one who is offline should not wait
                raise UserError(f"{url}: cannot be reached ({reason}); try later, or {_by_hand(path)}") from error
        except (requests.RequestException, ValueError) as error:  # the latter of an address it was redirected to
            raise UserError(f"{url}: cannot be fetched ({error}); {_by_hand(path)}") from error
    raise UserError(
        f"{url}: {reason}, the last of {ATTEMPTS} attempts; run this again to go on from what is there, or "
        f"{_by_hand(path)}"
    )


def _receive(url: str, path: Path, part: Path) -> None:
    """One attempt: go on with `part` where the server still has the same file, else begin it anew.

    Raises:
        _Cut: it ended early.
        UserError: the server has something else, or the disk has no room.
        requests.RequestException: there was no answer.
    """
    have, total, validator = _begun(url, part)
    if have == total > 0:
        return  # whole, and killed before it was renamed
    # The file's own bytes: a server that packs them once more could neither be resumed nor checked.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        code = reply.status_code
        if code in PASSING:
            raise _Cut(f"the server answered {_status(code)}")
        if code == HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
            version = {reply.headers[key] for key in ("ETag", "Last-Modified") if key in reply.headers} or {validator}
            if not span or (int(span[1]), int(span[2])) != (have, total) or validator not in version:
                _discard(part)
                raise _Cut("the server sent a part of another file than was begun")
        elif code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            _discard(part)
            raise _Cut("the server's file is shorter than what was fetched of it before")
        elif code != HTTPStatus.OK:
            raise UserError(
                f"{url}: the server answered {_status(code)}; check the address (data.download.urls), or "
                f"{_by_hand(path)}"
            )
        if reply.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
            raise _a_page(url, url, path)
        if code == HTTPStatus.OK:
            if not (length := reply.headers.get("Content-Length", "")).isdecimal():
                raise UserError(
                    f"{url}: the server does not say how long the file is, so that a cut could not be told from its end; "
                    f"{_by_hand(path)}"
                )
            have, total = 0, int(length)
            _begin(url, part, total, reply.headers)
        _make_room(part.parent, total - have, f"the rest of {path.name}")
        with (
            part.open("ab") as out,
            tqdm(initial=have, total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            try:
                for chunk in reply.raw.stream(CHUNK, decode_content=False):
                    out.write(chunk)
                    bar.update(len(chunk))
            except HTTPError as error:
                raise _Cut(f"the connection was cut ({_reason(error)})") from error
    if part.stat().st_size != total:
        raise _Cut(f"the server sent {part.stat().st_size} of {total} bytes")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _begin(url: str, part: Path, total: int, headers: "requests.structures.CaseInsensitiveDict[str]") -> None:
    """An empty `part`, with a note of what is going to be in it: what a later attempt asks the server to go on with."""
    etag = headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # a weak one may stand for other bytes (RFC 9110, 13.1.5)
    part.write_bytes(b"")
    write_json(_note(part), {"url": url, "total": total, "validator": strong or headers.get("Last-Modified", "")})


def _begun(url: str, part: Path) -> tuple[int, int, str]:
    """Bytes of `part` that can be gone on with, bytes of the whole file, and its ETag or date; zeros for none."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        have, total, validator = part.stat().st_size, int(note["total"]), str(note["validator"])
        if note["url"] == url and have <= total and (validator or have == total):
            return have, total, validator
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass
    return 0, 0, ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _status(code: int) -> str:
    with suppress(ValueError):
        return f"{code} {HTTPStatus(code).phrase}"
    return str(code)


def _reason(error: BaseException) -> str:
    """What the system said, below the layers that wrap it."""
    while below := error.__cause__ or error.__context__:
        error = below
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _by_hand(path: Path) -> str:
    return f"fetch it in a browser, put it at {path} and run this again"


def _a_page(what: str, url: str, path: Path) -> UserError:
    return UserError(
        f"{what}: a web page (HTML or XML) in place of the archive, as a login or an error sends it; look at {url} in a "
        f"browser, put the archive at {path} and run this again"
    )


# -- unpacking ---------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    size: int
    kind: Literal["file", "folder", "other"]
    open: Callable[[], IO[bytes] | None]


class _TarHeader(tarfile.TarInfo):
    """tarfile takes a damaged header for the archive's end, and reads an extension of any size into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarHeader":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):
                raise  # the end
            raise tarfile.ReadError(f"a header is damaged: {error}") from error
        if header.size < 0 or (not header.isfile() and header.size > LARGEST_TAR_EXTENSION):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """What a zip or tar holds, in its order. They are only read: this module writes the files itself."""
    try:
        with archive.open("rb") as stream:
            is_zip = stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        if is_zip:
            with zipfile.ZipFile(archive) as opened:
                yield _of_zip(opened)
        else:
            with tarfile.open(archive, tarinfo=_TarHeader) as tar:
                yield _of_tar(tar)
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
        ValueError, struct.error, NotImplementedError,
    ) as error:  # fmt: skip
        # An archive that points before its own start ends in EINVAL; any other number is the disk's fault.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = str(error).partition(":")[0] or type(error).__name__
        raise UserError(
            f"{archive}: damaged, or neither a zip nor a tar ({reason}); delete it and fetch it again"
        ) from error


def _of_zip(opened: zipfile.ZipFile) -> Iterator[_Member]:
    # A damaged length in its directory swallows the entries that follow; its last record says how many there are.
    assert opened.fp is not None
    opened.fp.seek(-min(ZIP_TAIL, opened.fp.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = opened.fp.read()
    (count,) = struct.unpack_from("<H", tail, tail.rindex(b"PK\x05\x06") + 10)
    if count not in (len(opened.infolist()), 0xFFFF):  # more than fit in this field are said elsewhere
        raise zipfile.BadZipFile(f"it lists {len(opened.infolist())} of {count} members")
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on no Unix
        if info.flag_bits & 1:
            raise zipfile.BadZipFile(f"{info.filename:.80} is encrypted")
        plain: Literal["file", "folder"] = "folder" if info.filename.endswith("/") else "file"
        yield _Member(
            info.filename, info.file_size, plain if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "other",
            partial(opened.open, info),
        )  # fmt: skip


def _of_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.size < 0:  # by a pax header; it would make up for a bomb's size
            raise tarfile.ReadError(f"a header claims {info.size} bytes")
        kind: Literal["file", "folder", "other"] = "file" if info.isfile() else "folder" if info.isdir() else "other"
        yield _Member(info.name, info.size, kind, partial(tar.extractfile, info))
    # gzip keeps its checksum at the very end, behind the padding where tarfile stops.
    if tar.fileobj is not None and len(tar.fileobj.read(TAR_PADDING)) == TAR_PADDING:
        raise tarfile.ReadError("more than padding follows its end")


def _listing(archive: Path, strip: Collection[str]) -> dict[str, int]:
    """Path under the root -> bytes, of every file of an archive. Nothing is written.

    Raises:
        UserError: it is damaged or empty; a member leads out of the root, is a link or a device, or stands there twice;
            it would grow beyond all measure.
    """
    files: dict[str, int] = {}
    claimed, limit = 0, RATIO * archive.stat().st_size
    with _members(archive) as members:
        for member in members:
            place = _place(archive, member, strip)
            claimed += member.size + TAR_BLOCK
            if claimed > limit:
                raise _unsafe(archive, f"grows to more than {RATIO} times its size")
            if member.kind == "file":
                if str(place) in files:
                    raise _unsafe(archive, f"holds {member.name!r} twice")
                files[str(place)] = member.size
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) in files:
                raise _unsafe(archive, f"holds '{parent}' as a file and as a folder")
    if not files:
        raise UserError(f"{archive}: holds no file; delete it and fetch it again")
    return files


def _place(archive: Path, member: _Member, strip: Collection[str]) -> PurePosixPath:
    """Where a member goes, relative to the root."""
    path = PurePosixPath(member.name)
    if len(member.name) > LONGEST_NAME:
        raise _unsafe(archive, f"holds {member.name[:80]!r}..., a name of {len(member.name):,} letters")
    if member.kind == "other":
        raise _unsafe(archive, f"holds {member.name!r}, a link or a device")
    drive = PureWindowsPath(member.name).drive
    if path.is_absolute() or drive or ".." in path.parts or "\\" in member.name:
        raise _unsafe(archive, f"holds {member.name!r}, which leads out of its folder")
    if len(path.parts) > 1 and path.parts[0] in strip:
        path = PurePosixPath(*path.parts[1:])
    if path.parts[:1] == (FOLDER,) or (member.kind == "file" and not path.parts):
        raise _unsafe(archive, f"holds {member.name!r}, where no file of a data set can lie")
    return path


def _unsafe(archive: Path, fault: str) -> UserError:
    return UserError(f"{archive}: {fault}; nothing was unpacked; delete it, and look where it came from")


def _extract(archive: Path, folder: Path, strip: Collection[str], tell: Callable[[int], object]) -> None:
    """Write an archive's files to a new `folder`. Links, owners and modes of the archive play no part."""
    with _members(archive) as members:
        for member in members:
            place = folder / _place(archive, member, strip)
            if member.kind == "file":
                place.parent.mkdir(parents=True, exist_ok=True)
                stream = member.open()
                assert stream is not None  # since it is a file
                with stream, place.open("xb") as out:
                    while chunk := stream.read(CHUNK):
                        out.write(chunk)
                        tell(len(chunk))


def _merge(source: Path, target: Path) -> None:
    """Move a folder's content into another, all or nothing; a file that is there already with this content stays.

    Raises:
        UserError: something else is in the way.
    """
    for entry in source.rglob("*"):
        place = target / entry.relative_to(source)
        same = place.is_dir() if entry.is_dir() else place.is_file() and filecmp.cmp(entry, place, shallow=False)
        if os.path.lexists(place) and not same:
            raise UserError(
                f"{place}: is in the way of a file of this name and other content; move it away, or set data.root=DIR"
            )
    _move(source, target)
    shutil.rmtree(source)


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    # Folders first: a set's tables lie beside its folders of pictures, and a reader finds a set by its tables.
    for entry in sorted(source.iterdir(), key=lambda entry: entry.is_file()):
        place = target / entry.name
        if not os.path.lexists(place):
            os.rename(entry, place)
        elif entry.is_dir():
            _move(entry, place)
