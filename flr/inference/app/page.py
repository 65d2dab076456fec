"""The page, in gradio."""

import base64
import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from gradio.data_classes import ImageData

from flr.errors import UserError
from flr.inference.app.service import AppService, CameraState, point_table
from flr.inference.loading import LANDMARKS

EXAMPLE = LANDMARKS.with_name("face.jpg")  # a rendered face
DRAW = ["boxes", "points", "lines", "indices"]


def make_page(service: AppService, runs: list[tuple[str, str]], detector: str, effects: list[str]) -> gr.Blocks:
    """Make the page, which lists newer runs whenever it is opened.

    Args:
        service: What the page calls.
        runs: (label, value) of the runs on offer.
        detector: Detector to start with.
        effects: Effects to start with.
    """
    handlers = Handlers(service)
    with gr.Blocks(title="flr: facial landmarks", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown("## Facial landmarks\nUpload a photo, or keep the rendered example, and press *Find points*.")
        with gr.Row():
            run = gr.Dropdown(
                runs, value=runs[0][1], label="Run", info="or type an id, a folder, a .ckpt or .onnx file, models:/NAME@best",
                allow_custom_value=True, scale=3, min_width=390,
            )  # fmt: skip
            detectors = gr.Dropdown(list(service.detectors), value=detector, label="Detector", info="finds the faces")
            chosen = gr.Dropdown(
                list(service.effects), value=effects, label="Effects", info="one after another", multiselect=True
            )
            draw = gr.CheckboxGroup(DRAW, value=DRAW[:2], label="Draw", info="on the image", min_width=440)
        with gr.Tab("Photo"):
            _photo_tab(handlers, [run, detectors, chosen, draw])
        with gr.Tab("Camera"), gr.Row():
            _camera_tab(handlers, [run, detectors, chosen, draw])
        blocks.load(handlers.list_runs, None, run, api_visibility="private")
    return blocks.queue(default_concurrency_limit=4)


def _photo_tab(handlers: "Handlers", choices: list[gr.Component]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=400):
            photo = gr.Image(
                str(EXAMPLE), label="Photo", sources=["upload", "webcam", "clipboard"], type="filepath", height=330, buttons=[],
                webcam_options=gr.WebcamOptions(mirror=False),
            )  # fmt: skip
            photo.preprocess = uploaded_path  # type: ignore[method-assign]  # a subclass would have gradio write a .pyi
            button = gr.Button("Find points", variant="primary")
        with gr.Column(scale=3, min_width=320):
            image = gr.Image(
                label="Points", type="filepath", interactive=False, height=430, buttons=["download", "fullscreen"]
            )
            line = gr.Markdown()
            files = gr.File(label="Download", file_count="multiple", interactive=False, height=200, visible=False)
    table = gr.Dataframe(label="Coordinates, pixels of the photo", max_height=360, interactive=False, visible=False)
    found = button.click(handlers.find, [photo, *choices], [image, files, line, table], api_name="find")
    # Hidden until there is something in them; a change of its own, so that the API returns plain values.
    found.success(lambda: [gr.update(visible=True)] * 2, None, [files, table], api_visibility="private")
    # The results of the photo before would stay next to the error.
    hidden = gr.update(value=None, visible=False)
    found.failure(lambda: (None, hidden, "", hidden), None, [image, files, line, table], api_visibility="private")


def _camera_tab(handlers: "Handlers", choices: list[gr.Component]) -> None:
    camera = gr.Image(
        label="Camera", sources=["webcam"], streaming=True, type="numpy", height=480,
        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"width": 640, "height": 480}}),
    )  # fmt: skip
    with gr.Column():
        frame = gr.Image(label="Points", streaming=True, sources=["webcam"], interactive=False, height=480, buttons=[])
        rate = gr.Markdown()
    state = gr.State()
    camera.stream(
        handlers.track, [camera, state, *choices], [frame, state, rate], stream_every=0.03,
        concurrency_limit=None, show_progress="hidden", api_visibility="private", postprocess=False,
    )  # fmt: skip


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show a user's error as one line on the page."""

    @functools.wraps(handler)
    def shown(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except (UserError, OSError) as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    return shown


class Handlers:
    """Answers to the page's events."""

    def __init__(self, service: AppService) -> None:
        self.service = service
        self.find = show_errors(self._find)
        self.list_runs = show_errors(self._list_runs)

    def _find(self, photo: str | None, run: str, detector: str, effects: list[str], draw: list[str]) -> tuple[Any, ...]:
        if photo is None:
            raise UserError("there is no photo; upload one, paste one or take one with the camera")
        result = self.service.find_faces(Path(photo), run, detector, effects, draw)
        if not result.faces:
            gr.Info("no face is found; another detector may find one, and whole takes the photo as one")
        return str(result.image), [str(path) for path in result.files], result.summary, point_table(result)

    def _list_runs(self) -> Any:
        return gr.Dropdown(choices=self.service.runs())

    def track(self, frame: Any, state: CameraState | None, *choices: Any) -> tuple[Any, CameraState | None, str]:
        """Track the faces of a camera's frame; an error is shown as text, not as one message per frame."""
        if frame is None:
            return None, None, ""
        try:
            annotated, state, line = self.service.track_frame(frame, state, *choices)
        except (UserError, OSError) as error:
            annotated, state, line = frame, None, html.escape(str(error), quote=False)
        return inline_image(annotated), state, line


def uploaded_path(payload: ImageData | None) -> str | None:
    """Return the uploaded file as it is. gradio would decode and turn it, and fail with its own message."""
    return payload.path if payload else None


def inline_image(image: np.ndarray) -> dict[str, Any]:
    """Encode an image (H, W, 3) RGB uint8 for the page, without the file that gradio would leave of each."""
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return ImageData(url=f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}").model_dump()
