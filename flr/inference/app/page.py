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
from flr.inference.app.service import AppService, CameraState, mean_distance, point_table

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
    with gr.Blocks(title="flr", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
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
            other = _photo_tab(handlers, runs, [run, detectors, chosen, draw])
        with gr.Tab("Camera"), gr.Row():
            _camera_tab(handlers, [run, detectors, chosen, draw])
        blocks.load(handlers.list_runs, None, [run, other], api_visibility="private")
    return blocks.queue(default_concurrency_limit=4)


def _photo_tab(handlers: "Handlers", runs: list[tuple[str, str]], choices: list[gr.Component]) -> gr.Component:
    """Add the tab for photos; return its choice of a second run."""
    with gr.Row():
        with gr.Column(scale=2, min_width=400):
            photo = gr.Image(
                label="Photo", sources=["upload", "webcam", "clipboard"], type="filepath", height=330, buttons=[],
                webcam_options=gr.WebcamOptions(mirror=False),
            )  # fmt: skip
            photo.preprocess = uploaded_path  # type: ignore[method-assign]  # a subclass would have gradio write a .pyi
            other = gr.Dropdown(
                [("none", ""), *runs], value="", label="Second run, on the same photo", allow_custom_value=True
            )
            button = gr.Button("Find points", variant="primary")
        _, *first = _result_column("Points", True)
        second_column, *second = _result_column("Points of the second run", False)
    distance = gr.Markdown()
    table = gr.Dataframe(label="Coordinates, pixels of the photo", max_height=360, interactive=False)
    run, *rest = choices
    button.click(handlers.find, [photo, run, other, *rest], [*first, *second, distance, table], api_name="find")
    other.change(lambda value: gr.Column(visible=bool(value)), other, second_column, api_visibility="private")
    return other


def _result_column(label: str, visible: bool) -> tuple[Any, Any, Any, Any]:
    """Add a column for the result of one model: the column, its image, files and line of text."""
    with gr.Column(scale=3, min_width=320, visible=visible) as column:
        image = gr.Image(label=label, type="filepath", interactive=False, height=430, buttons=["fullscreen"])
        line = gr.Markdown()
        files = gr.File(label="Download", file_count="multiple", interactive=False, height=200)
    return column, image, files, line


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
        handlers.track, [camera, state, *choices], [frame, state, rate], stream_every=0.05,
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

    def _find(
        self, photo: str | None, run: str, other: str, detector: str, effects: list[str], draw: list[str]
    ) -> tuple[Any, ...]:
        if photo is None:
            raise UserError("there is no photo; upload one, paste one or take one with the camera")
        runs = [run, other] if other else [run]
        results = [self.service.find_faces(Path(photo), run, detector, effects, draw) for run in runs]
        if not results[0].faces:
            gr.Info("no face is found; another detector may find one, and whole takes the photo as one")
        columns = [(str(result.image), [str(path) for path in result.files], result.summary) for result in results]
        second = columns[1] if other else (None, None, "")
        return *columns[0], *second, mean_distance(*results) if other else "", point_table(results)

    def _list_runs(self) -> list[Any]:
        runs = self.service.runs()
        return [gr.Dropdown(choices=runs), gr.Dropdown(choices=[("none", ""), *runs])]

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
