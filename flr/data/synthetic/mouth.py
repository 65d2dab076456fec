"""The mouth: lips, teeth, tongue and the gap between the lips."""

from dataclasses import dataclass

import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.paint import Creases, blend, ellipse, fill, flat, polygon_mask, stroke, wash, window
from flr.data.synthetic.shape import Shape, spline_matrix

_HUMP = np.sin(np.linspace(0, np.pi, 17))[:, None].astype(np.float32)
_TEETH = np.linspace(-17, 17, 8, dtype=np.float32)[:, None]
CLOSED = 0.9  # millimetres between the inner lips, up to which nothing of the inside is drawn


@dataclass(frozen=True)
class MouthStyle:
    """Colours and features of a mouth.

    Attributes:
        lip: (3,) colour of the upper lip; the lower one is lighter by `contrast`.
        brightness: of the skin, 0 to about 1.
        opacity: of the lips over the skin.
        edge: strength of the lips' outlines.
        contrast: between the two lips.
        gloss: strength of the light on the lower lip.
        teeth: whiteness of the teeth.
        upper_reach: length of the upper teeth, millimetres.
        lower_teeth: whether the lower teeth show.
        tongue: whether the tongue shows.
        dark: level of the inside.
        crease: strength of the line between the lips.
        beyond: millimetres that this line runs on beyond the corners.
        has_teeth: whether any teeth show.
    """

    lip: np.ndarray
    brightness: float
    opacity: float
    edge: float
    contrast: float
    gloss: float
    teeth: float
    upper_reach: float
    lower_teeth: bool
    tongue: bool
    dark: float
    crease: float
    beyond: float
    has_teeth: bool

    @staticmethod
    def draw(skin: np.ndarray, child: float, d: Draws) -> "MouthStyle":
        """Draw a style for a skin colour (3,) and an age, `child` 0 to 1."""
        lipstick = d.uniform(0.5, 1) if d.chance(0.25) else 0.0
        bare = skin * np.array([0.9, 0.68, 0.68], np.float32) * d.uniform(0.75, 1.05)
        brightness = float(skin.sum()) / 600
        paint_colour = np.array([d.uniform(120, 215), d.uniform(20, 90), d.uniform(40, 100)], np.float32)
        return MouthStyle(
            lip=bare * (1 - lipstick) + paint_colour * (lipstick * (0.25 + brightness)),
            brightness=brightness,
            opacity=d.uniform(0.45, 0.95),
            edge=d.uniform(0, 0.3),
            contrast=d.uniform(0.7, 0.92),
            gloss=d.uniform(0, 0.4) * d.chance(0.6),
            teeth=d.uniform(0.6, 1.0),
            upper_reach=d.uniform(5, 11),
            lower_teeth=d.chance(0.3),
            tongue=d.chance(0.4),
            dark=d.uniform(12, 60),
            crease=d.uniform(0.35, 0.9),
            beyond=d.uniform(0, 4),
            has_teeth=not d.chance(0.12 + 0.5 * child),
        )


def paint_mouth(
    canvas: np.ndarray, lips: np.ndarray, axes: np.ndarray, shape: Shape, skin: np.ndarray, creases: Creases, d: Draws
) -> None:
    """Draw lips, teeth, tongue and the gap.

    Args:
        canvas: the image, changed in place.
        lips: (20, 2) the mouth's points in iBUG order.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        shape: the face.
        skin: (3,) the colour round the mouth.
        creases: takes the lips' edges and the line between them.
        d: the face's random numbers.
    """
    style = MouthStyle.draw(skin, shape.child, d)
    unit = float(np.hypot(*axes[1]))
    outer_top, outer_low = spline_matrix(7, 4) @ lips[[range(7), [6, 7, 8, 9, 10, 11, 0]], :]
    inner_top, inner_low = spline_matrix(5, 4) @ lips[[range(12, 17), [16, 17, 18, 19, 12]], :]
    bands = np.array([np.concatenate([outer_top, inner_top[::-1]]), np.concatenate([outer_low, inner_low[::-1]])])
    got = window(canvas, bands, 2)
    if got is None:
        return
    part, origin = got
    over, bands = flat(part, style.lip), bands - origin
    fill(over, bands[0], style.lip * style.contrast)
    blend(part, over, polygon_mask(part, bands, 0.3 * unit), style.opacity)
    creases.lines(outer_low, unit, 0.5 * style.edge, 0)
    creases.lines(outer_top, unit, 0.45 * style.edge * 0.6, 0)
    if style.gloss:
        middle = (lips[9] + lips[18]) / 2
        wash(canvas, ellipse(middle, axes[0] * 7, axes[1] * 1.3), (250, 240, 235), style.gloss, unit)
    gap = float(np.hypot(*(lips[14] - lips[18]))) / unit
    crease = style.crease
    if gap > CLOSED:
        _paint_inside(part, origin, lips, inner_top, inner_low, axes, gap, style)
        crease *= 0.45
    seam = (inner_top + inner_low[::-1]) / 2 if gap <= CLOSED else inner_top
    # The crease runs on beyond the corners.
    ends = lips[[0, 0, 6, 6]]
    ends[0] -= axes[0] * style.beyond
    ends[3] += axes[0] * style.beyond
    creases.lines(np.concatenate([ends[:2], seam, ends[2:]]), 1.3 * unit, 0.8 * crease, 0)


def _paint_inside(
    part: np.ndarray, origin: np.ndarray, lips: np.ndarray, top: np.ndarray, low: np.ndarray, axes: np.ndarray,
    gap: float, style: MouthStyle,
) -> None:  # fmt: skip
    """Draw tongue and teeth into `part` of the image, whose corner is at `origin` (2,).

    The inner lips' curves `top` and `low` (17, 2) are `gap` millimetres apart.
    """
    light, down = 0.3 + 0.7 * style.brightness, axes[1]
    inside = flat(part, (style.dark, style.dark * 0.45, style.dark * 0.4))
    if style.tongue and gap > 7:
        at = lips[18] - down * gap * 0.2 - origin
        fill(inside, ellipse(at, axes[0] * 14, down * gap * 0.35), np.array([165, 80, 80]) * light)
    white = np.array([232, 224, 208], np.float32) * style.teeth * light
    if style.has_teeth:
        ridge = top + (0.55 + 0.45 * _HUMP) * (down * style.upper_reach)
        fill(inside, np.concatenate([top - down * 2, ridge[::-1]]) - origin, white)
        if style.lower_teeth:
            ridge = low - down * min(5.0, 0.3 * gap)
            fill(inside, np.concatenate([low + down * 2, ridge[::-1]]) - origin, white * 0.85)
        roots = lips[14] - origin + _TEETH * axes[0]
        stroke(
            inside,
            np.stack([roots, roots + down * style.upper_reach], 1),
            white * 0.5,
            0.45 * float(np.hypot(*down)),
            0.5,
        )
        # The corners lie deep.
        wash(inside, ellipse(lips[[12, 16], None] - origin, axes[0] * 4, down * 6), (20, 10, 8), 0.6)
    blend(part, inside, polygon_mask(part, np.concatenate([top, low[1:-1]]) - origin))
