"""2D drawing on the image, with subpixel coordinates, and the face's features.

A canvas is RGB (H, W, 3) or grey (H, W), uint8; colours are always RGB, and a grey canvas takes their luma.
"""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import Shape, spline, spline_matrix
from flr.data.synthetic.view import View

_SHIFT = 4  # fractional bits of cv2's drawing coordinates
_AA = cv2.LINE_AA
Colour = np.ndarray | Sequence[float]
Ink = tuple[slice, Colour, float]  # which lines, their colour and width
WHITE = (255.0, 255.0, 255.0)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WING = np.array([(2.2, -8.5), (4, -5), (2.8, -1.2), (-1, 0.6)], np.float32)  # the fold from a nose base's end up
_WINGS = np.stack([_WING * (-1, 1), _WING]).astype(np.float32)
_ARCH = np.sin(np.linspace(0.12, 3.02, 16))[:, None].astype(np.float32)
_UPPER_LIDS, _LOWER_LIDS = ([36, 37, 38, 39], [42, 43, 44, 45]), ([39, 40, 41, 36], [45, 46, 47, 42])


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _value(canvas: np.ndarray, colour: Colour) -> tuple[float, ...]:
    """`colour` as cv2 wants it: the canvas's channels."""
    red, green, blue = colour.tolist() if isinstance(colour, np.ndarray) else colour
    if canvas.ndim == 3:
        return (red, green, blue)
    return (0.299 * min(red, 255.0) + 0.587 * min(green, 255.0) + 0.114 * min(blue, 255.0),)


def fill(canvas: np.ndarray, points: np.ndarray, colour: Colour = WHITE, smooth: bool = True) -> None:
    """Fills the polygon `points` (N, 2), or polygons (L, N, 2) that do not overlap, pixels, in place."""
    fixed, edge = _fixed(points), _AA if smooth else cv2.LINE_8
    cv2.fillPoly(canvas, [fixed] if fixed.ndim == 2 else list(fixed), _value(canvas, colour), edge, _SHIFT)


def window(canvas: np.ndarray, points: np.ndarray, pad: float = 2) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of `canvas` round `points` (..., 2) as a view, and its origin (2,) in the image; None if outside."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(points.reshape(-1, 2), np.float32))
    margin = int(pad) + 1
    x0, y0, x1, y1 = max(x - margin, 0), max(y - margin, 0), x + width + margin, y + height + margin
    part = canvas[y0:y1, x0:x1] if x1 > 0 and y1 > 0 else canvas[:0]
    return (part, np.array([x0, y0], np.float32)) if part.size else None


def flat(like: np.ndarray, colour: Colour) -> np.ndarray:
    """An image of the size of `like` in one colour."""
    out = np.empty(like.shape, np.uint8)
    cv2.rectangle(out, (0, 0), out.shape[1::-1], _value(out, colour), cv2.FILLED)
    return out


def blend(part: np.ndarray, over: np.ndarray, mask: np.ndarray, opacity: float = 1.0) -> None:
    """Lays `over`, of the shape of `part`, on `part` in place where `mask` (H, W) uint8 says."""
    weight = mask * np.float32(opacity / 255)
    cv2.blendLinear(over, part, weight, 1 - weight, part)


def tint(part: np.ndarray, colour: Colour, mask: np.ndarray, opacity: float) -> None:
    """Lays `colour` on `part` in place where `mask` (H, W) uint8 says."""
    keep = cv2.convertScaleAbs(mask, alpha=-opacity, beta=255)
    layers = [cv2.convertScaleAbs(mask, alpha=value * opacity / 255) for value in _value(part, colour)]
    if part.ndim == 3:
        keep = cv2.merge([keep, keep, keep])
    cv2.add(cv2.multiply(part, keep, scale=1 / 255), layers[0] if part.ndim == 2 else cv2.merge(layers), part)


def polygon_mask(part: np.ndarray, points: np.ndarray, soft: float = 0.0) -> np.ndarray:
    """(H, W) uint8, 255 inside the polygon or polygons; `soft` is the blur of the edge in pixels."""
    mask = np.zeros(part.shape[:2], np.uint8)
    fill(mask, points, smooth=soft < 0.5)
    return _soften(mask, soft) if soft > 0 else mask


def _soften(mask: np.ndarray, soft: float) -> np.ndarray:
    kernel = 2 * round(1.7 * soft) + 1
    return cv2.blur(mask, (kernel, kernel))


def wash(canvas: np.ndarray, points: np.ndarray, colour: Colour, opacity: float, soft: float = 0.0) -> None:
    """Fills polygons with a see-through colour; `soft` is the blur of the edge in pixels."""
    got = window(canvas, points, 2 + 2 * soft)
    if got is None:
        return
    part, origin = got
    if soft > 0.3:
        tint(part, colour, polygon_mask(part, points - origin, soft), opacity)
        return
    over = part.copy()
    fill(over, points - origin, colour)
    cv2.addWeighted(over, opacity, part, 1 - opacity, 0, part)


def stroke(canvas: np.ndarray, lines: np.ndarray, colour: Colour, width: float, opacity: float) -> None:
    """Draws a line (N, 2), or lines (L, N, 2); a line thinner than a pixel is fainter instead."""
    strokes(canvas, lines if lines.ndim == 3 else lines[None], [(slice(None), colour, width)], opacity)


def strokes(canvas: np.ndarray, lines: np.ndarray, inks: Sequence[Ink], opacity: float) -> None:
    """As `stroke` for several sets of `lines` (L, N, 2), each a slice of them with its colour and width."""
    got = window(canvas, lines, 2 + max(width for _, _, width in inks))
    if got is None:
        return
    part, origin = got
    fixed, over = _fixed(lines - origin), part.copy()
    for some, colour, width in inks:
        cv2.polylines(over, list(fixed[some]), False, _value(over, colour), max(1, round(width)), _AA, _SHIFT)
    opacity *= sum(min(1.0, width) for _, _, width in inks) / len(inks)
    cv2.addWeighted(over, opacity, part, 1 - opacity, 0, part)


class Creases:
    """Dark lines and hollows of a face: gathered in masks and laid on at once, they darken what is there.

    The masks are of three softnesses: 0 sharp, 1 soft, 2 softer.
    """

    def __init__(self, canvas: np.ndarray) -> None:
        self._masks = np.zeros((3, *canvas.shape[:2]), np.uint8)

    def lines(self, points: np.ndarray, width: float, strength: float, soft: int) -> None:
        """Draws a line (N, 2) or lines (L, N, 2) that take the share `strength` of the light."""
        fixed, level = _fixed(points), 255 * strength * min(1.0, width)
        some = [fixed] if fixed.ndim == 2 else list(fixed)
        cv2.polylines(self._masks[soft], some, False, level, max(1, round(width)), _AA, _SHIFT)

    def hollows(self, points: np.ndarray, strength: float) -> None:
        """Fills polygons (L, N, 2) that take the share `strength` of the light."""
        level = 255 * strength
        fill(self._masks[0], points, (level, level, level))

    def lay(self, canvas: np.ndarray, soft: float) -> None:
        """Darkens `canvas` in place; `soft` is the blur in pixels of what is soft."""
        sharp, blurred, softer = self._masks
        mask = cv2.add(cv2.add(sharp, _soften(blurred, soft)), _soften(softer, 1.5 * soft))
        light = cv2.bitwise_not(mask)
        cv2.multiply(canvas, light if canvas.ndim == 2 else cv2.merge([light] * 3), canvas, 1 / 255)


def ellipse(centre: np.ndarray, x_axis: np.ndarray, y_axis: np.ndarray, count: int = 16) -> np.ndarray:
    """The polygon (count, 2) of an ellipse given by its half axes (2,)."""
    circle = _circle(count)
    return centre + circle[:, :1] * x_axis + circle[:, 1:] * y_axis


def cut(bank: np.ndarray, height: int, width: int, y: int = 0, x: int = 0) -> np.ndarray:
    """A piece of a texture, from (y, x) where it is large enough, else the whole stretched."""
    piece = bank[y : y + height, x : x + width]
    return piece if piece.shape[:2] == (height, width) else cv2.resize(bank, (width, height))


@cache
def _circle(count: int) -> np.ndarray:
    t = np.arange(count) * (2 * np.pi / count)
    return np.column_stack([np.cos(t), np.sin(t)]).astype(np.float32)


def pick(canvas: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The colour (3,) float32 at a point, clamped into the image."""
    height, width = canvas.shape[:2]
    x, y = at.tolist()
    out = np.empty(3, np.float32)
    out[:] = canvas[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)]
    return out


class EyeStyle:
    """Looks that both eyes share."""

    def __init__(self, d: Draws, child: float) -> None:
        colours = ((62, 40, 26), (95, 66, 40), (98, 112, 80), (104, 134, 158), (132, 140, 146))
        self.iris = np.array(colours[d.pick((0.5, 0.2, 0.1, 0.12, 0.08))], np.float32) * d.uniform(0.7, 1.3)
        self.iris_radius = d.normal(5.9 + 0.5 * child, 0.3)
        self.pupil = d.uniform(0.3, 0.6)
        self.pupil_colour = np.array([150, 30, 20] if d.chance(0.03) else [14, 12, 12], np.float32)
        self.sclera = np.array([228, 218, 210], np.float32) * d.uniform(0.72, 1.08)
        spots = d.pick((0.25, 0.55, 0.2))
        self.highlights = [(d.normal(0, 2), d.normal(-1.2, 1.5), d.uniform(0.7, 1.6)) for _ in range(spots)]
        made_up = d.uniform(0, 1) ** 2
        self.lash = np.array([34, 26, 24], np.float32) * d.uniform(0.3, 1.5)
        self.lash_width, self.lash_opacity = 1.2 + 1.5 * made_up, d.uniform(0.45, 0.75) + 0.25 * made_up
        self.tail = d.uniform(0, 6) * d.uniform(0, 1)
        self.crease, self.crease_opacity = d.uniform(1.5, 5), d.uniform(0, 0.75)
        self.bag, self.bag_opacity = d.uniform(2.5, 6.5), d.uniform(0, 0.4) * d.chance(0.7)


def paint_eyes(
    canvas: np.ndarray, points: np.ndarray, axes: np.ndarray, style: EyeStyle, skins: np.ndarray, creases: Creases
) -> None:
    """Draws both eyes.

    Args:
        canvas: the image, changed in place.
        points: (70, 2) the face's points and the irises' centres.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        style: looks common to both eyes.
        skins: (2, 3) the colour of the skin round either eye.
        creases: takes the lower lids' lines, the lids' folds and the bags.
    """
    dense = spline_matrix(4, 5)
    upper, lower = dense @ points[_UPPER_LIDS, :], dense @ points[_LOWER_LIDS, :]
    unit = float(np.hypot(*axes[1]))
    rims = np.concatenate([upper, lower[:, 1:-1]], 1)
    got = window(canvas, rims, 3)
    if got is None:
        return
    part, origin = got
    irises, circle = points[68:] - origin, _circle(16) @ (axes * style.iris_radius)
    lights = (skins.sum(1) / (3 * 190)).tolist()
    left, right = (style.sclera * min(1.0, 0.42 + 0.6 * light) for light in lights)
    inner = flat(part, left)
    middle = int(points[39, 0] + points[42, 0]) // 2 - int(origin[0])
    cv2.rectangle(inner, (middle, 0), inner.shape[1::-1], _value(inner, right), cv2.FILLED)
    for centre, light in zip(irises, lights, strict=True):
        iris = style.iris * (0.35 + 0.65 * light)
        fill(inner, centre + circle, iris * 0.55)
        fill(inner, centre + circle * 0.8, iris)
    fill(inner, irises[:, None] + circle * (style.pupil / style.iris_radius), style.pupil_colour)
    # The upper lids shadow the balls.
    edge = upper - origin
    wash(inner, np.concatenate([edge, edge[:, ::-1] + 1.3 * axes[1]], 1), style.sclera * 0.2, 0.55)
    for x, y, radius in style.highlights:
        at = irises[:, None] + (x * axes[0] + y * axes[1])
        fill(inner, at + circle[::2] * (radius / style.iris_radius), (250, 250, 250))
    blend(part, inner, polygon_mask(part, rims - origin))
    # Beyond the outer corners, lashes and the hooded lids run on.
    lash = np.empty((2, 17, 2), np.float32)
    lash[0, 1:], lash[1, :-1] = upper
    sink = axes[1] * 0.35
    lash[0, 0], lash[1, -1] = upper[0, 0] + (sink - axes[0]) * style.tail, upper[1, -1] + (sink + axes[0]) * style.tail
    stroke(canvas, lash, style.lash, style.lash_width * unit, style.lash_opacity)
    creases.lines(lower, 0.9 * unit, 0.5 * style.lash_opacity * 0.55, 0)
    up = -axes[1]
    if style.crease_opacity > 0.1:
        crease = upper + up * (style.crease * (0.35 + 0.65 * _ARCH))
        creases.lines(crease, 1.4 * unit, 0.5 * style.crease_opacity, int(unit > 0.6))
    if style.bag_opacity > 0.05:
        creases.lines(lower - up * (style.bag * _ARCH), 2 * unit, 0.45 * style.bag_opacity, 1)


_BROW_AT = np.linspace(0, 4, 17)
_BROW_PROFILE = np.interp(_BROW_AT, [0, 0.6, 2, 3.2, 4], [0.7, 1, 0.9, 0.62, 0.2])[:, None]
_BROW_ABOVE = _BROW_PROFILE * np.linspace(0.04, 0.35, 17)[:, None]
_BROW_SPREAD = np.concatenate([-_BROW_ABOVE, (_BROW_PROFILE - _BROW_ABOVE)[::-1]]).astype(np.float32)


def paint_brows(
    canvas: np.ndarray,
    lines: np.ndarray,
    axes: np.ndarray,
    thickness: float,
    colours: np.ndarray,
    opacity: float,
    grain: np.ndarray,
) -> None:
    """Draws the brows under their points, `lines` (2, 5, 2) from the inner ends, which lie near the upper edges."""
    ribbons = spline_matrix(5, 4) @ lines
    polygons = np.concatenate([ribbons, ribbons[:, ::-1]], 1) + _BROW_SPREAD * (axes[1] * thickness)
    unit = float(np.hypot(*axes[1]))
    for polygon, colour in zip(polygons, colours, strict=True):
        got = window(canvas, polygon, 3)
        if got is None:
            continue
        part, origin = got
        mask = polygon_mask(part, polygon - origin, 0.7 * unit)
        rough = cv2.multiply(mask, cut(grain, *mask.shape), scale=1 / 160)
        tint(part, colour, rough, opacity)


def paint_nose(base: np.ndarray, axes: np.ndarray, pitch: float, creases: Creases, d: Draws) -> None:
    """Draws nostrils and the folds of the wings.

    Args:
        base: (5, 2) the nose base's points, left to right.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        pitch: radians; the nostrils show most when the face looks up.
        creases: takes all of it.
        d: the face's random numbers.
    """
    dark, wide, fold, line = d.uniform(0.35, 0.9), d.uniform(2.6, 4.2), d.uniform(0.1, 0.5), d.uniform(0.1, 0.45)
    tall = 1.9 * d.uniform(0.7, 1.4) * min(1.8, max(0.25, 1 - 1.6 * pitch))
    unit = float(np.hypot(*axes[1]))
    curls = spline_matrix(4, 4) @ (base[[0, 4]][:, None] + _WINGS @ axes)
    creases.lines(curls, 1.5 * unit, 0.55 * fold, 1)
    creases.lines(spline(base, 4), 2 * unit, 0.55 * line, 1)
    across, down, up = axes[0] * wide, axes[1] * tall, axes[1] * 2.6
    holes = [
        ellipse(half + side * axes[0] - up, across - side * 0.8 * axes[1], down, 12)
        for side, half in ((-1, base[1]), (1, base[3]))
    ]
    creases.hollows(np.array(holes), 0.82 * dark)


def paint_folds(canvas: np.ndarray, shape: Shape, view: View, skin: np.ndarray, creases: Creases, d: Draws) -> None:
    """Draws nasolabial folds, crow's feet, forehead and frown lines, freckles and blotches."""
    p, age = shape.points, d.uniform(0, 1) ** 2 * (1 - shape.child)
    depth = min(0.75, 0.12 * d.uniform(0, 1) + 0.3 * age + 0.3 * shape.smile)
    smile, lines, levels = shape.smile, list[tuple](), list[float]()
    for side, wing, corner, eye in ((-1, 31, 48, 36), (1, 35, 54, 45)) if depth > 0.08 else ():
        (x0, y0), (x1, y1), (x2, y2) = p[[wing, corner, eye]].tolist()
        x0, y0, x1, y1 = x0 + side * 3, y0 - 5, x1 + side * (6 + 2 * smile), y1 + 2
        lines.append(((x0, y0), ((x0 + x1) / 2 + side * (3 + 3 * smile), (y0 + y1) / 2 - 2), (x1, y1)))
        levels.append(depth)
        for k in (-1.0, 0.2, 1.3) if age > 0.3 else ():
            lines.append(tuple((x2 + side * x, y2 + y * k) for x, y in ((4, 2), (8, 3.5), (12, 6))))
            levels.append(0.35 * age)
    for k in range(d.pick((0.6, 0.1, 0.15, 0.15))):
        y = float(p[19:25, 1].sum()) / 6 - 12 - 8 * k
        lines.append(((-36, y + 2), (0, y - 1), (36, y + 2)))
        levels.append(0.15 + 0.4 * age)
    for s in (-5, 5) if d.chance(0.15) else ():
        lines.append(((s, -24), (s * 0.9, -16), (s * 1.3, -9)))
        levels.append(0.4)
    count = int(d.uniform(3, 20)) if d.chance(0.25) else 0
    spots = np.column_stack([d.normals(count, 26), d.normals(count, 22) + 25])
    if not lines and not count:
        return
    controls = np.concatenate([np.array(lines, np.float32).reshape(-1, 2), spots])
    at = view.project(shape.lift(controls))[:, :2]
    curves = spline_matrix(3, 4) @ at[: 3 * len(lines)].reshape(-1, 3, 2)
    for level in sorted(set(levels)):
        some = curves[[i for i, own in enumerate(levels) if own == level]]
        creases.lines(some, 2.5 * view.scale, 0.55 * level, 2)
    if count:
        at = at[-count:, None]
        stroke(canvas, np.concatenate([at, at + 0.1], 1), skin * 0.55, 2 * view.scale, d.uniform(0.15, 0.6))
