"""Image files: what they are, and their pixels."""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from flr import MAX_PIXELS
from flr.data import jpeg
from flr.errors import UserError
from flr.files import opened
from flr.system import silenced_c_stderr

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif", ".jp2"}
EXIF_ORIENTATION = 0x0112
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Files:
    """Images that are files, named by their paths under `root`.

    Attributes:
        root: Folder of the files.
        upright: Whether an image is turned by its EXIF orientation, where `sizes` does not decide.
        sizes: Width and height of images as their labels see them; an image may be missing.
    """

    root: Path
    upright: bool = False
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    def __call__(self, name: str) -> np.ndarray:
        """The pixels (see `read_image`)."""
        return read_image(self.root / name, self.turns(name))

    def turns(self, name: str) -> bool:
        """Whether an image is turned by its EXIF orientation."""
        sized = self.sizes.get(name)
        if sized is None:
            return self.upright
        orientation, stored = self._header(name)
        quarter = orientation > 4 and stored[0] != stored[1]  # width and height are exchanged
        return sized != stored if quarter and sized in (stored, stored[::-1]) else self.upright

    def orientation(self, name: str) -> int:
        """The EXIF orientation of an image: 1 for upright, 2 to 8 for mirrored or turned, 5 to 8 by a quarter."""
        return self._header(name)[0]

    def _header(self, name: str) -> tuple[int, tuple[int, int]]:
        """The EXIF orientation and the stored width and height that an image's header states."""
        try:
            from PIL import Image  # exported models run without it

            with opened(self.root / name) as file, Image.open(file) as image:
                value = image.getexif().get(EXIF_ORIENTATION, 1)
                return (value if value in range(1, 9) else 1), image.size
        except Exception:  # Pillow raises many kinds for damaged files, which are decoded and named elsewhere
            return 1, (0, 0)

    def states(self, names: Iterable[str]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """What is known of files without reading them.

        Args:
            names: of n images, under `root`.

        Returns:
            Bytes (n,) int64, time of change (n,) int64 in nanoseconds, and index -> what is wrong with a file.
        """
        found, faults, root = [], {}, str(self.root)
        for i, name in enumerate(names):
            if name.startswith(("/", "\\")) or (".." in name and ".." in PurePosixPath(name.replace("\\", "/")).parts):
                found.append((0, 0))
                faults[i] = f"its image '{name}' is outside the dataset's folder"
                continue
            try:
                state = os.stat(f"{root}/{name}")
            except (OSError, ValueError) as error:  # the latter: a NUL in the name
                found.append((0, 0))
                faults[i] = f"its image cannot be read ({getattr(error, 'strerror', None) or error})"
                continue
            found.append((state.st_size, state.st_mtime_ns))
            if not stat.S_ISREG(state.st_mode):
                faults[i] = "its image is not a file"
            elif not state.st_size:
                faults[i] = "its image is an empty file"
        size, version = np.array(found, np.int64).reshape(-1, 2).T
        return size, version, faults


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix or, under any other name, by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path.is_file()
    try:
        return path.is_file() and cv2.haveImageReader(str(path))
    except (OSError, UnicodeError, cv2.error):
        return False


def read_image(path: Path, upright: bool = False) -> np.ndarray:
    """Decode an image to (H, W) grey or (H, W, 3) RGB uint8.

    Args:
        path: of the file.
        upright: whether it is turned as its EXIF says; by default it stays as stored, since labels know no EXIF.

    Raises:
        UserError: missing, empty, not an image, truncated, or a header that claims more than `MAX_PIXELS`.
    """
    try:
        with opened(path) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix or fetch the file again") from error
    return decode_image(data, str(path), upright)


def decode_image(data: bytes, name: str, upright: bool = False) -> np.ndarray:
    """As `read_image`, from the file's bytes; `name` is used in errors."""
    if not data:
        raise UserError(f"{name}: empty file; fetch it again")
    if data.lstrip()[:1] == b"<":
        raise UserError(f"{name}: an HTML or XML page, not an image; fetch it again")
    if data[:8] == PNG and not _whole_png(data):
        raise UserError(f"{name}: a truncated PNG; fetch it again")  # OpenCV would ask for what memory a chunk claims
    if data[:2] == b"\xff\xd8":
        data = data[: jpeg.length(data)]  # a motion photo has a video behind its image, others have padding
        if not data.endswith(jpeg.END):
            raise UserError(f"{name}: a truncated JPEG; fetch it again")  # OpenCV would fill the rest with grey
    flags = cv2.IMREAD_ANYCOLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        with silenced_c_stderr():  # libjpeg and libpng print a line for whatever is unusual in a file, without its name
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(
            f"{name}: not an image that OpenCV can decode, or of over {MAX_PIXELS // 10**6} megapixels; fetch it again, or name another"
        )
    if data[:2] == b"\xff\xd8" and jpeg.may_be_cut(data, image) and jpeg.is_cut(data):
        raise UserError(f"{name}: a damaged JPEG, whose data end before its last row; fetch it again")
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _whole_png(data: bytes) -> bool:
    """Whether the chunks of a PNG lie in it, the last one included."""
    at = len(PNG)
    while (end := at + 12 + int.from_bytes(data[at : at + 4])) <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False
