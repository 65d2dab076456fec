"""Images with alpha on faces, such as sunglasses."""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Le

from flr.errors import UserError
from flr.inference.effects.areas import is_drawable, window_of
from flr.inference.effects.base import Effect
from flr.inference.effects.textures import read_anchors, read_rgba
from flr.landmarks.geometry import compose, fit_similarity, resize, transform
from flr.landmarks.scheme import Scheme

BUILT_IN = Path(__file__).parent
MAX_STRETCH = 8.0  # image widths: a larger overlay has a degenerate map


class Overlay(Effect):
    """Overlay an image with alpha on points of the face (see `fit_map`).

    Args:
        picture: ``sunglasses``, or a PNG file with alpha.
        anchors: YAML file with the positions in the overlay that lie on points of the face (see `read_anchors`); None for
            those of the sunglasses.
        strength: 0 leaves the image as it is, 1 takes the overlay's own alpha.
    """

    def __init__(
        self, picture: str = "sunglasses", anchors: str | None = None, strength: Annotated[float, Ge(0), Le(1)] = 1.0
    ) -> None:
        if picture != "sunglasses" and anchors is None:
            raise UserError(f"effect: {picture} has no anchors; give its anchor file by anchors=FILE")
        self.picture, self.strength = picture, float(strength)
        self.anchors = read_anchors(Path(anchors or BUILT_IN / "sunglasses.yaml"))
        self.texture = read_rgba(BUILT_IN / "sunglasses.png" if picture == "sunglasses" else Path(picture))

    def _anchor_scheme(self, scheme: Scheme) -> str:
        """Return the scheme, this one or a reduction of it, whose anchors apply."""
        for name in (scheme.name, *scheme.reductions):
            if name in self.anchors:
                return name
        raise UserError(
            f"effect: the anchors of {self.picture} are for {', '.join(self.anchors)}, and {scheme.name} reduces to none "
            f"of them; add anchors of {scheme.name} to the file, or take a model of one of those"
        )

    def check(self, scheme: Scheme) -> None:
        self._anchor_scheme(scheme)

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        name = self._anchor_scheme(scheme)
        points = scheme.reduce(points, name)
        target = np.array([points[list(group)].mean(0) for _, group in self.anchors[name]])
        if not is_drawable(target):
            return
        height, width = self.texture.shape[:2]
        places = np.array([place for place, _ in self.anchors[name]])
        to_image = fit_map(places, target)
        corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
        frame = transform(to_image, corners)
        if np.ptp(frame, axis=0).max() > MAX_STRETCH * max(image.shape):
            return
        if (window := window_of(image, [frame])) is None:
            return
        factor = np.sqrt(cv2.contourArea(frame.astype(np.float32)) / (width * height))
        texture = self.texture
        if factor < 0.5:  # bilinear taps would skip pixels
            size = max(1, round(width * factor)), max(1, round(height * factor))
            texture = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
        back = resize(width / texture.shape[1], height / texture.shape[0])
        part = image[window]
        to_part = compose(to_image, back) - [[0, 0, window[1].start], [0, 0, window[0].start]]
        layer = self.strength * cv2.warpAffine(texture, to_part, part.shape[1::-1])
        part[:] = np.clip(part * (1 - layer[..., 3:]) + 255 * layer[..., :3] + 0.5, 0, 255)


def fit_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit an affine map (2, 3) of points (N, 2) to others by least squares; of two points, or points on a line, a similarity."""
    if len(source) < 3 or np.linalg.svd(source - source.mean(0), compute_uv=False)[1] < 1e-3 * np.ptp(source):
        return fit_similarity(source, target)
    return np.linalg.lstsq(np.c_[source, np.ones(len(source))], target, rcond=None)[0].T
