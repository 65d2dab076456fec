"""Download from a real web server on loopback, with what goes wrong on the way."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import flr
from flr.data import archive, download
from flr.data.download import Download
from tests.data.support import stop


def noise(size: int, seed: int) -> bytes:
    """Return bytes that do not compress, as those of a photo."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


FILES = {
    "set/jpg/a.jpg": noise(400_000, 0),
    "set/jpg/deep/b.jpg": noise(300_000, 1),
    "set/jpg/empty.jpg": b"",
    "set/labels.csv": b"name,x,y\na,1,2\n",
}
UNDER_ROOT = {name.removeprefix("set/"): content for name, content in FILES.items()}


def tar_of(files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in others:
            tar.addfile(info)
    return out.getvalue()


def zip_of(files: dict[str, bytes], **others: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
        for name, mode in others.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, "/etc/passwd")
    return out.getvalue()


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


TAR = tar_of(FILES)
OTHER_TAR = tar_of({**FILES, "set/labels.csv": b"name,x,y\na,3,4\n"})


# ---------------------------------------------------------------- the server


class Handler(BaseHTTPRequestHandler):
    server: "Publisher"

    def do_HEAD(self) -> None:
        self.head(200, len(self.content))

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        script = self.server.scripts.pop(0) if self.server.scripts else whole
        with contextlib.suppress(ConnectionError):  # the client was killed, or has had enough
            script(self)

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def content(self) -> bytes:
        return self.server.files[self.path.rpartition("/")[2]]

    def head(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


Script = Callable[[Handler], None]


class Publisher(ThreadingHTTPServer):
    """Serves `files`; each GET is answered by the next of `scripts`, or as a good server would."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"set.tar.gz": TAR}
        self.scripts: list[Script] = []
        self.seen: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def url(self, name: str = "set.tar.gz") -> str:
        return f"http://127.0.0.1:{self.server_port}/files/{name}"


def whole(handler: Handler) -> None:
    handler.head(200, len(handler.content))
    handler.wfile.write(handler.content)


def cut(handler: Handler) -> None:
    """Promises the whole file and closes the connection after some of it."""
    handler.head(200, len(handler.content))
    handler.wfile.write(handler.content[:500_000])


def reply(code: int, body: bytes = b"", **headers: str) -> Script:
    def script(handler: Handler) -> None:
        handler.head(code, len(body), **headers)
        handler.wfile.write(body)

    return script


def gate(opened: threading.Event, sent: threading.Event) -> Script:
    """The whole file, with a wait in it until the test opens the gate."""

    def script(handler: Handler) -> None:
        handler.head(200, len(handler.content))
        handler.wfile.write(handler.content[:300_000])
        sent.set()
        opened.wait(30)
        handler.wfile.write(handler.content[300_000:])

    return script


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 5.0))
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Publisher() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set"


def unpacked(root: Path) -> dict[str, bytes]:
    """Return all that a reader could see: every file under the root but those of the download's own folder."""
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if not path.is_dir()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("download/")}


def kept(root: Path) -> set[str]:
    return {path.name for path in (root / "download").iterdir()}


def of(publisher: Publisher, *names: str, **more: Any) -> Download:
    return Download([publisher.url(name) for name in names or ("set.tar.gz",)], **({"strip": ["set"]} | more))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- what arrives


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.tar.gz", TAR),
        ("set.tar.bz2", tar_of(FILES, special("set/jpg", tarfile.DIRTYPE), mode="w:bz2")),
        ("set.zip", zip_of({**FILES, "set/jpg/": b""})),
        ("dotted.tgz", tar_of({f"./{name}": content for name, content in FILES.items()})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_dataset_arrives(publisher: Publisher, root: Path, name: str, content: bytes) -> None:
    publisher.files[name] = content
    of(publisher, name).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert kept(root) == {name, "record.json", "lock"}
    assert (root / "download" / name).read_bytes() == content
    assert json.loads((root / "download/record.json").read_text()) == {name: sha256(content)}
    assert publisher.seen == [f"/files/{name}"]


def test_several_archives_make_one_dataset(publisher: Publisher, root: Path) -> None:
    """As MUCT's: one archive a camera, all with the same folder, and one of labels with a folder of its own."""
    publisher.files = {f"{c}.tar.gz": tar_of({f"jpg/{c}.jpg": noise(9000, i)}) for i, c in enumerate("abc")}
    publisher.files["labels.tar.gz"] = tar_of({"labels/muct.csv": b"1", "README": b"same"})
    publisher.files["more.zip"] = zip_of({"README": b"same"})
    of(publisher, *publisher.files, strip=["labels"]).fetch(root)
    assert unpacked(root).keys() == {"jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg", "muct.csv", "README"}


def test_nothing_shows_before_all_archives_are_there(publisher: Publisher, root: Path) -> None:
    publisher.files["more.tar.gz"] = tar_of({"set/c.jpg": b"c"})
    both = of(publisher, "set.tar.gz", "more.tar.gz")
    publisher.scripts = [whole, *[reply(404)] * 2]
    stop(lambda: both.fetch(root), "404")
    assert unpacked(root) == {}
    both.fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"c.jpg": b"c"}
    assert publisher.seen.count("/files/set.tar.gz") == 1  # the first is not fetched again


def test_a_second_fetch_asks_nothing(publisher: Publisher, root: Path) -> None:
    of(publisher).fetch(root)
    (root / "download/set.tar.gz").unlink()  # its space may be taken back
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    of(publisher).fetch(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before and len(publisher.seen) == 1


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ({"urls": []}, "one or more addresses"),
        ({"urls": ["ftp://host/a.zip"]}, "ftp://host/a.zip: not an http(s) address"),
        ({"urls": ["https:///a.zip"]}, "not an http(s) address"),
        ({"urls": ["https://host/"]}, "not an http(s) address of a file"),
        ({"urls": ["https://host/record.json"]}, "not an http(s) address of a file"),
        ({"urls": ["https://a/x.zip", "https://b/x.zip"]}, "another file name"),
        ({"urls": ["https://a/x.zip"], "sha256": ["12"]}, "64 hexadecimal digits"),
        ({"urls": ["https://a/x.zip"], "sha256": []}, "64 hexadecimal digits"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], reported: str) -> None:
    stop(lambda: Download(**values), reported)


# ---------------------------------------------------------------- answers that are not the file


@pytest.mark.parametrize("fault", [cut, reply(503), reply(429)], ids=["cut", "503", "429"])
def test_a_failed_transfer_is_tried_again(publisher: Publisher, root: Path, fault: Script) -> None:
    publisher.scripts = [fault]
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 2


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (cut, "cannot be fetched (IncompleteRead"),
        (reply(404), "the server answered 404 Not Found; check the address (data.download.urls)"),
        (lambda handler: handler.connection.close(), "cannot be fetched (Remote end closed connection"),
    ],
    ids=["cut", "404", "hangs up"],
)
def test_a_transfer_that_fails_is_reported(publisher: Publisher, root: Path, fault: Script, reported: str) -> None:
    publisher.scripts = [fault] * 99
    stop(
        lambda: of(publisher).fetch(root),
        f"{publisher.url()}: {reported}",
        f"fetch it in a browser, put it at {root / 'download/set.tar.gz'}",
    )
    assert unpacked(root) == {} and kept(root) == {"lock"}


def test_no_answer_is_reported(root: Path, free_port: int) -> None:
    offline = f"http://127.0.0.1:{free_port}/set.zip"
    stop(lambda: Download([offline]).fetch(root), f"{offline}: cannot be fetched (Connection refused); try later, or")


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html>Sign in</html>",
        b"\xef\xbb\xbf  \n<html>quota exceeded</html>",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    ],
)
def test_a_page_instead_of_the_file_is_reported(publisher: Publisher, root: Path, page: bytes) -> None:
    publisher.scripts = [reply(200, page)]
    stop(
        lambda: of(publisher).fetch(root), publisher.url(), "a web page (HTML or XML) instead of the archive", "browser"
    )
    assert len(publisher.seen) == 1 and kept(root) == {"lock"} and unpacked(root) == {}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


# ---------------------------------------------------------------- checksums


def test_the_published_checksum_holds(publisher: Publisher, root: Path) -> None:
    good = of(publisher, sha256=[sha256(TAR).upper()])
    publisher.files["set.tar.gz"] = OTHER_TAR
    stop(
        lambda: good.fetch(root),
        publisher.url(),
        f"expected {sha256(TAR)} but got {sha256(OTHER_TAR)}",
        "correct data.download.sha256",
    )
    assert kept(root) == {"lock"} and unpacked(root) == {}
    publisher.files["set.tar.gz"] = TAR
    good.fetch(root)
    good.fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 3
    stop(lambda: of(publisher, sha256=[sha256(OTHER_TAR)]).fetch(root), sha256(TAR), sha256(OTHER_TAR))


@pytest.mark.parametrize("known", [True, False])
def test_an_archive_that_was_put_there_by_hand_is_used(publisher: Publisher, root: Path, known: bool) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/set.tar.gz").write_bytes(TAR)
    of(publisher, sha256=[sha256(TAR)] if known else None).fetch(root)
    assert unpacked(root) == UNDER_ROOT and publisher.seen == []


@pytest.mark.parametrize(
    ("content", "reported"),
    [(OTHER_TAR, "not " + sha256(TAR)), (b"<html>", "a web page"), (b"", "not " + sha256(TAR))],
    ids=["other", "page", "empty"],
)
def test_a_wrong_archive_that_was_put_there_by_hand_stays(
    publisher: Publisher, root: Path, content: bytes, reported: str
) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/set.tar.gz").write_bytes(content)
    stop(lambda: of(publisher, sha256=[sha256(TAR)]).fetch(root), f"{root}/download/set.tar.gz: ", reported)
    assert (root / "download/set.tar.gz").read_bytes() == content
    assert publisher.seen == [] and unpacked(root) == {}


@pytest.mark.parametrize("record", ["{", "[1]"])
def test_a_damaged_record_is_reported(publisher: Publisher, root: Path, record: str) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/record.json").write_text(record)
    stop(lambda: of(publisher).fetch(root), f"{root}/download/record.json: not a record of a download", "delete it")


# ---------------------------------------------------------------- unsafe and damaged archives

UNSAFE = {
    "tar ..": tar_of({"set/ok": b"", "set/../../evil": b"x"}),
    "tar symlink out": tar_of({}, special("set/link", tarfile.SYMTYPE, "/etc")),
    "tar through link": tar_of({"ok": b""}, special("a", tarfile.SYMTYPE, "../.."), special("a/evil", tarfile.REGTYPE)),
    "tar hard link out": tar_of(FILES, special("set/link", tarfile.LNKTYPE, "../../../../record")),
    "tar device": tar_of({}, special("set/null", tarfile.CHRTYPE)),
    "zip ..": zip_of({"ok": b"", "../evil": b"x"}),
    "zip backslash": zip_of({"ok": b"", "..\\evil": b"x"}),
    "zip absolute": zip_of({"/tmp/evil": b"x"}),
    "zip drive": zip_of({"C:/evil": b"x"}),
    "zip symlink": zip_of({"ok": b""}, link=0o120777),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_archive_writes_nothing(publisher: Publisher, root: Path, name: str) -> None:
    publisher.files["set.tar.gz"] = UNSAFE[name]
    around = set(root.parent.parent.rglob("*"))
    stop(lambda: of(publisher).fetch(root), "set.tar.gz: unsafe", "nothing was unpacked")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}
    assert set(root.parent.parent.rglob("*")) - around == {
        root.parent, root, root / "download", root / "download/set.tar.gz", root / "download/lock",
    }  # fmt: skip


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def bad_header() -> bytes:
    plain = bytearray(tar_of(FILES, mode="w"))
    second = 512 + 400_384  # behind the first file and its padding
    assert plain[second : second + 8] == b"set/jpg/"
    plain[second + 150] ^= 1
    return gzip.compress(bytes(plain))


DAMAGED = {
    "short tar.gz": TAR[:-5000],
    "short before its checksum": TAR[:-4],
    "a bit of an image": flipped(TAR, 200_000),
    "checksum": flipped(TAR, len(TAR) - 6),
    "a header": bad_header(),
    "short zip": zip_of(FILES)[:-5000],
    "a bit of a zip": flipped(zip_of(FILES), 200_000),
    "encrypted zip": zip_of({"a": b"1"}).replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
    "empty": b"",
    "tar of folders": tar_of({}, special("set", tarfile.DIRTYPE)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_reported_and_shows_nothing(publisher: Publisher, root: Path, name: str) -> None:
    publisher.files["set.tar.gz"] = DAMAGED[name]
    stop(lambda: of(publisher).fetch(root), f"{root}/download/set.tar.gz: ", "delete it and fetch it again")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}  # and no record of its checksum


# ---------------------------------------------------------------- the disk


def test_a_disk_too_small_is_reported_before_anything_is_written(
    publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = archive.shutil.disk_usage(".")
    free = len(TAR) - 1
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage._replace(free=free))
    stop(lambda: of(publisher).fetch(root), "download/temporary: set.tar.gz takes", "GB are free", "data.root=DIR")
    assert publisher.seen == [] and kept(root) == {"lock"}
    free = len(TAR)
    publisher.files["set.tar.gz"] = tar_of({**FILES, "set/zeros": bytes(10**6)})
    free = 10**6
    stop(lambda: of(publisher).fetch(root), "unpacking set.tar.gz takes", "GB are free")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}


def test_a_disk_that_fills_up_is_reported(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "b.jpg")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", full)
        stop(lambda: of(publisher).fetch(root), "b.jpg: cannot be read or written (No space left on device)")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 1


def test_a_place_that_cannot_be_written_is_reported(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stop(lambda: of(publisher).fetch(tmp_path / "file"), str(tmp_path / "file"), "data.root=DIR")
    assert publisher.seen == []


@pytest.mark.parametrize("mine", ["labels.csv", "jpg", "jpg/deep/b.jpg/notes.txt"])
def test_a_file_of_the_user_is_never_replaced(publisher: Publisher, root: Path, mine: str) -> None:
    (root / mine).parent.mkdir(parents=True)
    (root / mine).write_text("mine")
    place = str(root / mine).replace("/notes.txt", "")
    stop(lambda: of(publisher).fetch(root), f"{place}: a file of this name and other content exists", "move it away")
    assert unpacked(root) == {mine: b"mine"} and kept(root) == {"set.tar.gz", "lock"}


def test_files_that_are_there_already_stay(publisher: Publisher, root: Path) -> None:
    (root / "jpg").mkdir(parents=True)
    (root / "jpg/a.jpg").write_bytes(FILES["set/jpg/a.jpg"])
    (root / "jpg/mine.jpg").write_bytes(b"mine")
    before = (root / "jpg/a.jpg").stat().st_ino
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"jpg/mine.jpg": b"mine"} and (root / "jpg/a.jpg").stat().st_ino == before


# ---------------------------------------------------------------- processes


def start(publisher: Publisher, root: Path, before: str = "") -> "subprocess.Popen[str]":
    """Start a fetch in a process of its own, after some lines of code."""
    code = (
        "import os, pathlib, signal\nfrom flr.data import archive, download\n"
        f"{before}\n"
        f"download.Download({[publisher.url()]!r}, strip=['set']).fetch(pathlib.Path({str(root)!r}))\n"
    )
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(Path(flr.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE)


def test_two_processes_fetch_once(publisher: Publisher, root: Path) -> None:
    opened, sent = threading.Event(), threading.Event()
    publisher.scripts = [gate(opened, sent)]
    first = start(publisher, root)
    assert sent.wait(60)
    second = start(publisher, root, "download.unpack = None")  # it has nothing left to do
    time.sleep(0.5)
    opened.set()
    for process in (first, second):
        _, reported = process.communicate(timeout=60)
        assert process.returncode == 0, reported
    assert len(publisher.seen) == 1 and unpacked(root) == UNDER_ROOT


def test_an_interrupted_transfer_leaves_nothing_that_looks_whole(publisher: Publisher, root: Path) -> None:
    opened, sent = threading.Event(), threading.Event()
    publisher.scripts = [gate(opened, sent)]
    process = start(publisher, root)
    assert sent.wait(60)
    process.kill()
    process.communicate(timeout=60)
    opened.set()
    assert unpacked(root) == {} and kept(root) == {"lock", "temporary"}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and kept(root) == {"set.tar.gz", "record.json", "lock"}


KILL = """
real, moved = os.rename, []
def rename(source, target):
    if len(moved) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    moved.extend([1] * ("temporary" not in str(target)))
    real(source, target)
os.rename = rename
"""


def test_unpacking_that_was_killed_is_done_again(publisher: Publisher, root: Path) -> None:
    process = start(publisher, root, KILL)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, reported
    found = unpacked(root)  # whole files, but no table by which a reader would find the dataset
    assert len(found) == 2 and found.items() <= UNDER_ROOT.items() and "labels.csv" not in found
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and kept(root) == {"set.tar.gz", "record.json", "lock"}
    assert len(publisher.seen) == 1  # the archive was there
