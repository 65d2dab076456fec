"""Colour on lips, eyes or brows."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from flr.errors import UserError, nearest
from flr.inference.effects.areas import area, areas_of, cover, window_of
from flr.inference.effects.base import Effect
from flr.landmarks.scheme import SCHEMES, Scheme

Colour = tuple[Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)]]

REGIONS: Mapping[str, tuple[str, ...]] = {  # region -> the outlines that it needs
    "lips": ("outer_lip", "inner_lip"),
    "eyes": ("right_eye", "left_eye"),
    "brows": ("right_brow", "left_brow"),
}


class Paint(Effect):
    """Fill lips, eyes or brows with a colour, with smooth edges. Teeth and the open mouth stay as they are.

    Args:
        region: Region to fill.
        colour: RGB.
        strength: 0 leaves the image as it is, 1 hides it.
    """

    def __init__(
        self,
        region: Literal["lips", "eyes", "brows"],
        colour: Colour,
        strength: Annotated[float, Ge(0), Le(1)] = 0.5,
    ) -> None:
        if region not in REGIONS:
            raise ValueError(f"region={region} is not a region{nearest(region, REGIONS)}")
        self.region, self.colour, self.strength = region, tuple(colour), float(strength)

    def check(self, scheme: Scheme) -> None:
        needed = set(REGIONS[self.region])
        if not needed <= set(areas_of(scheme)):
            suitable = [name for name, other in SCHEMES.items() if needed <= set(areas_of(other))]
            raise UserError(
                f"effect: {self.region} needs {' and '.join(sorted(needed))}, for which {scheme.name} has too few points; take a "
                f"model of {', '.join(suitable)}"
            )

    def draw(self, image: np.ndarray, points: np.ndarray, scheme: Scheme) -> None:
        lines = areas_of(scheme)
        areas = [area(points, lines[line]) for line in REGIONS[self.region]]
        outer = areas[:1] if self.region == "lips" else areas
        if (window := window_of(image, outer)) is None:
            return
        alpha = cover(outer, window)
        if self.region == "lips":
            alpha = np.maximum(alpha - cover(areas[1:], window), 0)
        part, alpha = image[window], self.strength * alpha[..., None]
        part[:] = part + alpha * (np.array(self.colour, np.float32) - part) + 0.5
