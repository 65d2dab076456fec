"""The built-in sunglasses: their texture and anchors."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from flr.inference.effects.areas import cover
from flr.inference.effects.textures import Anchor
from flr.landmarks.outlines import smooth

UNIT, ORIGIN = 400.0, (500.0, 160.0)  # pixels between the eyes' centres, and the pixel midway between them


def _at(x: float, y: float) -> tuple[float, float]:
    return ORIGIN[0] + UNIT * x, ORIGIN[1] + UNIT * y


# Positions of points on a frontal face, in distances between the eyes: medians of 152 such faces of 300-W's test parts.
# The mouth determines the face's height; a smile moves its corners apart, so their mean is taken.
GLASSES: Mapping[str, Sequence[Anchor]] = {
    "ibug68": [
        (_at(-0.69, 0), (36,)), (_at(0.69, 0), (45,)), (_at(-0.3, 0.03), (39,)), (_at(0.3, 0.03), (42,)),
        (_at(-0.6, -0.34), (18, 19, 20)), (_at(0.6, -0.34), (23, 24, 25)), (_at(0, -0.02), (27,)),
        (_at(0, 0.99), (48, 54)),
    ],
    "kaggle15": [
        (_at(-0.69, 0), (5,)), (_at(0.69, 0), (3,)), (_at(-0.3, 0.03), (4,)), (_at(0.3, 0.03), (2,)),
        (_at(-0.56, -0.22), (8, 9)), (_at(0.56, -0.22), (6, 7)), (_at(0, 0.99), (11, 12)),
    ],
    "celeba5": [(_at(-0.5, 0), (0,)), (_at(0.5, 0), (1,)), (_at(0, 0.99), (3, 4))],
}  # fmt: skip

# The right half of a frame in the same units; the left one is its mirror image.
_LENS = [
    (-0.12, -0.2),
    (-0.5, -0.27),
    (-0.9, -0.23),
    (-0.93, 0.0),
    (-0.83, 0.27),
    (-0.55, 0.36),
    (-0.25, 0.27),
    (-0.13, 0.03),
]


@lru_cache
def sunglasses() -> np.ndarray:
    """Draw (380, 1000, 4) float32 RGBA as of `read_rgba`: lenses, darker above, in a black frame, with the temples' ends."""
    window = slice(0, 380), slice(0, 1000)

    def both_sides(shape: Sequence[tuple[float, float]] | np.ndarray) -> list[np.ndarray]:
        return [np.array([_at(side * x, y) for x, y in shape]) for side in (1, -1)]

    lens = np.array(_LENS)
    lens = smooth(lens, ((*range(len(lens)), 0),))
    middle = lens.mean(0)
    glass = cover(both_sides(lens), window)
    bridge = [(-0.16, -0.19), (0.0, -0.15), (0.16, -0.19), (0.16, -0.06), (0.0, -0.09), (-0.16, -0.06)]
    temple = [(-0.9, -0.25), (-1.12, -0.17), (-1.12, -0.06), (-0.9, -0.1)]
    frame = cover(
        [*both_sides(middle + [1.1, 1.13] * (lens - middle)), *both_sides(bridge), *both_sides(temple)], window
    )
    below = np.linspace(0, 1, 380, dtype=np.float32)[:, None]
    clear = glass * (0.04 + 0.26 * below)
    alpha = np.maximum(frame, glass) * (1 - clear)
    tint = np.array([0.16, 0.15, 0.2], np.float32) * (glass * below)[..., None] + np.float32(0.03)
    return np.concatenate([tint * alpha[..., None], alpha[..., None]], -1).astype(np.float32)
