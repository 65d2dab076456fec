"""Sources of images: photos, a video, a camera, a stream; each image upright, with its name and time."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flr.data.images import is_image, read_image
from flr.errors import UserError
from flr.inference.landmarker import MAX_SIDE
from flr.inference.writer import JOURNAL

STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "udp://", "tcp://")
MAX_NAME = 240  # bytes: the names of result files are longer, and file systems allow 255
NAMED = 5  # skipped files that the note names
DEFAULT_RATE = 25.0  # frames a second, where a video states no plausible rate


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video.

    Attributes:
        image: (H, W, 3) RGB uint8.
        number: Number of the frame, from 0.
        seconds: Time since the first frame.
    """

    image: np.ndarray
    number: int
    seconds: float


@dataclass(frozen=True)
class Photos:
    """Image files.

    Attributes:
        source: The value of ``source=``.
        root: Common folder of the files.
        names: Paths below it, in order.
    """

    source: str
    root: Path
    names: Sequence[str]

    def load(self, name: str) -> np.ndarray:
        """Load (H, W) or (H, W, 3) RGB uint8, upright as its EXIF states; of an animation the first image.

        Raises:
            UserError: It cannot be decoded, is too large, or has a name after which no file can be named.
        """
        path = self.root / name
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(path)!a}: its name is not UTF-8; rename it") from error
        if len(os.fsencode(path.name)) > MAX_NAME:
            raise UserError(f"{path}: its name is too long for the names of its results; rename it")
        image = read_image(path, upright=True)
        if max(image.shape) > MAX_SIDE:
            raise UserError(f"{path}: {image.shape[1]} x {image.shape[0]} pixels, over {MAX_SIDE} a side; shrink it")
        return image

    @property
    def name(self) -> str:
        """Name for the results."""
        return Path(self.names[0]).stem if len(self.names) == 1 else self.root.absolute().name


class Video:
    """A video file, a camera or a stream.

    Args:
        source: A path, an address, or a camera's number.

    Attributes:
        name: Name for the results.
        live: Whether it is a camera or a stream, which does not wait and has no end.
        rate: Frames a second.
        count: Number of frames that the file states; 0 where it states none.

    Raises:
        UserError: It cannot be opened.
    """

    def __init__(self, source: str) -> None:
        camera = source.isdigit()
        self.source, self.live = source, camera or source.startswith(STREAMS)
        self.name = f"camera{source}" if camera else "stream" if self.live else Path(source).stem
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error below reports it
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # and of FFmpeg
        self.capture = cv2.VideoCapture(min(int(source), 2**31 - 1) if camera else source)
        if not self.capture.isOpened():
            reason = "no such camera, or another program uses it" if camera else (
                "does not answer with a video" if self.live else "neither an image nor a video that OpenCV can read"
            )  # fmt: skip
            raise UserError(f"source={source}: {reason}; name a photo, folder, video, camera number or address")
        rate, count = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 1 <= rate <= 1000 else DEFAULT_RATE
        self.count = int(count) if not self.live and 0 < count < 2**31 else 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames. A truncated file or an unplugged camera just ends.

        Raises:
            UserError: There is no frame.
        """
        began, number, seconds = time.monotonic(), 0, 0.0
        try:
            while True:
                success, image = self.capture.read()
                if not success or image is None or not image.size:
                    break
                if self.live:
                    seconds = time.monotonic() - began
                elif number:
                    # The frames of phones are unevenly spaced. Where the file's times do not rise, its rate gives the time.
                    stated = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    seconds = stated if stated > seconds else seconds + 1 / self.rate
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number, seconds)
                number += 1
        finally:
            self.capture.release()
        if not number:
            raise UserError(f"source={self.source}: it has no frame that can be read; name another")


def open_source(source: str) -> Photos | Video:
    """Open what ``source=`` names: a photo, a folder with all below it, a video, a camera number, an address.

    Raises:
        UserError: It does not exist, or holds no image.
    """
    if source.isdigit() or source.startswith(STREAMS):
        return Video(source)
    path = Path(source)
    if path.is_dir():
        names = sorted(_images_below(path))
        if not names:
            raise UserError(f"source={source}: no image in it or below; name another folder")
        return Photos(source, path, names)
    if path.is_file():
        return Photos(source, path.parent, [path.name]) if is_image(path) else Video(source)
    raise UserError(f"source={source}: no such file, folder or camera")


def _images_below(root: Path) -> Iterator[str]:
    """Yield the images in a folder and below, without following links to folders, and without results of predictions.

    Other files are counted and named, but for hidden ones.
    """
    others: list[str] = []

    def report(error: OSError) -> None:
        print(f"skipped {error.filename}: cannot be read ({error.strerror})", file=sys.stderr)

    for folder, below, files in os.walk(root, onerror=report):
        if Path(folder) != root and JOURNAL in files:
            below.clear()  # else the next prediction would take the images of this one
            continue
        for name in sorted(files):
            path = Path(folder) / name
            if is_image(path):
                yield str(path.relative_to(root))
            elif not name.startswith("."):
                others.append(str(path.relative_to(root)))
    if others:
        named = ", ".join(f"{name!a}" for name in others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        print(f"skipped {len(others)} file(s) that are not images: {named}", file=sys.stderr)
