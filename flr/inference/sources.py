"""What is looked at: photos, a video, a camera, a stream; each picture upright, with its name and time."""

import glob
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flr.data.table import read_image
from flr.errors import UserError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif", ".jp2"}
STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "udp://", "tcp://")
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
            UserError: it cannot be decoded.
        """
        return read_image(self.root / name, upright=True)

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
        self.capture = cv2.VideoCapture(int(word) if camera else word)
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
        began, number = time.monotonic(), 0
        try:
            while True:
                there, image = self.capture.read()
                if not there or image is None or not image.size:
                    break
                seconds = time.monotonic() - began if self.live else number / self.rate
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
        names = sorted(
            str(found.relative_to(path)) for found in path.rglob("*")
            if found.suffix.lower() in PICTURES and found.is_file()
        )  # fmt: skip
        if not names:
            raise UserError(f"source={word}: no picture in it or below; name another folder, or a glob")
        return Photos(path, names)
    if path.is_file():
        return Photos(path.parent, [path.name]) if path.suffix.lower() in PICTURES else Video(word)
    found = sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) else []
    found = [name for name in found if Path(name).suffix.lower() in PICTURES and Path(name).is_file()]
    if not found:
        raise UserError(f"source={word}: no such file, folder or camera, and no picture matches it")
    # The folder before the first wildcard, so that names stay what they are when files come or go.
    parts = Path(word).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed]) if fixed else Path()
    return Photos(root, [str(Path(name).relative_to(root)) for name in found])
