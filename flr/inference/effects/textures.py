"""Overlay images and their anchors, which may come from files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from annotated_types import MinLen
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from flr.data.formats.text import read_plain
from flr.errors import UserError
from flr.landmarks.definition import point_of
from flr.landmarks.scheme import Scheme, get_scheme

Anchor = tuple[tuple[float, float], tuple[int, ...]]  # a pixel of the overlay, and the points whose mean it lies on


def read_rgba(path: Path) -> np.ndarray:
    """Read an image with alpha, of 8 or 16 bit.

    Returns:
        (H, W, 4) float32 RGBA from 0 to 1, with colours multiplied by alpha, so that transparent pixels leave no edge.

    Raises:
        UserError: OpenCV cannot read it, or it has no alpha.
    """
    try:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # of more pixels than OpenCV takes
        image = None
    if image is None:
        raise UserError(f"{path}: not an image that OpenCV can read; name a PNG file with alpha")
    if image.ndim != 3 or image.shape[2] != 4:
        raise UserError(
            f"{path}: has no alpha, so it would hide the face in a box; save it with a transparent background"
        )
    texture = image[..., [2, 1, 0, 3]].astype(np.float32) / (255 if image.dtype == np.uint8 else 65535)
    texture[..., :3] *= texture[..., 3:]
    return texture


@dataclass(frozen=True)
class AnchorEntry:
    """An anchor of a file.

    Attributes:
        at: A pixel x, y of the overlay.
        points: The point of the face that lies there, by name or index, or several whose mean does.
    """

    at: tuple[FiniteFloat, FiniteFloat]
    points: str | Annotated[list[str], MinLen(1)]


_FILE = TypeAdapter(Annotated[dict[str, Annotated[list[AnchorEntry], MinLen(2)]], MinLen(1)])


def read_anchors(path: Path) -> dict[str, list[Anchor]]:
    """Read the anchors of an overlay by scheme: positions in the overlay, and the points of the face that they lie on.

    The file has this form::

        ibug68:
          - {at: [101, 70], points: right_eye_0}                # a pixel x, y of the overlay, and a point
          - {at: [250, 75], points: [nose_0, nose_1]}           # or the mean of several

    A model takes the anchors of its own scheme, else those of the first scheme that its own reduces to.

    Raises:
        UserError: The file is missing or has another form.
    """
    try:
        entries: Mapping[str, list[AnchorEntry]] = _FILE.validate_python(read_plain(path, "anchor file"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{path}: {where:.80} {error.errors()[0]['msg']}; write SCHEME: and below it two or more lines "
            "- {at: [x, y], points: NAME}"
        ) from error
    try:
        return {name: _anchors(items, get_scheme(name), name) for name, items in entries.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _anchors(entries: list[AnchorEntry], scheme: Scheme, where: str) -> list[Anchor]:
    if len({entry.at for entry in entries}) < 2:
        raise UserError(f"{where}: all anchors are at one position; give at least two")
    indices = {name: i for i, name in enumerate(scheme.names)}
    named = [(entry.at, [entry.points] if isinstance(entry.points, str) else entry.points) for entry in entries]
    return [(at, tuple(point_of(point, indices, where) for point in points)) for at, points in named]
