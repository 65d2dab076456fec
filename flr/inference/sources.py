"""What is looked at: photos, a video, a camera, a stream; each picture upright, with its name and time."""

import glob
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flr.data.images import read_image
from flr.errors import UserError
from flr.inference.landmarker import LONGEST
from flr.inference.results import JOURNAL

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif", ".jp2"}
STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "udp://", "tcp://")
LONGEST_NAME = 240  # bytes: what files are called after a picture is longer, and 255 is what file systems take
USUAL_RATE = 25.0  # frames a second, where a video tells none that can be


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of a video.

    Attributes:
        image: (H, W, 3) RGB uint8.
        number: from 0.
        seconds: since the first.
    """

    image: np.ndarray
    number: int
    seconds: float


@dataclass(frozen=True)
class Photos:
    """Pictures in files.

    Attributes:
        root: their common folder.
        names: paths below it, in order.
    """

    root: Path
    names: Sequence[str]

    def load(self, name: str) -> np.ndarray:
        """(H, W) or (H, W, 3) RGB uint8, turned upright as its EXIF says; of an animation the first picture.

        Raises:
            UserError: it cannot be decoded, or nothing can be made of it or called after it.
        """
        path = self.root / name
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(path)!a}: its name is not UTF-8; rename it") from error
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise UserError(f"{path}: its name is too long for files called after it; rename it")
        image = read_image(path, upright=True)
        if max(image.shape) > LONGEST:
            raise UserError(f"{path}: {image.shape[1]} x {image.shape[0]} pixels, over {LONGEST} a side; shrink it")
        return image

    @property
    def name(self) -> str:
        """For files that come of them."""
        return Path(self.names[0]).stem if len(self.names) == 1 else self.root.absolute().name


class Video:
    """A file, a camera or a stream.

    Args:
        word: a path, an address, or a camera's number.

    Attributes:
        name: for files that come of it.
        live: whether it is a camera or a stream, which does not wait and has no end.
        rate: frames a second.
        count: of the frames, as the file claims; 0 where it claims none.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, word: str) -> None:
        camera = word.isdigit()
        self.word, self.live = word, camera or word.startswith(STREAMS)
        self.name = f"camera{word}" if camera else "stream" if self.live else Path(word).stem
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our own line tells it
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # and what FFmpeg would write
        self.capture = cv2.VideoCapture(min(int(word), 2**31 - 1) if camera else word)
        if not self.capture.isOpened():
            what = "no such camera, or another program has it" if camera else (
                "does not answer with a video" if self.live else "neither a picture nor a video that OpenCV can read"
            )  # fmt: skip
            raise UserError(f"source={word}: {what}; name a photo, folder, glob, video, camera number or address")
        rate, count = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 1 <= rate <= 1000 else USUAL_RATE
        self.count = int(count) if not self.live and 0 < count < 2**31 else 0

    def __iter__(self) -> Iterator[Frame]:
        """Its frames. One that ends early, as a file that was cut or a camera that is unplugged, just ends.

        Raises:
            UserError: not one frame comes.
        """
        began, number, seconds = time.monotonic(), 0, 0.0
        try:
            while True:
                there, image = self.capture.read()
                if not there or image is None or not image.size:
                    break
                if self.live:
                    seconds = time.monotonic() - began
                elif number:
                    # A phone's frames are not evenly apart. Where the file's times do not rise, its rate tells.
                    shown = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    seconds = shown if shown > seconds else seconds + 1 / self.rate
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number, seconds)
                number += 1
        finally:
            self.capture.release()
        if not number:
            raise UserError(f"source={self.word}: not one frame comes; name another")


def open_source(word: str) -> Photos | Video:
    """What `source=` names: a photo, a folder with all below it, a glob, a video, a camera's number, a stream's address.

    Raises:
        UserError: nothing is there.
    """
    if word.isdigit() or word.startswith(STREAMS):
        return Video(word)
    path = Path(word)
    if path.is_dir():
        names = sorted(_below(path))
        if not names:
            raise UserError(f"source={word}: no picture in it or below; name another folder, or a glob")
        return Photos(path, names)
    if path.is_file():
        return Photos(path.parent, [path.name]) if path.suffix.lower() in PICTURES else Video(word)
    parts = path.parts
    # The folder before the first wildcard, so that names stay what they are when files come or go.
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root, rest = Path(*parts[:fixed]), parts[fixed:]
    if rest[-1:] == ("**",):
        rest = (*rest, "*")
    try:
        # Unlike glob.glob this follows no link to a folder, which may lead back.
        found = sorted(str(name.relative_to(root)) for name in root.glob(str(Path(*rest)))) if rest else []
    except ValueError as error:
        raise UserError(f"source={word}: no glob ({error}); ** stands alone between slashes") from error
    names = [name for name in found if _is_picture(root / name) and not _in_results(root, name)]
    if not names:
        raise UserError(f"source={word}: no such file, folder or camera, and no picture matches it")
    return Photos(root, names)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _in_results(root: Path, name: str) -> bool:
    return any((root / above / JOURNAL).is_file() for above in Path(name).parents[:-1])


def _below(root: Path) -> Iterator[str]:
    """The pictures in a folder and below; links to folders are not followed, nor are the results of predictions looked at."""

    def tell(error: OSError) -> None:
        print(f"skipped {error.filename}: cannot be read ({error.strerror})", file=sys.stderr)

    for folder, below, files in os.walk(root, onerror=tell):
        if Path(folder) != root and JOURNAL in files:
            below.clear()  # else the pictures of one prediction would be taken by the next
            continue
        yield from (str((Path(folder) / name).relative_to(root)) for name in files if _is_picture(Path(folder) / name))
