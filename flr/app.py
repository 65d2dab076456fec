"""``python -m flr.app``: a web page on which trained nets find points on photos and before a camera."""

import base64
import functools
import gc
import html
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from omegaconf import DictConfig

from flr.cli import quiet, run_command
from flr.config.compose import choices, chosen
from flr.config.instantiate import build
from flr.config.schema import App
from flr.config.validate import check
from flr.errors import UserError

if TYPE_CHECKING:
    import gradio
    import numpy as np
    from gradio.data_classes import ImageData

    from flr.inference.detector import Detector, Found
    from flr.inference.effects import Effect
    from flr.inference.faces import Face, FaceTracker
    from flr.inference.landmarker import Landmarker
    from flr.landmarks.scheme import Scheme
    from flr.tracking.connection import StoredRun

RUNS = 200  # of the tracking store that are looked at; any other is chosen by its id
NETS = 4  # that stay in memory
KEPT = 50  # photos whose files can still be fetched
LARGEST = "64mb"  # of an upload
DRAW = ["boxes", "points", "lines", "indices"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CSS = """
.gradio-container {max-width: 1500px !important}
footer, [aria-label="Remove this file"] {display: none !important}
"""


def main(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    if find_spec("gradio") is None:
        raise UserError("gradio is not installed, and the app needs it; pip install 'flr[app]'")
    quiet()
    check(cfg, App)
    with listening(cfg.host, cfg.port) as gate, tempfile.TemporaryDirectory(prefix="flr-app-") as folder:
        # gradio reads them when it is imported: it is to ask no other host for anything, and to leave nothing behind.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": folder}
        desk = Desk(cfg, Path(folder))
        if cfg.host not in LOOPBACK:
            print(
                f"note: host={cfg.host}: whoever reaches this machine can use the page, and name any checkpoint on it",
                file=sys.stderr,
            )
        blocks = page(desk, desk.runs())
        gc.freeze()  # what is loaded stays: to look for garbage in it would make the end seconds long
        serve(blocks, gate, cfg.host)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket to which browsers can connect.

    Raises:
        UserError: the port is taken, or the address none of this machine.
    """
    try:
        found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={host} port={port}: {reason}; set another port, or port=0 for one that is free"
        ) from error
    with found:
        yield found


def serve(blocks: "gradio.Blocks", gate: socket.socket, host: str) -> None:
    """Answer at a socket until a signal ends it, which is then raised."""
    import gradio
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    port = gate.getsockname()[1]
    app = FastAPI(
        middleware=[Middleware(OwnPage, names=LOOPBACK if host in LOOPBACK else None)],
        docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    blocks.has_launched = True  # else gradio looks at no path, and takes any file of the machine for an upload
    gradio.mount_gradio_app(
        app, blocks, "/", host, port, footer_links=[], run_history=False, allowed_paths=[], max_file_size=LARGEST,
        ssr_mode=False, enable_monitoring=False, mcp_server=False, css=CSS, show_error=False,
    )  # fmt: skip
    # Streams to open pages never end by themselves.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    print(f"flr.app on http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
    uvicorn.Server(config).run(sockets=[gate])


class OwnPage:
    """Refuses what a page of another site asks for, which gradio answers: its CORS rules only hide the answer.

    Args:
        app: that answers the others.
        names: under which this machine is asked, lest a name of someone else's that resolves here be one; None for any.
    """

    def __init__(self, app: Any, names: Sequence[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] == "http":
            headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
            host, origin = headers.get(b"host", ""), headers.get(b"origin")
            try:
                known = self.names is None or urlsplit(f"//{host}").hostname in self.names
                ours = known and origin in (None, f"http://{host}", f"https://{host}")
            except ValueError:
                ours = False
            if not ours:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"not from this page"})
                return
        await self.app(scope, receive, send)


# -- what the page does ------------------------------------------------------------------------------------------------


class Timed:
    """A detector that says how long it took."""

    def __init__(self, detector: "Detector") -> None:
        self.detector, self.seconds = detector, 0.0

    def __call__(self, image: "np.ndarray", name: str, net: "Landmarker") -> "Found":
        began = time.perf_counter()
        found = self.detector(image, name, net)
        self.seconds = time.perf_counter() - began
        return found


@dataclass(frozen=True, eq=False)
class Answer:
    """What a net finds on a photo.

    Attributes:
        scheme: of the points.
        faces: with them.
        picture: the annotated one, a file.
        files: of the points.
        line: what came of it.
    """

    scheme: "Scheme"
    faces: "list[Face]"
    picture: Path
    files: list[Path]
    line: str


@dataclass(eq=False)
class Live:
    """What is known of the camera of one browser tab.

    Attributes:
        choice: the run and the detector.
        tracker: of the faces.
        times: of the last frames, seconds.
    """

    choice: tuple[str, str]
    tracker: "FaceTracker"
    began: float = field(default_factory=time.monotonic)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=20))


class Desk:
    """Nets, detectors and effects, and what the page has them do. Several threads may call it at once.

    Args:
        cfg: of the command.
        folder: for the files that can be fetched.

    Raises:
        UserError: the net that the config names cannot be loaded.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.uri, self.output = str(cfg.tracking.uri), Path(cfg.paths.output_dir)
        self.detector = chosen("detector")
        self.detectors = {
            name: build(node) for name, node in {**choices("detector"), self.detector: cfg.detector}.items()
        }
        nodes = {name: node for group in choices("effect").values() for name, node in group.items()}
        self.effects: Mapping[str, Effect] = {
            name: build(node) for name, node in {**nodes, **(cfg.get("effect") or {})}.items()
        }
        self._kept: deque[Path] = deque()
        self._loading = threading.Lock()
        self._load = functools.lru_cache(NETS)(self._load_anew)
        if cfg.run is not None:
            self.net(str(cfg.run))

    def runs(self) -> list[tuple[str, str]]:
        """(label, what `run=` takes) of the nets that are offered: the config's own first, then the newest run.

        Raises:
            UserError: the tracking store cannot be read or has none, and the config names none.
        """
        from flr.tracking.connection import connect, usable_runs

        own = [] if self.cfg.run is None else [str(self.cfg.run)]
        try:
            stored = usable_runs(connect(self.uri, create=False), RUNS)
        except UserError:
            if not own:
                raise
            stored = []
        labels = {run.run_id: label_of(run) for run in stored}
        if not own and not labels:
            raise UserError(
                f"tracking.uri={self.uri}: no finished run with a checkpoint; train one (python -m flr.train), name one by "
                "run=ID|DIR|FILE, or set tracking.uri"
            )
        return [(labels.get(run, run), run) for run in dict.fromkeys([*own, *labels])]

    def net(self, run: str | None) -> "Landmarker":
        """The net that a word for `run=` names.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from flr.module.checkpoints import find_checkpoint

        if not run:
            raise UserError("no run is chosen; choose one of the list, or type an id, a folder or a file")
        with self._loading:
            path = find_checkpoint(run, self.uri, self.output)
            return self._load(path, path.stat().st_mtime_ns if path.exists() else 0)

    @staticmethod
    def _load_anew(path: Path, changed: int) -> "Landmarker":
        from flr.inference.landmarker import load

        return load(path, None)

    def chosen_effects(self, names: Sequence[str], net: "Landmarker") -> "list[Effect]":
        """The effects of those names, in the names' order.

        Raises:
            UserError: the net's scheme lacks points that one needs.
        """
        effects = [self.effects[name] for name in sorted(names)]
        for effect in effects:
            effect.check(net.scheme)
        return effects

    def look(
        self, photo: Path, run: str | None, detector: str, effects: Sequence[str], draw: Sequence[str]
    ) -> Answer:  # fmt: skip
        """The faces of a photo by one net, with the files that `flr.predict` would leave.

        Raises:
            UserError: the photo cannot be decoded, there is no such net, or an effect does not go with it.
        """
        from flr.inference.faces import faces_of
        from flr.inference.results import Results, annotated
        from flr.inference.sources import Photos

        net, timed, name = self.net(run), Timed(self.detectors[detector]), photo.name
        painted = self.chosen_effects(effects, net)
        try:
            image = Photos(photo.parent, [name]).load(name)
        except UserError as error:
            raise UserError(str(error).replace(f"{photo.parent}/", "")) from error
        began = time.perf_counter()
        faces = faces_of(net, timed, image, name, self.cfg.looks)
        seconds = time.perf_counter() - began - timed.seconds
        with Results(self._place(), {}, net.scheme, overwrite=False) as results:
            results.keep(name, image, faces, net.crop.policy, ["pts"], painted)
            results.picture("pictures", name, annotated(image, faces, net.scheme, painted, draw))
            results.add(name, image.shape, faces)
            results.finish(["csv", "coco"])
        folder = results.folder
        files = [path for kind in ("points.*", "pts/*", "masks/*") for path in sorted(folder.glob(kind))]
        line = (
            f"{count_of(faces)} in {image.shape[1]} x {image.shape[0]} pixels, {len(net.scheme)} points each; "
            f"detector {1000 * timed.seconds:.0f} ms, net {1000 * seconds:.0f} ms"
        )
        return Answer(net.scheme, faces, folder / "pictures" / f"{name}.jpg", files, line)

    def _place(self) -> Path:
        """A new folder; the oldest goes."""
        self._kept.append(Path(tempfile.mkdtemp(dir=self.folder)))
        if len(self._kept) > KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        return self._kept[-1]

    def follow(
        self, frame: "np.ndarray", live: Live | None, run: str | None, detector: str, effects: Sequence[str],
        draw: Sequence[str],
    ) -> "tuple[np.ndarray, Live, str]":  # fmt: skip
        """The next frame of a camera, (H, W, 3) RGB uint8, annotated; what is known from there on; what came of it.

        Raises:
            UserError: there is no such net, or an effect does not go with it.
        """
        from flr.inference.faces import FaceTracker
        from flr.inference.results import annotated
        from flr.inference.smoothing import OneEuro

        if live is None or live.choice != (run, detector):
            net = self.net(run)
            live = Live((str(run), detector), FaceTracker(net, self.detectors[detector], smooth=OneEuro))
        net = live.tracker.net
        painted = self.chosen_effects(effects, net)
        live.times.append(time.monotonic())
        faces = live.tracker(frame, "", live.times[-1] - live.began)
        rate = (len(live.times) - 1) / max(live.times[-1] - live.times[0], 1e-9)
        shown = annotated(frame, faces, net.scheme, painted, draw)
        return shown, live, f"{count_of(faces)}; {rate:.0f} frames/s"


def label_of(run: "StoredRun") -> str:
    """A stored run in a few words."""
    nme = run.get("val_nme")
    parts = (run.get("model"), run.get("data"), nme and f"val {float(nme):.2f} %", run.name)
    return " · ".join(part for part in parts if part)


def count_of(faces: Sequence[Any]) -> str:
    return f"{len(faces)} face{'' if len(faces) == 1 else 's'}"


def table_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """A row a point, with the net's number where there are two."""
    rows = [
        [*([net] if len(answers) > 1 else []), i, name, round(float(x), 2), round(float(y), 2)]
        for net, answer in enumerate(answers, 1)
        for i, face in enumerate(answer.faces)
        for name, (x, y) in zip(answer.scheme.names, face.points, strict=True)
    ]
    return {"headers": [*(["run"] if len(answers) > 1 else []), "face", "point", "x", "y"], "data": rows}


def apart(one: Answer, other: Answer) -> str:
    """How far two nets' points lie from each other, in a line."""
    import numpy as np

    scheme = one.scheme
    if scheme.names != other.scheme.names:
        return f"The runs have other points ({scheme.name}, {other.scheme.name}), so there is no distance between them."
    if not one.faces or len(one.faces) != len(other.faces):
        return ""
    points, others = (np.array([face.points for face in answer.faces]) for answer in (one, other))
    name = "interocular" if "interocular" in scheme.normalisers else scheme.normaliser
    far = np.linalg.norm(points - others, axis=-1).mean(-1) / scheme.distance(
        points, np.ones(points.shape[:2], bool), name
    )
    each = ", ".join(f"face {i}: {100 * value:.2f} %" for i, value in enumerate(far))
    return f"Mean distance between the points of the two runs, of the {name} distance: {each}"


# -- the page ----------------------------------------------------------------------------------------------------------


def page(desk: Desk, found: list[tuple[str, str]]) -> "gradio.Blocks":
    """The page of a desk, which offers the runs that are found, and looks for newer ones whenever it is opened."""
    import gradio as gr

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Has what the user can mend be one line on the page."""

        @functools.wraps(work)
        def handler(*words: Any) -> Any:
            try:
                return work(*words)
            except (UserError, OSError) as error:
                raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

        return handler

    @told
    def find(
        photo: str | None, run: str, other: str, detector: str, effects: list[str], draw: list[str]
    ) -> tuple[Any, ...]:  # fmt: skip
        if photo is None:
            raise UserError("there is no photo; upload one, paste one or take one with the camera")
        answers = [desk.look(Path(photo), run, detector, effects, draw) for run in (run, other)[: 2 if other else 1]]
        if not answers[0].faces:
            gr.Info("no face is found; another detector may find one, and whole takes the photo as one")
        both = [(str(answer.picture), [str(path) for path in answer.files], answer.line) for answer in answers]
        second = both[1] if other else (None, None, "")
        return *both[0], *second, apart(*answers) if other else "", table_of(answers)

    def follow(frame: Any, live: Live | None, *choice: Any) -> tuple[Any, Live | None, str]:
        if frame is None:
            return None, None, ""
        try:
            shown, live, line = desk.follow(frame, live, *choice)
        except (UserError, OSError) as error:  # not a message a frame
            shown, live, line = frame, None, html.escape(str(error), quote=False)
        return at_once(shown), live, line

    def runs() -> list[Any]:
        newer = desk.runs()
        return [gr.Dropdown(choices=newer), gr.Dropdown(choices=[("none", ""), *newer])]

    with gr.Blocks(title="flr", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        with gr.Row():
            run = gr.Dropdown(
                found, value=found[0][1], label="Run", info="or type an id, a folder, a .ckpt or .onnx file, models:/NAME@best",
                allow_custom_value=True, scale=3, min_width=390,
            )  # fmt: skip
            detector = gr.Dropdown(list(desk.detectors), value=desk.detector, label="Detector", info="finds the faces")
            effects = gr.Dropdown(
                list(desk.effects), value=list(desk.cfg.get("effect") or {}), label="Effects", info="one after another",
                multiselect=True,
            )  # fmt: skip
            draw = gr.CheckboxGroup(DRAW, value=DRAW[:2], label="Draw", info="on the picture", min_width=440)
        with gr.Tab("Photo"):
            with gr.Row():
                with gr.Column(scale=2, min_width=400):
                    photo = gr.Image(
                        label="Photo", sources=["upload", "webcam", "clipboard"], type="filepath", height=330, buttons=[],
                        webcam_options=gr.WebcamOptions(mirror=False),
                    )  # fmt: skip
                    photo.preprocess = as_it_came  # type: ignore[method-assign]  # a subclass would have gradio write a .pyi
                    other = gr.Dropdown(
                        [("none", ""), *found], value="", label="Second run, on the same photo", allow_custom_value=True
                    )
                    button = gr.Button("Find points", variant="primary")
                shown = [answer_of(gr, "Points", True), answer_of(gr, "Points of the second run", False)]
            distance = gr.Markdown()
            table = gr.Dataframe(label="Coordinates, pixels of the photo", max_height=360, interactive=False)
        with gr.Tab("Camera"), gr.Row():
            camera = gr.Image(
                label="Camera", sources=["webcam"], streaming=True, type="numpy", height=480,
                webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"width": 640, "height": 480}}),
            )  # fmt: skip
            with gr.Column():
                frame = gr.Image(
                    label="Points", streaming=True, sources=["webcam"], interactive=False, height=480, buttons=[]
                )
                rate = gr.Markdown()
        live = gr.State()
        words = [run, other, detector, effects, draw]
        results = [part for _, *parts in shown for part in parts]
        button.click(find, [photo, *words], [*results, distance, table], api_name="find")
        other.change(lambda word: gr.Column(visible=bool(word)), other, shown[1][0], api_visibility="private")
        camera.stream(
            follow, [camera, live, run, detector, effects, draw], [frame, live, rate], stream_every=0.05,
            concurrency_limit=None, show_progress="hidden", api_visibility="private", postprocess=False,
        )  # fmt: skip
        blocks.load(told(runs), None, [run, other], api_visibility="private")
    return blocks.queue(default_concurrency_limit=4)


def as_it_came(payload: "ImageData | None") -> str | None:
    """The file that was uploaded. gradio would decode and turn it, and fail in its own words where it cannot."""
    return payload.path if payload else None


def at_once(image: "np.ndarray") -> dict[str, Any]:
    """A picture (H, W, 3) RGB uint8 for the page, without the file that gradio would leave of each."""
    import cv2
    from gradio.data_classes import ImageData

    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return ImageData(url=f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}").model_dump()


def answer_of(gr: Any, label: str, visible: bool) -> tuple[Any, Any, Any, Any]:
    """A column for what one net finds: the column, its picture, files and line."""
    with gr.Column(scale=3, min_width=320, visible=visible) as column:
        picture = gr.Image(label=label, type="filepath", interactive=False, height=430, buttons=["fullscreen"])
        line = gr.Markdown()
        files = gr.File(label="Download", file_count="multiple", interactive=False, height=200)
    return column, picture, files, line


if __name__ == "__main__":
    run_command(main, "app", exit_on_sigterm=True)
