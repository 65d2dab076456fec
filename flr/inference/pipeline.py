"""Predict the faces of photos, or of a video, and write the results."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from flr.errors import UserError
from flr.inference.annotation import annotate
from flr.inference.detectors import Detector, FileBoxes
from flr.inference.effects.base import Effect
from flr.inference.faces import Face, FaceTracker, find_faces
from flr.inference.landmarker import Landmarker
from flr.inference.smoothing import OneEuro
from flr.inference.sources import Frame, Photos, Video
from flr.inference.writer import PredictionWriter, counted, open_video
from flr.system import cores, parallel_map

MAX_AT_ONCE = 4  # photos in memory, each of which may take hundreds of megabytes


@dataclass(frozen=True, eq=False)
class PredictionPipeline:
    """Run a model over a source, from its images to the files of the results. `flr.config.schema.Predict` explains the options."""

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
            if not self.writer.used:
                raise UserError(f"source={source.source}: no image of it can be used; name another source")
            self.writer.finish(self.save)
        print(f"{self.writer.summary()}  {self.writer.folder}")

    def _run_photos(self, source: Photos) -> None:
        if isinstance(self.detector, FileBoxes):
            _report_unused_boxes(self.detector, source)
        names = [name for name in source.names if name not in self.writer.done]
        if len(names) < len(source.names):
            print(f"resuming with {len(names)} of {len(source.names)} images")
        # Decoding, networks, drawing and encoding all release the interpreter, so that a core each takes a photo.
        outcomes = parallel_map(
            lambda i: self._run_photo(source, names[i]), len(names), min(cores(), MAX_AT_ONCE), span=1
        )
        bar = tqdm(
            outcomes, desc="Predicting", total=len(names), unit="image", disable=None if len(names) > 1 else True
        )
        for name, outcome in zip(names, bar, strict=True):
            if isinstance(outcome, UserError):
                self.writer.skip(name, str(outcome))
                tqdm.write(f"skipped {outcome}", file=sys.stderr)
                continue
            shape, faces = outcome
            self.writer.add(name, shape, faces)

    def _run_photo(self, source: Photos, name: str) -> tuple[Sequence[int], list[Face]] | UserError:
        """Predict a photo and save its files; return its shape and faces, or why it cannot be used."""
        try:
            image = source.load(name)
        except UserError as error:
            return error
        faces = find_faces(self.model, self.detector, image, name, refine=self.refine)
        self.writer.save_files(name, image, faces, self.model.crop.policy, self.save, self.effects)
        if "pictures" in self.save:
            self.writer.save_image("pictures", name, annotate(image, faces, self.model.scheme, self.effects, self.draw))
        return image.shape, faces

    def _run_video(self, source: Video) -> None:
        smooth = OneEuro if self.smooth else None
        tracker = FaceTracker(self.model, self.detector, self.every, self.patience, smooth)
        count = 0
        with contextlib.ExitStack() as stack:
            write = None
            if "pictures" in self.save:
                write = stack.enter_context(video_output(self.writer.folder / f"{source.name}.mp4", source.rate))
            total = self.frames or source.count or None
            bar = stack.enter_context(tqdm(total=total, desc="Predicting", unit="frame", disable=None))
            with until_stopped(source):
                for frame in source:
                    self._run_frame(frame, f"{source.name}#{frame.number}", tracker, write)
                    bar.update()
                    count += 1
                    if count == self.frames:
                        break
        if count < source.count and self.frames is None:
            _report(f"{source.source} ends after {count} of the {source.count} frames that its header states")

    def _run_frame(
        self, frame: Frame, name: str, tracker: FaceTracker, write: Callable[[np.ndarray], None] | None
    ) -> None:
        faces = tracker(frame.image, name, frame.seconds)
        self.writer.save_files(name, frame.image, faces, self.model.crop.policy, self.save, self.effects)
        if write:
            write(annotate(frame.image, faces, self.model.scheme, self.effects, self.draw))
        self.writer.add(name, frame.image.shape, faces, seconds=round(frame.seconds, 4))


@contextlib.contextmanager
def video_output(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a frame (H, W, 3) RGB uint8 to a video, which has the size of its first frame."""
    size: tuple[int, int] | None = None
    write: Callable[[np.ndarray], None]
    with contextlib.ExitStack() as stack:

        def add(frame: np.ndarray) -> None:
            nonlocal size, write
            if size is None:
                size = (frame.shape[1], frame.shape[0])
                write = stack.enter_context(open_video(path, rate, size))
            if frame.shape[1::-1] != size:
                frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            write(frame)

        yield add


def _report(note: str) -> None:
    if note:
        print(f"note: {note}", file=sys.stderr)


def _report_unused_boxes(detector: FileBoxes, source: Photos) -> None:
    names = {name for path in source.names for name in (path, Path(path).name)}
    if unused := [name for name in detector.rows if name not in names]:
        count = counted(len(unused), "image")
        _report(f"{detector.file} lists {count} that source={source.source} lacks, such as {unused[0]!a}")


@contextlib.contextmanager
def until_stopped(source: Video) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a camera or stream, which may have no other end, instead of the command."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not source.live:
            raise
