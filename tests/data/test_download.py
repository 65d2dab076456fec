"""Downloads against a real web server on loopback, with everything that goes wrong on the way."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flr
from flr.config.instantiate import build
from flr.data import download
from flr.data.download import CHUNK, Download
from tests.data.support import stop


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not pack, as those of a photo."""
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


class Seen(NamedTuple):
    path: str
    range: str | None
    if_range: str | None
    encoding: str | None


class Handler(BaseHTTPRequestHandler):
    server: "Publisher"

    def do_GET(self) -> None:
        header = self.headers.get
        self.server.seen.append(Seen(self.path, header("Range"), header("If-Range"), header("Accept-Encoding")))
        script = self.server.scripts.pop(0) if self.server.scripts else whole
        with contextlib.suppress(ConnectionError):  # the client was killed, or has had enough
            script(self)

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def content(self) -> bytes:
        return self.server.files[self.path.rpartition("/")[2]]

    def head(self, code: int, length: int | None, kind: str = "application/octet-stream", **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", kind)
        for name, value in {**self.server.headers, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.sent += len(data)


Script = Callable[[Handler], None]


class Publisher(ThreadingHTTPServer):
    """Serves `files`; each request is answered by the next of `scripts`, or as a good server would."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"set.tar.gz": TAR}
        self.headers: dict[str, str] = {"ETag": '"one"'}
        self.scripts: list[Script] = []
        self.seen: list[Seen] = []
        self.sent = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def url(self, name: str = "set.tar.gz") -> str:
        return f"http://127.0.0.1:{self.server_port}/files/{name}"


def whole(handler: Handler) -> None:
    """All of the file, or the part that is asked for where the validator still fits."""
    data, asked = handler.content, handler.headers.get("Range")
    current = {handler.server.headers.get("ETag"), handler.server.headers.get("Last-Modified")} - {None}
    if asked is None or handler.headers.get("If-Range") not in current:
        handler.head(200, len(data))
        handler.send(data)
        return
    part(handler)


def part(handler: Handler) -> None:
    """The part that is asked for, whatever the validator says."""
    data = handler.content
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    if start >= len(data):
        handler.head(416, 0, Content_Range=f"bytes */{len(data)}")
        return
    handler.head(206, len(data) - start, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send(data[start:])


def no_range(handler: Handler) -> None:
    handler.head(200, len(handler.content))
    handler.send(handler.content)


def cut(after: int) -> Script:
    """Promises the whole file and closes the line after some of it."""

    def script(handler: Handler) -> None:
        handler.head(200, len(handler.content))
        handler.send(handler.content[:after])

    return script


def reply(code: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Script:
    def script(handler: Handler) -> None:
        handler.head(code, len(body), kind, **headers)
        handler.send(body)

    return script


def gate(after: int, opened: threading.Event, sent: threading.Event) -> Script:
    """The whole file, with a wait in it until the test says so."""

    def script(handler: Handler) -> None:
        handler.head(200, len(handler.content))
        handler.send(handler.content[:after])
        sent.set()
        opened.wait(30)
        handler.send(handler.content[after:])

    return script


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 5.0))
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


# ---------------------------------------------------------------- what the tests look at


def unpacked(root: Path) -> dict[str, bytes]:
    """All that a reader could see: every file under the root but those of the download's own folder."""
    files = [path for path in root.rglob("*") if not path.is_dir()]
    names = {str(path.relative_to(root)): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("download/")}


def kept(root: Path) -> set[str]:
    return {path.name for path in (root / "download").iterdir()}


def of(publisher: Publisher, *names: str, **more: Any) -> Download:
    return Download([publisher.url(name) for name in names or ("set.tar.gz",)], **({"strip": ["set"]} | more))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- a good day


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("set.tar.gz", TAR),
        ("set.tar", tar_of(FILES, mode="w")),
        ("set.tar.xz", tar_of(FILES, mode="w:xz")),
        ("set.tar.bz2", tar_of(FILES, special("set/jpg", tarfile.DIRTYPE), mode="w:bz2")),
        ("set.zip", zip_of({**FILES, "set/jpg/": b""})),
        ("dotted.tgz", tar_of({f"./{name}": content for name, content in FILES.items()})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_set_arrives(publisher: Publisher, root: Path, name: str, archive: bytes) -> None:
    publisher.files[name] = archive
    of(publisher, name).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert kept(root) == {name, "record.json", "lock"}
    assert (root / "download" / name).read_bytes() == archive
    assert json.loads((root / "download/record.json").read_text())[name]["sha256"] == sha256(archive)
    assert publisher.seen == [Seen(f"/files/{name}", None, None, "identity")]


def test_several_archives_make_one_set(publisher: Publisher, root: Path) -> None:
    """As MUCT's: one archive a camera, all with the same folder, and one of labels with a folder of its own."""
    publisher.files = {f"{c}.tar.gz": tar_of({f"jpg/{c}.jpg": noise(9000, i)}) for i, c in enumerate("abc")}
    publisher.files["labels.tar.gz"] = tar_of({"labels/muct.csv": b"1", "labels/README.txt": b"2"})
    of(publisher, *publisher.files, strip=["labels"]).fetch(root)
    assert unpacked(root).keys() == {"jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg", "muct.csv", "README.txt"}


def test_a_file_that_two_archives_share_is_no_conflict(publisher: Publisher, root: Path) -> None:
    publisher.files = {"a.zip": zip_of({"README": b"same", "a": b"1"}), "b.zip": zip_of({"README": b"same", "b": b"2"})}
    of(publisher, "a.zip", "b.zip").fetch(root)
    assert unpacked(root) == {"README": b"same", "a": b"1", "b": b"2"}


def test_nothing_shows_before_all_archives_are_there(publisher: Publisher, root: Path) -> None:
    publisher.files["more.tar.gz"] = tar_of({"set/c.jpg": b"c"})
    both = of(publisher, "set.tar.gz", "more.tar.gz")
    publisher.scripts = [whole, reply(404)]
    stop(lambda: both.fetch(root), "404")
    assert unpacked(root) == {}
    both.fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"c.jpg": b"c"}
    assert [seen.path for seen in publisher.seen].count("/files/set.tar.gz") == 1  # the first is not fetched again


def test_a_second_fetch_asks_nothing(publisher: Publisher, root: Path) -> None:
    of(publisher).fetch(root)
    (root / "download/set.tar.gz").unlink()  # its space may be taken back
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    of(publisher).fetch(root)
    assert len(publisher.seen) == 1
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_lost_file_comes_back(publisher: Publisher, root: Path) -> None:
    publisher.files["more.tar.gz"] = tar_of({"set/c.jpg": b"c"})
    both = of(publisher, "set.tar.gz", "more.tar.gz")
    both.fetch(root)
    before = (root / "labels.csv").stat()
    (root / "jpg/a.jpg").unlink()
    both.fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"c.jpg": b"c"} and len(publisher.seen) == 2  # from the archive that is there
    (root / "jpg/a.jpg").write_bytes(b"")
    (root / "jpg/a.jpg").unlink()
    (root / "download/set.tar.gz").unlink()
    both.fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"c.jpg": b"c"}
    assert [seen.path for seen in publisher.seen[2:]] == ["/files/set.tar.gz"]  # the other has nothing to do with it
    assert (root / "labels.csv").stat()[:2] == before[:2]  # the same inode


def test_a_yaml_node_builds_it(publisher: Publisher, root: Path) -> None:
    build({"_target_": "flr.data.download.Download", "urls": [publisher.url()], "strip": ["set"]}).fetch(root)
    assert unpacked(root) == UNDER_ROOT


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"urls": []}, "one address or more"),
        ({"urls": ["ftp://host/a.zip"]}, "ftp://host/a.zip is no http(s) address"),
        ({"urls": ["file:///etc/a.zip"]}, "is no http(s) address"),
        ({"urls": ["https:///a.zip"]}, "is no http(s) address"),
        ({"urls": ["https://host/"]}, "is no http(s) address of a file"),
        ({"urls": ["https://host/a/.."]}, "is no http(s) address of a file"),
        ({"urls": ["https://host/record.json"]}, "is no http(s) address of a file"),
        ({"urls": ["https://a/x.zip", "https://b/x.zip"]}, "another file's name"),
        ({"urls": ["https://a/x.zip"], "sha256": ["12"]}, "64 hexadecimal digits"),
        ({"urls": ["https://a/x.zip"], "sha256": []}, "64 hexadecimal digits"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    stop(lambda: Download(**values), said)


# ---------------------------------------------------------------- cut connections


def resumed_at(publisher: Publisher) -> int:
    """Where the second of two requests went on; the server then sent the rest and no byte more."""
    first, second = publisher.seen
    assert first.range is None and second.range is not None
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    return start


@pytest.mark.parametrize("headers", [{"ETag": '"one"'}, {"Last-Modified": "Mon, 01 Feb 2010 10:00:00 GMT"}], ids=str)
def test_a_cut_connection_is_gone_on_with(publisher: Publisher, root: Path, headers: dict[str, str]) -> None:
    publisher.headers = headers
    publisher.scripts = [cut(500_000)]
    of(publisher).fetch(root)
    start = resumed_at(publisher)
    assert 500_000 - CHUNK < start <= 500_000
    assert publisher.sent == 500_000 + len(TAR) - start
    assert publisher.seen[1].if_range == next(iter(headers.values()))
    assert unpacked(root) == UNDER_ROOT
    assert kept(root) == {"set.tar.gz", "record.json", "lock"}


def test_a_line_that_goes_dead_is_cut(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 1.0))
    opened = threading.Event()
    publisher.scripts = [gate(200_000, opened, threading.Event())]
    of(publisher).fetch(root)
    opened.set()
    assert resumed_at(publisher) > 0
    assert unpacked(root) == UNDER_ROOT


def test_a_slow_server_is_waited_for(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 0.5))

    def slow(handler: Handler) -> None:
        handler.head(200, len(TAR))
        for at in range(0, len(TAR), 50_000):
            handler.send(TAR[at : at + 50_000])
            time.sleep(0.05)  # .7 s in all: longer than the wait between two bytes

    publisher.scripts = [slow] * 99
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"one"'}], ids=["none", "weak"])
def test_without_a_validator_it_starts_over(publisher: Publisher, root: Path, headers: dict[str, str]) -> None:
    """Two halves might be of two versions, and nothing would tell."""
    publisher.headers = headers
    publisher.scripts = [cut(500_000)]
    of(publisher).fetch(root)
    assert [seen.range for seen in publisher.seen] == [None, None]
    assert unpacked(root) == UNDER_ROOT


def test_a_server_that_ignores_ranges_starts_over(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [cut(500_000), no_range]
    of(publisher).fetch(root)
    assert resumed_at(publisher) > 0
    assert unpacked(root) == UNDER_ROOT


@pytest.mark.parametrize("careless", [False, True], ids=["If-Range heeded", "If-Range ignored"])
def test_a_file_that_changed_starts_over(publisher: Publisher, root: Path, careless: bool) -> None:
    old, new = (
        tar_of({**FILES, "set/jpg/a.jpg": content}, mode="w") for content in (noise(400_000, 7), noise(400_000, 0))
    )
    publisher.files["set.tar.gz"] = old
    assert len(old) == len(new)

    def then_changed(handler: Handler) -> None:
        cut(500_000)(handler)
        publisher.files["set.tar.gz"] = new
        publisher.headers = {"ETag": '"two"'}

    publisher.scripts = [then_changed, *[part] * careless]
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert publisher.seen[1].range and publisher.seen[1].if_range == '"one"'
    assert len(publisher.seen) == 2 + careless


def test_a_file_that_shrank_starts_over(publisher: Publisher, root: Path) -> None:
    publisher.files["set.tar.gz"] = TAR + noise(400_000, 3)

    def then_shrank(handler: Handler) -> None:
        cut(len(TAR) + 200_000)(handler)
        publisher.files["set.tar.gz"] = TAR

    publisher.scripts = [then_shrank, part]  # 416
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert [bool(seen.range) for seen in publisher.seen] == [False, True, False]


@pytest.mark.parametrize(
    "span", ["bytes 0-{end}/{total}", "bytes {start}-{end}/*", "bytes {start}-{end}/999999", "{start}"]
)
def test_another_part_than_was_asked_for_is_not_taken(publisher: Publisher, root: Path, span: str) -> None:
    def wrong(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        said = span.format(start=start, end=len(TAR) - 1, total=len(TAR))
        handler.head(206, len(TAR) - start, Content_Range=said)
        handler.send(TAR[start:])

    publisher.scripts = [cut(500_000), wrong]
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert [bool(seen.range) for seen in publisher.seen] == [False, True, False]


def test_a_part_may_be_shorter_than_was_asked_for(publisher: Publisher, root: Path) -> None:
    def short(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        handler.head(206, 1000, Content_Range=f"bytes {start}-{start + 999}/{len(TAR)}")
        handler.send(TAR[start : start + 1000])

    publisher.scripts = [cut(500_000), short]
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert int(publisher.seen[2].range[6:-1]) == int(publisher.seen[1].range[6:-1]) + 1000  # type: ignore[index]


def test_a_length_that_is_never_reached_ends(publisher: Publisher, root: Path) -> None:
    def longer(handler: Handler) -> None:
        handler.head(200, len(TAR) + 1000)
        handler.send(TAR)

    publisher.scripts = [longer] * 99
    words = "the connection was cut", f"the last of {download.ATTEMPTS} attempts", "run this again", "put it at"
    stop(lambda: of(publisher).fetch(root), *words, str(root / "download/set.tar.gz"))
    assert len(publisher.seen) == download.ATTEMPTS
    assert unpacked(root) == {} and "set.tar.gz" not in kept(root)


def test_a_file_without_a_length_is_refused(publisher: Publisher, root: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.head(200, None)
        handler.send(TAR)

    publisher.scripts = [endless]
    stop(lambda: of(publisher).fetch(root), "does not say how long the file is", "put it at")


def test_a_label_of_packing_leaves_the_bytes_alone(publisher: Publisher, root: Path) -> None:
    """Some servers call a .tar.gz a packed .tar; its length, ranges and sum are those of the .tar.gz."""
    publisher.headers["Content-Encoding"] = "gzip"
    publisher.scripts = [cut(500_000)]
    of(publisher, sha256=[sha256(TAR)]).fetch(root)
    assert resumed_at(publisher) > 0
    assert unpacked(root) == UNDER_ROOT


def test_an_interrupt_leaves_what_a_later_fetch_goes_on_with(
    publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar(download.tqdm):  # type: ignore[type-arg,misc]
        def update(self, n: float | None = 1) -> bool | None:
            if self.n > 300_000:
                raise KeyboardInterrupt
            self.n += n or 0
            return None

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "tqdm", Bar)
        of(publisher).fetch(root)
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz.part", "set.tar.gz.part.json", "lock"}
    size = (root / "download/set.tar.gz.part").stat().st_size
    of(publisher).fetch(root)
    assert resumed_at(publisher) == size > 300_000
    assert unpacked(root) == UNDER_ROOT


def test_a_part_that_is_whole_is_not_asked_for_again(
    publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.os, "replace", killed)
        patch.setattr(download, "write_json", lambda path, value: path.write_text(json.dumps(value)))
        of(publisher).fetch(root)
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 1


@pytest.mark.parametrize("note", ["{", "[]", '{"url": 1}', '{"url": "http://other/", "total": 99, "validator": "x"}'])
def test_a_part_of_something_else_starts_over(publisher: Publisher, root: Path, note: str) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/set.tar.gz.part").write_bytes(b"rest of another day")
    (root / "download/set.tar.gz.part.json").write_text(note)
    of(publisher).fetch(root)
    assert publisher.seen[0].range is None
    assert unpacked(root) == UNDER_ROOT


# ---------------------------------------------------------------- answers that are not the file


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf<html>", "text/html"),
        (b"  \n<html>quota exceeded</html>", "application/octet-stream"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "application/xml"),
    ],
    ids=["typed", "bom", "untyped", "xml"],
)
def test_a_page_in_place_of_the_file_is_said_by_name(publisher: Publisher, root: Path, body: bytes, kind: str) -> None:
    publisher.scripts = [reply(200, body, kind)]
    words = publisher.url(), "a web page (HTML or XML) in place of the archive", "browser", "put the archive at"
    stop(lambda: of(publisher).fetch(root), *words)
    assert kept(root) == {"lock"} and unpacked(root) == {}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


def test_a_page_does_not_cost_what_was_fetched_before(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [cut(500_000), reply(200, b"<html>pay for the hotel's network</html>", "text/html")]
    stop(lambda: of(publisher).fetch(root), "a web page")
    of(publisher).fetch(root)
    assert publisher.seen[2].range
    assert unpacked(root) == UNDER_ROOT


@pytest.mark.parametrize(
    ("code", "said"), [(404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone"), (299, "299"), (799, "799")]
)
def test_a_refusal_is_told_at_once(publisher: Publisher, root: Path, code: int, said: str) -> None:
    publisher.scripts = [reply(code)]
    words = f"{publisher.url()}: the server answered {said};", "data.download.urls", "in a browser, put it at"
    stop(lambda: of(publisher).fetch(root), *words, str(root / "download/set.tar.gz"))
    assert len(publisher.seen) == 1 and kept(root) == {"lock"}


def test_a_busy_server_is_asked_again(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [reply(503), reply(429), cut(300_000), reply(502)]
    of(publisher).fetch(root)
    assert len(publisher.seen) == 5 and publisher.seen[4].range
    assert unpacked(root) == UNDER_ROOT


def test_a_server_that_stays_busy_is_left(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [reply(503)] * 99
    stop(lambda: of(publisher).fetch(root), "503 Service Unavailable, the last of 8 attempts")


def test_pauses_grow_to_a_bound(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download, "PAUSE", 1.0)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    publisher.scripts = [reply(503)] * 99
    stop(lambda: of(publisher).fetch(root), "503")
    assert pauses == [1, 2, 4, 8, 16, 16, 16]


def test_a_redirect_is_followed(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [reply(302, Location="/mirror/set.tar.gz"), cut(300_000)]
    of(publisher).fetch(root)
    assert [seen.path for seen in publisher.seen] == [
        "/files/set.tar.gz", "/mirror/set.tar.gz", "/files/set.tar.gz",
    ]  # fmt: skip
    assert unpacked(root) == UNDER_ROOT


@pytest.mark.parametrize(
    ("to", "said"), [("/files/set.tar.gz", "redirects"), ("ftp://host/a.zip", "ftp"), ("http://[", "cannot be fetched")]
)
def test_a_redirect_to_nowhere_ends(publisher: Publisher, root: Path, to: str, said: str) -> None:
    publisher.scripts = [reply(302, Location=to)] * 99
    stop(lambda: of(publisher).fetch(root), publisher.url(), said, "put it at")


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_a_server_that_hangs_up_is_told(publisher: Publisher, root: Path) -> None:
    publisher.scripts = [hang_up]
    stop(lambda: of(publisher).fetch(root), "cannot be reached (Remote end closed connection")


def test_no_answer_is_told(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 0.3))
    opened = threading.Event()
    publisher.scripts = [lambda _: opened.wait(30) and None]
    stop(lambda: of(publisher).fetch(root), "cannot be reached (timed out)", "put it at")
    opened.set()
    assert len(publisher.seen) == 1


def test_a_refused_connection_is_told(root: Path, free_port: int) -> None:
    offline = Download([f"http://127.0.0.1:{free_port}/set.zip"])
    words = f"http://127.0.0.1:{free_port}/set.zip: cannot be reached (Connection refused)", "try later, or fetch it in"
    stop(lambda: offline.fetch(root), *words, str(root / "download/set.zip"))


def test_an_unknown_host_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    stop(
        lambda: Download(["https://nowhere.invalid/a.zip"]).fetch(root), "cannot be reached (Name or service not known)"
    )


def test_a_tls_failure_is_told(publisher: Publisher, root: Path) -> None:
    secure = Download([publisher.url().replace("http://", "https://")])
    stop(lambda: secure.fetch(root), "cannot be reached ([SSL", "put it at")


def test_a_server_that_comes_back_is_gone_on_with(publisher: Publisher, root: Path) -> None:
    """Once something has come, a failure to connect is a pause in the line, and no address that is wrong."""
    publisher.scripts = [cut(300_000), hang_up, hang_up]
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and publisher.seen[3].range


# ---------------------------------------------------------------- checksums


def test_the_published_sum_is_held(publisher: Publisher, root: Path) -> None:
    good = of(publisher, sha256=[sha256(TAR).upper()])
    publisher.files["set.tar.gz"] = OTHER_TAR
    words = publisher.url(), sha256(OTHER_TAR), f"not {sha256(TAR)} as data.download.sha256 says", "run this again"
    stop(lambda: good.fetch(root), *words)
    assert kept(root) == {"lock"} and unpacked(root) == {}  # nothing that a later run could trust or go on with
    publisher.files["set.tar.gz"] = TAR
    good.fetch(root)
    assert publisher.seen[1].range is None
    assert unpacked(root) == UNDER_ROOT
    good.fetch(root)
    assert len(publisher.seen) == 2


def test_the_recorded_sum_is_held(publisher: Publisher, root: Path) -> None:
    of(publisher).fetch(root)
    (root / "download/set.tar.gz").unlink()
    (root / "jpg/a.jpg").unlink()
    left, record = unpacked(root), (root / "download/record.json").read_text()
    publisher.files["set.tar.gz"] = OTHER_TAR
    words = (
        publisher.url(),
        sha256(OTHER_TAR),
        f"not {sha256(TAR)} as the first fetch recorded in",
        "delete that record",
    )
    stop(lambda: of(publisher).fetch(root), *words, str(root / "download/record.json"))
    assert unpacked(root) == left and kept(root) == {"record.json", "lock"}
    assert (root / "download/record.json").read_text() == record
    publisher.files["set.tar.gz"] = TAR
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


def test_an_archive_that_changed_on_disk_is_told(publisher: Publisher, root: Path) -> None:
    of(publisher).fetch(root)
    (root / "jpg/a.jpg").unlink()
    (root / "download/set.tar.gz").write_bytes(OTHER_TAR)
    words = f"{root}/download/set.tar.gz: its sha256", f"delete {root}/download/set.tar.gz to fetch it anew"
    stop(lambda: of(publisher).fetch(root), *words)
    assert (root / "download/set.tar.gz").read_bytes() == OTHER_TAR  # it may be the user's own
    assert len(publisher.seen) == 1


def test_a_sum_that_is_published_later_is_held_against_what_is_there(publisher: Publisher, root: Path) -> None:
    of(publisher).fetch(root)
    of(publisher, sha256=[sha256(TAR)]).fetch(root)
    assert len(publisher.seen) == 1
    stop(lambda: of(publisher, sha256=[sha256(OTHER_TAR)]).fetch(root), sha256(TAR), sha256(OTHER_TAR))


@pytest.mark.parametrize("known", [True, False])
def test_an_archive_that_was_put_there_by_hand_is_used(publisher: Publisher, root: Path, known: bool) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/set.tar.gz").write_bytes(TAR)
    of(publisher, sha256=[sha256(TAR)] if known else None).fetch(root)
    assert unpacked(root) == UNDER_ROOT
    assert publisher.seen == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(OTHER_TAR, "not " + sha256(TAR)), (b"<html>", "a web page"), (b"", "not " + sha256(TAR))],
    ids=["other", "page", "empty"],
)
def test_a_wrong_archive_that_was_put_there_by_hand_is_told_and_stays(
    publisher: Publisher, root: Path, content: bytes, said: str
) -> None:
    (root / "download").mkdir(parents=True)
    (root / "download/set.tar.gz").write_bytes(content)
    stop(lambda: of(publisher, sha256=[sha256(TAR)]).fetch(root), str(root / "download/set.tar.gz"), said)
    assert (root / "download/set.tar.gz").read_bytes() == content
    assert publisher.seen == [] and unpacked(root) == {}


@pytest.mark.parametrize("record", ["{", "[1]", '{"set.tar.gz": {"sha": 1}}', '{"set.tar.gz": 3}'])
def test_a_spoiled_record_is_told(publisher: Publisher, root: Path, record: str) -> None:
    of(publisher).fetch(root)
    (root / "download/record.json").write_text(record)
    stop(lambda: of(publisher).fetch(root), f"{root}/download/record.json: not a record of a download", "delete it")


# ---------------------------------------------------------------- archives that no one should unpack

UNSAFE: dict[str, tuple[bytes, str]] = {
    "tar ..": (tar_of({"set/ok": b"", "set/../../evil": b"x"}), "leads out of its folder"),
    "tar strip ..": (tar_of({"set/ok": b"", "set/../evil": b"x"}), "leads out of its folder"),
    "tar absolute": (tar_of({"/tmp/evil": b"x"}), "leads out of its folder"),
    "tar symlink": (tar_of({}, special("set/link", tarfile.SYMTYPE, "/etc")), "a link or a device"),
    "tar inner symlink": (tar_of(FILES, special("set/link", tarfile.SYMTYPE, "jpg/a.jpg")), "a link or a device"),
    "tar through link": (
        tar_of({"set/ok": b""}, special("link", tarfile.SYMTYPE, "../.."), special("link/evil", tarfile.REGTYPE)),
        "a link or a device",
    ),
    "tar hard link": (tar_of(FILES, special("set/link", tarfile.LNKTYPE, "/etc/passwd")), "a link or a device"),
    "tar device": (tar_of({}, special("set/null", tarfile.CHRTYPE)), "a link or a device"),
    "tar fifo": (tar_of({}, special("set/pipe", tarfile.FIFOTYPE)), "a link or a device"),
    "tar backslash": (tar_of({"set\\..\\evil": b"x"}), "leads out of its folder"),
    "tar twice": (tar_of(FILES, special("set/labels.csv", tarfile.REGTYPE)), "twice"),
    "tar twice stripped": (tar_of({"labels.csv": b"", "set/labels.csv": b""}), "twice"),
    "tar file as folder": (tar_of({"set/a": b"", "set/a/b": b""}), "as a file and as a folder"),
    "tar own folder": (tar_of({"set/download/record.json": b"{}"}), "where no file of a data set can lie"),
    "tar no name": (tar_of({".": b"x"}), "where no file of a data set can lie"),
    "zip ..": (zip_of({"ok": b"", "../evil": b"x"}), "leads out of its folder"),
    "zip absolute": (zip_of({"/tmp/evil": b"x"}), "leads out of its folder"),
    "zip drive": (zip_of({"C:/evil": b"x"}), "leads out of its folder"),
    "zip symlink": (zip_of({"ok": b""}, link=0o120777), "a link or a device"),
    "zip device": (zip_of({}, null=0o020666), "a link or a device"),
    "zip own folder": (zip_of({"download/x.part": b"{}"}), "where no file of a data set can lie"),
    "zip no name": (zip_of({"QQQ": b"x"}).replace(b"QQQ", b"\0\0\0"), "where no file of a data set can lie"),
    "tar endless name": (tar_of({"a/" * 3000 + "b": b""}), "a name of 6,001 letters"),
    "zip bomb": (zip_of({"ok": b"", "bomb": bytes(60_000_000)}), "grows to more than 200 times its size"),
    "tar bomb": (tar_of({"ok": b"", "bomb": bytes(60_000_000)}), "grows to more than 200 times its size"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_archive_writes_nothing(publisher: Publisher, root: Path, name: str) -> None:
    archive, said = UNSAFE[name]
    publisher.files["set.tar.gz"] = archive
    around = set(root.parent.parent.rglob("*"))
    stop(lambda: of(publisher).fetch(root), "set.tar.gz", said, "nothing was unpacked")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}
    assert set(root.parent.parent.rglob("*")) - around == {
        root.parent, root, root / "download", root / "download/set.tar.gz", root / "download/lock",
    }  # fmt: skip


def test_a_bomb_is_met_before_it_is_unpacked(publisher: Publisher, root: Path) -> None:
    """A header alone claims it; nothing of that size is read or held."""
    header = tarfile.TarInfo("bomb")
    header.size = 2**40
    publisher.files["set.tar.gz"] = gzip.compress(header.tobuf())
    stop(lambda: of(publisher).fetch(root), "grows to more than 200 times its size")


def test_a_long_name_that_would_fill_the_memory_is_met(publisher: Publisher, root: Path) -> None:
    header = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 2**32
    first = tarfile.TarInfo("ok").tobuf()
    publisher.files["set.tar.gz"] = gzip.compress(first + header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    stop(lambda: of(publisher).fetch(root), "damaged", "a header claims 4294967296 bytes")


# ---------------------------------------------------------------- damage


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def bad_header() -> bytes:
    plain = bytearray(tar_of(FILES, mode="w"))
    second = 512 + 400_384  # behind the first file and its padding
    assert plain[second : second + 8] == b"set/jpg/"
    plain[second + 150] ^= 1
    return gzip.compress(bytes(plain))


def a_length_too_long() -> bytes:
    """A zip whose first entry claims a comment that covers the second."""
    packed = bytearray(zip_of(FILES))
    first = packed.index(b"PK\x01\x02")
    second = packed.index(b"PK\x01\x02", first + 4)
    packed[first + 32] = packed.index(b"PK\x01\x02", second + 4) - second
    with zipfile.ZipFile(io.BytesIO(packed)) as opened:
        assert len(opened.infolist()) == len(FILES) - 1  # zipfile itself sees no fault
    return bytes(packed)


def before_its_start() -> bytes:
    """A zip whose directory is said to lie further on than it does, so that its first member begins before the file."""
    packed = bytearray(zip_of(FILES))
    at = packed.rindex(b"PK\x05\x06") + 16
    packed[at : at + 4] = (int.from_bytes(packed[at : at + 4], "little") + 100).to_bytes(4, "little")
    return bytes(packed)


def made_up_for() -> bytes:
    """A bomb behind a folder that claims less than nothing."""
    folder = special("set", tarfile.DIRTYPE)
    folder.pax_headers = {"size": "-1000000000"}
    return gzip.compress(folder.tobuf() + tar_of({"bomb": bytes(60_000_000)}, mode="w"))


DAMAGED = {
    "a size below zero": made_up_for(),
    "before its start": before_its_start(),
    "short tar.gz": TAR[:-5000],
    "short before its checksum": TAR[:-4],
    "a bit of a picture": flipped(TAR, 200_000),
    "checksum": flipped(TAR, len(TAR) - 6),
    "a header": bad_header(),
    "short tar": tar_of(FILES, mode="w")[:500_000],
    "short zip": zip_of(FILES)[:-5000],
    "a bit of a zip": flipped(zip_of(FILES), 200_000),
    "a zip's directory": a_length_too_long(),
    "encrypted zip": zip_of({"a": b"1"}).replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
    "no archive": noise(5000, 9),
    "text": b"quota exceeded",
    "json": b'{"error": 1}',
    "empty": b"",
    "zip of nothing": zip_of({}),
    "tar of nothing": tar_of({}),
    "tar of folders": tar_of({}, special("set", tarfile.DIRTYPE)),
    "zeros behind the end": gzip.compress(tar_of(FILES, mode="w") + bytes(2**25)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_told_and_shows_nothing(publisher: Publisher, root: Path, name: str) -> None:
    publisher.files["set.tar.gz"] = DAMAGED[name]
    stop(lambda: of(publisher).fetch(root), f"{root}/download/set.tar.gz: ", "delete it and fetch it again")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}  # and no record of its sum
    (root / "download/set.tar.gz").unlink()
    publisher.files["set.tar.gz"] = TAR
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


# ---------------------------------------------------------------- the disk


def free(monkeypatch: pytest.MonkeyPatch, *left: int) -> None:
    """The free bytes that the next questions hear; the last one stays."""
    answers = list(left)
    usage = download.shutil.disk_usage(".")
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda _: usage._replace(free=answers.pop(0) if len(answers) > 1 else answers[0])
    )


def test_a_disk_too_small_for_the_archive_is_told_before_it_comes(
    publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, len(TAR) - 1)
    words = f"{root}/download: the rest of set.tar.gz takes", "GB are free", "data.root=DIR"
    stop(lambda: of(publisher).fetch(root), *words)
    assert (root / "download/set.tar.gz.part").stat().st_size == 0


def test_only_the_rest_needs_room(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.scripts = [cut(600_000)]
    free(monkeypatch, 10**9, len(TAR) - 500_000, 10**9)
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


def test_a_disk_too_small_for_the_files_is_told_before_they_are_written(
    publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(map(len, FILES.values()))
    free(monkeypatch, 10**9, total - 1)
    stop(lambda: of(publisher).fetch(root), "unpacking takes", "GB are free")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}
    free(monkeypatch, total)
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 1


def test_a_disk_that_fills_up_is_told(publisher: Publisher, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, mode: str = "r", **more: Any) -> Any:
        if mode == "xb" and self.name == "b.jpg":
            raise OSError(28, "No space left on device", str(self))
        return real(self, mode, **more)

    real = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        stop(lambda: of(publisher).fetch(root), "b.jpg: cannot be read or written (No space left on device)")
    assert unpacked(root) == {} and kept(root) == {"set.tar.gz", "lock"}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT


def test_a_place_that_cannot_be_written_is_told(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stop(lambda: of(publisher).fetch(tmp_path / "file"), str(tmp_path / "file"), "data.root=DIR")
    stop(lambda: of(publisher).fetch(Path("/proc/no/such")), "/proc/no", "data.root=DIR")
    assert publisher.seen == []


@pytest.mark.parametrize("mine", ["labels.csv", "jpg", "jpg/deep/b.jpg/notes.txt"])
def test_a_file_of_the_user_is_never_replaced(publisher: Publisher, root: Path, mine: str) -> None:
    (root / mine).parent.mkdir(parents=True)
    (root / mine).write_text("mine")
    said = str(root / mine).replace("/notes.txt", "")
    stop(lambda: of(publisher).fetch(root), f"{said}: is in the way", "move it away")
    assert unpacked(root) == {mine: b"mine"} and kept(root) == {"set.tar.gz", "lock"}
    (root / mine).rename(root.parent / "moved")
    if mine.endswith("notes.txt"):
        (root / mine).parent.rmdir()
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and len(publisher.seen) == 1


def test_a_broken_link_in_the_way_is_not_followed(publisher: Publisher, root: Path) -> None:
    root.mkdir(parents=True)
    (root / "labels.csv").symlink_to("nowhere")
    stop(lambda: of(publisher).fetch(root), "labels.csv: is in the way")


def test_files_that_are_there_already_stay_as_they_are(publisher: Publisher, root: Path) -> None:
    (root / "jpg").mkdir(parents=True)
    (root / "jpg/a.jpg").write_bytes(FILES["set/jpg/a.jpg"])
    (root / "jpg/mine.jpg").write_bytes(b"mine")
    before = (root / "jpg/a.jpg").stat()
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT | {"jpg/mine.jpg": b"mine"}
    after = (root / "jpg/a.jpg").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# ---------------------------------------------------------------- processes


def start(publisher: Publisher, root: Path, before: str = "") -> "subprocess.Popen[str]":
    """A fetch in a process of its own, after some lines of code."""
    code = (
        "import os, pathlib, signal\nfrom flr.data import download\n"
        f"{before}\n"
        f"download.Download({[publisher.url()]!r}, strip=['set']).fetch(pathlib.Path({str(root)!r}))\n"
    )
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(Path(flr.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE)


def test_two_processes_fetch_once(publisher: Publisher, root: Path) -> None:
    opened, sent = threading.Event(), threading.Event()
    publisher.scripts = [gate(300_000, opened, sent)]
    first = start(publisher, root)
    assert sent.wait(60)
    second = start(publisher, root, "download._bring = download._extract = None")  # it has nothing left to do
    assert second.stderr is not None
    assert "another process is fetching this set; waiting for it" in second.stderr.readline()
    opened.set()
    for process in (first, second):
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert len(publisher.seen) == 1
    assert unpacked(root) == UNDER_ROOT


def test_a_fetch_that_was_killed_is_gone_on_with(publisher: Publisher, root: Path) -> None:
    opened, sent = threading.Event(), threading.Event()
    publisher.scripts = [gate(500_000, opened, sent)]
    process = start(publisher, root)
    assert sent.wait(60)
    path = root / "download/set.tar.gz.part"
    while not path.exists() or path.stat().st_size < 300_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    opened.set()
    assert unpacked(root) == {} and not (root / "download/set.tar.gz").exists()
    of(publisher).fetch(root)
    assert resumed_at(publisher) >= 300_000
    assert unpacked(root) == UNDER_ROOT and kept(root) == {"set.tar.gz", "record.json", "lock"}


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "a file half written": f"class Bar(download.tqdm):\n    def __init__(self, desc, **more):\n        self.what = desc\n"
    f"        super().__init__(**more)\n    def update(self, n):\n        if self.what.startswith('Unp'): {KILL}\n"
    "download.tqdm = Bar",
    "all unpacked": f"download._merge = lambda *_: {KILL}",
    "half moved": "real, moved = os.rename, []\n"
    f"def rename(a, b):\n    if moved: {KILL}\n    moved.extend([1] * ('all' not in str(b)))\n    real(a, b)\nos.rename = rename",
    "not yet recorded": "real = download.write_json\n"
    f"def write(path, value):\n    if path.name == 'record.json': {KILL}\n    real(path, value)\ndownload.write_json = write",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_unpacking_that_was_killed_is_done_again(publisher: Publisher, root: Path, moment: str) -> None:
    process = start(publisher, root, MOMENTS[moment])
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    if moment in ("a file half written", "all unpacked"):
        assert unpacked(root) == {}
    elif moment == "half moved":  # whole folders, but no table by which a reader would find the set
        assert unpacked(root) == {name: content for name, content in UNDER_ROOT.items() if name != "labels.csv"}
    of(publisher).fetch(root)
    assert unpacked(root) == UNDER_ROOT and kept(root) == {"set.tar.gz", "record.json", "lock"}
    assert len(publisher.seen) == 1  # the archive was there
