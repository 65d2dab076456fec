"""Find the end of a JPEG, and whether its data reach that end: libjpeg fills what is missing with grey and only warns."""

import io
import re

import numpy as np

END = b"\xff\xd9"
SCAN, PROGRESSIVE = 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: neither a stuffed byte, nor a restart, nor a fill byte
MORE = np.random.default_rng(0).integers(0, 255, 256, np.uint8).tobytes()  # data that no image is made of; none is 255


def length(data: bytes) -> int:
    """Return the bytes of the first image of a JPEG file, its end marker included; all bytes where there is none."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
        elif data[at : at + 2] == END:
            return at + 2
        elif data[at + 1] == SCAN:
            found = MARKER.search(data, at + 2 + int.from_bytes(data[at + 2 : at + 4]))
            if found is None:
                break
            at = found.start()
        elif data[at + 1] in (0x00, 0x01, *range(0xD0, 0xD9)):  # markers without a segment
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return at + 2 if data[at : at + 2] == END else len(data)


def may_be_cut(data: bytes, image: np.ndarray) -> bool:
    """Return whether the last pixels are plain, as libjpeg leaves missing ones, or the scans are progressive."""
    corner = image[-4:, -4:].reshape(-1, *image.shape[2:])
    return bool((corner == corner[0]).all()) or any(b"\xff" + bytes([kind]) in data for kind in PROGRESSIVE)


def is_cut(data: bytes) -> bool:
    """Return whether the last scan of a whole JPEG lacks data: then more data before its end marker change the pixels.

    Without Pillow, which only the full installation has, nothing is found.
    """
    try:
        image, with_more = _decode(data), _decode(data[: -len(END)] + MORE + END)
    except Exception:  # Pillow raises many kinds, one of them for an image of its own limit, which is below flr's
        return False
    return not np.array_equal(image, with_more)


def _decode(data: bytes) -> np.ndarray:
    """Decode with Pillow, which does not print libjpeg's warnings as OpenCV does."""
    from PIL import Image  # exported models run without it

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
