"""`flr.app` as it is used: a server of its own process, asked over HTTP and by a real browser."""

import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from flr.config.compose import CONF
from flr.data.synthetic.renderer import render
from flr.inference.app.network import listen
from flr.inference.app.service import AppService, run_label
from flr.inference.detectors import WholeImage
from flr.inference.predictor import Predictor
from flr.landmarks.scheme import get_scheme
from flr.module.checkpoints import load_checkpoint
from flr.tracking.connection import usable_runs
from tests.conftest import SMALL_SET, Workspace
from tests.test_predict import points_of, rows

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="the app wants pip install 'flr[app]'")

# A net of 5 points, soon trained.
FIVE = (
    "model=ytf_cnn", "objective=mse", "data.crop.size=56", "data.scheme=celeba5", "augment=none", "data.batch_size=16", "ema=0",
    "trainer.max_epochs=1", "tracking.system_metrics=false", "tracking.register=false", "callbacks.progress=null", "name=five",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A running app: its address, its workspace with one run of 5 points, and a checkpoint of 68 points."""

    url: str
    workspace: Workspace
    five: str
    checkpoint: Path
    temporary: Path


def teach_mean_face(checkpoint: Path) -> None:
    """Have a net give the mean face for any crop: a face that a tracker holds fast."""
    module = Predictor.load(checkpoint).module
    module.net.head[-1].weight.zero_()
    face = (module.mean_face / module.size - module.objective.centre) / module.objective.unit
    module.net.head[-1].bias.copy_(face.ravel())
    torch.save(load_checkpoint(checkpoint) | {"state_dict": module.state_dict()}, checkpoint)


def start(workspace: Workspace, *words: str, **env: str) -> "tuple[subprocess.Popen[str], str]":
    """The app's process and address."""
    process = workspace.start("flr.app", "port=0", *words, **env)
    line = process.stdout.readline()
    found = re.fullmatch(r"flr\.app on (http://127\.0\.0\.1:\d+/)\n", line)
    assert found, line + process.communicate()[1]
    return process, found[1]


@pytest.fixture(scope="module")
def served(
    trained: tuple[Workspace, str], shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    source, run_id = trained
    workspace = Workspace(tmp_path_factory.mktemp("app"), shared_cache)
    workspace.run("flr.train", *FIVE, *SMALL_SET)
    five = workspace.only_run().info.run_id
    teach_mean_face(workspace.folder(five) / "checkpoints" / "best.ckpt")
    checkpoint = source.folder(run_id) / "checkpoints" / "best.ckpt"
    temporary = tmp_path_factory.mktemp("temporary")
    process, url = start(workspace, TMPDIR=str(temporary))
    yield Served(url, workspace, five, checkpoint, temporary)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    # gradio tells at length of what it refuses to those who go past the page, and nothing else is printed.
    assert process.returncode == 143 and err.count("Traceback") == err.count("was not uploaded by a user"), err[-3000:]
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered face that lies on its side in the file, and upright by its EXIF."""
    path, exif = tmp_path_factory.mktemp("photo") / "face.jpg", Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(render(1, 0, 240, 3, 0.5).image)).save(path, exif=exif, quality=95)
    return path


Find = Callable[..., dict[str, Any]]


@pytest.fixture
def find(served: Served, tmp_path: Path) -> Find:
    """Presses the button over HTTP, and gives what the page then shows."""
    from gradio_client import Client, handle_file

    client = Client(served.url, verbose=False, download_files=str(tmp_path / "client"), analytics_enabled=False)
    parts = ("picture", "files", "line", "table")

    def press(photo: Path | None, **words: Any) -> dict[str, Any]:
        given = {
            "run": str(served.checkpoint), "detector": "builtin", "effects": [], "draw": ["boxes", "points"]
        }  # fmt: skip
        file = None if photo is None else handle_file(str(photo))
        return dict(zip(parts, client.predict(photo=file, api_name="/find", **given | words), strict=True))

    return press


def test_a_photo_gets_the_files_of_flr_predict(find: Find, served: Served, photo: Path) -> None:
    found = find(photo, effects=["blur", "mask"])
    served.workspace.run(
        "flr.predict", f"run={served.checkpoint}", f"source={photo}", "out=out", "save=[pictures,csv,coco,pts]",
        "effect=[blur,mask]", "draw=[boxes,points]",
    )  # fmt: skip
    out = served.workspace.path / "out"
    theirs = [out / "points.csv", out / "points.json", out / "pts" / "face.jpg-0.pts", out / "masks" / "face.jpg.png"]
    files = [Path(path) for path in found["files"]]
    assert [path.name for path in files] == [path.name for path in theirs]
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in theirs]
    assert Path(found["picture"]).read_bytes() == (out / "pictures" / "face.jpg").read_bytes()
    (face,) = rows(out / "points.csv")
    assert found["table"]["headers"] == ["face", "point", "x", "y"]
    assert [row[:2] for row in found["table"]["data"]] == [[0, name] for name in get_scheme("ibug68").names]
    np.testing.assert_allclose([row[2:] for row in found["table"]["data"]], points_of(face), atol=0.006)
    assert found["line"] == "1 face in 240 x 240 pixels, 68 points each"


def test_a_run_is_called_by_the_error_of_the_checkpoint_that_it_loads(served: Served) -> None:
    (run,) = [run for run in usable_runs(served.workspace.client(), 10) if run.run_id == served.five]
    history = served.workspace.client().get_metric_history(run.run_id, "val/nme")
    assert f"val {min(point.value for point in history):.2f} %" in run_label(run)


def test_what_cannot_be_is_one_line_and_the_server_lives_on(
    find: Find, served: Served, photo: Path, tmp_path: Path
) -> None:
    from gradio_client.exceptions import AppError

    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:3000])
    for path, words, message in (
        (None, {}, "there is no photo"),
        (tmp_path / "text.jpg", {}, "text.jpg: not an image"),
        (tmp_path / "cut.jpg", {}, "cut.jpg: a truncated JPEG"),
        (photo, {"run": None}, "no run is chosen"),
        (photo, {"run": "nothing"}, "run=nothing: no such folder"),
        (photo, {"run": "x" * 5000}, "File name too long"),
        (photo, {"run": "/etc/passwd"}, "/etc/passwd: damaged or not a checkpoint"),
        (photo, {"run": "<img src=x>/a.ckpt"}, "run=&lt;img src=x&gt;/a.ckpt: no such file"),
        (photo, {"run": str(photo)}, "face.jpg: "),
        (photo, {"run": served.five, "effects": ["lips"]}, "outer_lip"),
    ):  # fmt: skip
        with pytest.raises(AppError) as caught:
            find(path, **words)
        line = str(caught.value)
        assert message in line and "\n" not in line and str(served.temporary) not in line, (words, line)
    assert "1 face" in find(photo, run=served.five, effects=["sunglasses"])["line"]


def test_a_picture_of_the_machine_that_was_not_uploaded_is_refused(served: Served, photo: Path) -> None:
    """As a page never asks, but whoever reaches the server can."""
    call = f"{served.url}gradio_api/call/find"
    for given in ({"path": str(photo)}, {"path": "/etc/passwd"}, {"path": "x", "url": f"file://{photo}"}):
        words = [given | {"meta": {"_type": "gradio.FileData"}}, str(served.checkpoint), "haar", [], ["points"]]
        event = requests.post(call, json={"data": words}, timeout=20).json()["event_id"]
        message = requests.get(f"{call}/{event}", timeout=60).text
        assert "event: error" in message and "event: complete" not in message, message[:300]
    kept = {path.read_bytes() for path in served.temporary.rglob("*") if path.is_file()}
    assert Path("/etc/passwd").read_bytes() not in kept  # from where it could be fetched


def status(url: str, **headers: str) -> int:
    try:
        return int(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_who_is_answered(served: Served) -> None:
    ours = served.url.rstrip("/")
    assert status(served.url) == status(served.url, Origin=ours) == 200
    assert status(served.url.replace("127.0.0.1", "localhost")) == 200
    for headers in (
        {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}, {"Host": "[::"}, {"Origin": "http://evil.example"},
        {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    ):  # fmt: skip
        assert status(served.url, **headers) == 403, headers
    for path in ("/etc/passwd", served.checkpoint, served.workspace.outputs / "mlflow.db"):
        assert status(f"{ours}/gradio_api/file={path}") == 403


def test_a_camera_keeps_the_number_of_a_face(served: Served, tmp_path: Path) -> None:
    service = AppService(tmp_path, {"whole": WholeImage()}, {}, served.workspace.uri, tmp_path, str(served.checkpoint))
    state, image = None, render(1, 0, 240, 3, 0.5).image
    for _ in range(3):
        shown, state, line = service.track_frame(image, state, str(served.checkpoint), "whole", [], ["points"])
        assert line.startswith("1 face") or line.startswith("0 faces")
    assert shown.shape == image.shape and not list(tmp_path.iterdir())  # frames are not kept


# -- starting and ending -----------------------------------------------------------------------------------------------


def test_without_a_run_the_included_model_is_offered(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/none.db"
    service = AppService(tmp_path, {"whole": WholeImage()}, {}, uri, tmp_path)
    assert service.runs() == [("included model, 68 points", "included")]
    assert service.model("included").scheme.name == "ibug68"
    assert not (tmp_path / "none.db").exists()


def test_what_a_start_refuses(workspace: Workspace, trained: tuple[Workspace, str], free_port: int) -> None:
    assert "no such file" in workspace.refuse("flr.app", "port=0", "run=nothing.ckpt")
    assert "host=nowhere.invalid" in workspace.refuse("flr.app", "host=nowhere.invalid")
    assert "port" in workspace.refuse("flr.app", "port=70000")
    with socket.create_server(("127.0.0.1", free_port)):
        assert "set another port" in workspace.refuse("flr.app", f"port={free_port}")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def fields(url: str) -> dict[str, Any]:
    """What the page's fields take and hold at first."""
    from gradio_client import Client

    client = Client(url, verbose=False, analytics_enabled=False)
    words = client.view_api(return_format="dict")["named_endpoints"]["/find"]["parameters"]
    return {each["parameter_name"]: each for each in words}


def test_it_begins_with_the_included_model_and_offers_what_works(served: Served) -> None:
    found = fields(served.url)
    assert found["run"]["parameter_default"] == "included"
    assert found["detector"]["type"]["enum"] == [
        "builtin",
        "haar",
        "haar_camera",
        "haar_photo",
        "whole",
    ]  # no file is wanted
    effects = {path.stem for path in (CONF / "effect").glob("*.yaml")}
    assert set(found["effects"]["type"]["items"]["enum"]) == effects


def test_an_error_clears_the_results_of_the_photo_before_and_the_image_can_be_downloaded(served: Served) -> None:
    page = requests.get(f"{served.url}config", timeout=20).json()
    (find,) = [one for one in page["dependencies"] if one["api_name"] == "find"]
    (failed,) = [one for one in page["dependencies"] if one["trigger_only_on_failure"]]
    assert failed["trigger_after"] == find["id"] and failed["outputs"] == find["outputs"]
    parts = {one["id"]: one["props"] for one in page["components"]}
    assert "download" in parts[find["outputs"][0]]["buttons"]


@pytest.mark.long
def test_ctrl_c_ends_it_with_a_page_open(served: Served, tmp_path: Path) -> None:
    exported = served.workspace.path / "net.onnx"
    served.workspace.run("flr.export", f"run={served.checkpoint}", f"out={exported}", "faces=2")
    process, url = start(served.workspace, f"run={exported}", TMPDIR=str(tmp_path))
    with urllib.request.urlopen(f"{url}gradio_api/heartbeat/page", timeout=20):  # a stream without an end
        assert fields(url)["run"]["parameter_default"] == str(exported)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "flr: interrupted\n")
    assert not list(tmp_path.iterdir())
