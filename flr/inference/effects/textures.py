"""Overlay images and their anchors, which may come from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flr.data.formats.text import read_plain, to_number
from flr.errors import UserError
from flr.files import opened
from flr.landmarks.definition import point_of
from flr.landmarks.scheme import Scheme, get_scheme

Anchor = tuple[tuple[float, float], tuple[int, ...]]  # a pixel of the overlay, and the points whose mean it lies on

MAX_BYTES, MAX_PIXELS = 2**26, 2**24  # of an overlay


def read_rgba(path: Path) -> np.ndarray:
    """Read a PNG file with alpha, of 8 or 16 bit.

    Returns:
        (H, W, 4) float32 RGBA from 0 to 1, with colours multiplied by alpha, so that transparent pixels leave no edge.

    Raises:
        UserError: It cannot be read, is not a PNG, or has no alpha or more than `MAX_PIXELS`.
    """
    try:
        with opened(path, MAX_BYTES) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a PNG file with alpha") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"{path}: not a PNG; save it as one, with alpha")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))  # read before memory is allocated for it
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels are too many; save it at most 4096 x 4096")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: a broken PNG; save it again")
    if image.ndim != 3 or image.shape[2] != 4:
        raise UserError(
            f"{path}: has no alpha, so it would hide the face in a box; save it with a transparent background"
        )
    texture = image[..., [2, 1, 0, 3]].astype(np.float32) / (255 if image.dtype == np.uint8 else 65535)
    texture[..., :3] *= texture[..., 3:]
    return texture


def shrink(texture: np.ndarray, scale: float) -> np.ndarray:
    """Reduce an image (H, W, C) by area; a scale of 1 or more returns it as it is."""
    if scale >= 1:
        return texture
    height, width = (max(1, round(side * scale)) for side in texture.shape[:2])
    return cv2.resize(texture, (width, height), interpolation=cv2.INTER_AREA)


def read_anchors(path: Path) -> dict[str, list[Anchor]]:
    """Read the anchors of an overlay by scheme: positions in the overlay, and the points of the face that they lie on.

    The file has this form::

        ibug68:
          - {at: [101, 70], points: right_eye_0}                # a pixel x, y of the overlay, and a point
          - {at: [250, 75], points: [nose_0, nose_1]}           # or the mean of several
        celeba5:
          - {at: [150, 70], points: right_eye}
          - {at: [350, 70], points: left_eye}

    A model takes the anchors of its own scheme, else those of the first scheme that its own reduces to. Points are given by
    name or by index.

    Raises:
        UserError: The file is missing or has another form.
    """
    values = read_plain(path, "anchor file")
    anchors: dict[str, list[Anchor]] = {}
    try:
        if not isinstance(values, Mapping) or not values:
            raise UserError("no anchors; write SCHEME: and below it a list of {at: [x, y], points: NAME}")
        for name, items in values.items():
            scheme = get_scheme(str(name))
            if not isinstance(items, list) or len(items) < 2:
                raise UserError(f"{name}: expected a list of at least two anchors")
            anchors[scheme.name] = [_parse_anchor(item, scheme, f"{name}[{i}]") for i, item in enumerate(items)]
            if len({place for place, _ in anchors[scheme.name]}) < 2:
                raise UserError(f"{name}: all anchors are at one position; give at least two")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return anchors


def _parse_anchor(value: Any, scheme: Scheme, where: str) -> Anchor:
    if not isinstance(value, Mapping) or set(value) != {"at", "points"}:
        raise UserError(f"{where}: an anchor is {{at: [x, y], points: NAME}}")
    at, points = value["at"], value["points"]
    points = points if isinstance(points, list) else [points]
    try:
        x, y = (to_number(number) for number in at)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: at must be two numbers, a pixel x, y of the overlay; write [x, y]") from error
    if not points:
        raise UserError(f"{where}: points is empty; name at least one point")
    return (x, y), tuple(
        point_of(point, dict(zip(scheme.names, range(len(scheme)), strict=True)), where) for point in points
    )
