"""Label images of the parts of faces."""

from collections.abc import Mapping

import numpy as np

from flr.inference.effects.areas import area, areas_of, cover, hull_of, is_drawable, window_of
from flr.inference.effects.base import Effect
from flr.landmarks.scheme import Scheme

# A later label lies over an earlier one.
LABELS: Mapping[str, int] = {
    "background": 0, "skin": 1, "right_brow": 2, "left_brow": 3, "right_eye": 4, "left_eye": 5, "lips": 6, "mouth": 7,
}  # fmt: skip


class Mask(Effect):
    """Make a label image of the parts of faces: (H, W) uint8 with the values of `LABELS`, 0 outside faces.

    Skin is the hull of the points, so it ends at the brows, above which no scheme has points. A label whose outline the
    scheme lacks does not occur.
    """

    makes_labels = True

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        lines = areas_of(scheme)
        if not is_drawable(points):
            return
        named = {"skin": hull_of(points)} | {line: area(points, lines[line]) for line in lines}
        if "inner_lip" in lines:  # without it, the lips would hold the open mouth
            named |= {"lips": named["outer_lip"], "mouth": named["inner_lip"]}
        for label, value in LABELS.items():
            if label in named and (window := window_of(image, [named[label]])) is not None:
                image[window][cover([named[label]], window) >= 0.5] = value
