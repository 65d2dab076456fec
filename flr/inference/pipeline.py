"""Predict the faces of photos, or of a video, and write the results."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from flr.errors import UserError
from flr.inference.annotation import annotate
from flr.inference.detectors import Detector, FileBoxes
from flr.inference.effects.base import Effect
from flr.inference.faces import FaceTracker, find_faces
from flr.inference.landmarker import Landmarker
from flr.inference.live import LivePage
from flr.inference.smoothing import OneEuro
from flr.inference.sources import Frame, Photos, Video
from flr.inference.writer import PredictionWriter, open_video


@dataclass(frozen=True, eq=False)
class PredictionPipeline:
    """Run a model over a source, from its images to the files of the results.

    Attributes:
        model: Model that finds the points.
        detector: Detector that finds the faces.
        effects: Effects on the faces, in their order.
        writer: Writer of the results.
        save: Results to write: pictures, crops, csv, coco, pts.
        draw: What is drawn on the images (see `annotate`).
        refine: Number of refinement passes over each face of a photo.
        every: Number of frames of a video between two runs of the detector.
        patience: Seconds for which a face of a video is kept without being detected.
        smooth: Whether a video's points are smoothed.
        live: Port of a page with the annotated frames of a video; 0 for a free one, None for no page.
        frames: Number of frames of a video after which to stop; None for all.
    """

    model: Landmarker
    detector: Detector
    effects: Sequence[Effect]
    writer: PredictionWriter
    save: Sequence[str] = ("pictures", "csv", "coco")
    draw: Sequence[str] | None = None
    refine: int = 1
    every: int = 10
    patience: float = 1.0
    smooth: bool = True
    live: int | None = None
    frames: int | None = None

    def run(self, source: Photos | Video) -> None:
        """Predict all images of a source, and write the tables.

        Raises:
            UserError: No image of the source can be used, or the results cannot be written.
        """
        with self.writer:
            if isinstance(source, Video):
                self._run_video(source)
            else:
                self._run_photos(source)
            self.writer.finish(self.save)
        print(f"{self.writer.summary()}  {self.writer.folder}")
        if not self.writer.used:
            raise UserError(f"source={source.source}: no image of it can be used; name another source")

    def _run_photos(self, source: Photos) -> None:
        if isinstance(self.detector, FileBoxes):
            _report_unused_boxes(self.detector, source)
        names = [name for name in source.names if name not in self.writer.done]
        if len(names) < len(source.names):
            print(f"resuming with {len(names)} of {len(source.names)} images")
        for name in tqdm(names, desc="Predicting", unit="image", disable=None if len(names) > 1 else True):
            try:
                image = source.load(name)
            except UserError as error:
                self.writer.skip(name, str(error))
                tqdm.write(f"skipped {error}", file=sys.stderr)
                continue
            faces = find_faces(self.model, self.detector, image, name, refine=self.refine)
            self.writer.save_files(name, image, faces, self.model.crop.policy, self.save, self.effects)
            if "pictures" in self.save:
                annotated = annotate(image, faces, self.model.scheme, self.effects, self.draw)
                self.writer.save_image("pictures", name, annotated)
            self.writer.add(name, image.shape, faces)

    def _run_video(self, source: Video) -> None:
        smooth = OneEuro if self.smooth else None
        tracker = FaceTracker(self.model, self.detector, self.every, self.patience, smooth)
        count = 0
        with contextlib.ExitStack() as stack:
            outputs: list[Callable[[np.ndarray], Any]] = []
            if self.live is not None:
                outputs.append(stack.enter_context(LivePage(self.live)).show)
            if "pictures" in self.save:
                video = VideoOutput(self.writer.folder / f"{source.name}.mp4", source.rate)
                outputs.append(stack.enter_context(video).add)
            total = self.frames or source.count or None
            bar = stack.enter_context(tqdm(total=total, desc="Predicting", unit="frame", disable=None))
            with until_stopped(source):
                for frame in source:
                    self._run_frame(frame, f"{source.name}#{frame.number}", tracker, outputs)
                    bar.update()
                    count += 1
                    if count == self.frames:
                        break
        if count < source.count and self.frames is None:
            print(
                f"note: {source.source} ends after {count} of the {source.count} frames that its header states",
                file=sys.stderr,
            )

    def _run_frame(
        self, frame: Frame, name: str, tracker: FaceTracker, outputs: Sequence[Callable[[np.ndarray], Any]]
    ) -> None:
        faces = tracker(frame.image, name, frame.seconds)
        self.writer.save_files(name, frame.image, faces, self.model.crop.policy, self.save, self.effects)
        if outputs:
            annotated = annotate(frame.image, faces, self.model.scheme, self.effects, self.draw)
            for output in outputs:
                output(annotated)
        self.writer.add(name, frame.image.shape, faces, seconds=round(frame.seconds, 4))


class VideoOutput:
    """A video file of frames (H, W, 3) RGB uint8, at the size of the first one. A frame of another size is resized."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.resized = 0
        self._size: tuple[int, int] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "VideoOutput":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if self.resized:
            print(f"note: {self.resized} frames were resized to the size of the first frame", file=sys.stderr)

    def add(self, frame: np.ndarray) -> None:
        """Add the next frame."""
        if self._size is None:
            self._size = (frame.shape[1], frame.shape[0])
            self._write = self._stack.enter_context(open_video(self.path, self.rate, self._size))
        if frame.shape[1::-1] != self._size:
            self.resized += 1
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        self._write(frame)


def _report_unused_boxes(detector: FileBoxes, source: Photos) -> None:
    names = {name for path in source.names for name in (path, Path(path).name)}
    if unused := [name for name in detector.rows if name not in names]:
        print(
            f"note: {len(unused)} images of {detector.file} are not in source={source.source}, such as {unused[0]!a}",
            file=sys.stderr,
        )


@contextlib.contextmanager
def until_stopped(source: Video) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a camera or stream, which may have no other end, instead of the command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not source.live:
            raise
