"""2D drawing on the picture, with subpixel coordinates, and the face's features."""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import Shape, spline, spline_matrix
from flr.data.synthetic.view import View

_SHIFT = 4  # fractional bits of cv2's drawing coordinates
Colour = np.ndarray | Sequence[float]
_WING = np.array([(2.2, -8.5), (4, -5), (2.8, -1.2), (-1, 0.6)], np.float32)  # the fold from a nose base's end up
_ARCH = np.sin(np.linspace(0.12, 3.02, 16))[:, None].astype(np.float32)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _value(colour: Colour) -> list[float]:
    return [float(c) for c in colour]


def fill(canvas: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    """Fills the polygon `points` (N, 2), pixels, in place."""
    cv2.fillPoly(canvas, [_fixed(points)], _value(colour), cv2.LINE_AA, _SHIFT)


def window(canvas: np.ndarray, points: np.ndarray, pad: float = 2) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of `canvas` round `points` as a view, and its origin (2,) in the picture; None if outside."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(points, np.float32))
    margin = int(pad) + 1
    x0, y0, x1, y1 = max(x - margin, 0), max(y - margin, 0), x + width + margin, y + height + margin
    part = canvas[y0:y1, x0:x1] if x1 > 0 and y1 > 0 else canvas[:0]
    return (part, np.array([x0, y0], np.float32)) if part.size else None


def flat(like: np.ndarray, colour: Colour) -> np.ndarray:
    """A picture of the size of `like` in one colour."""
    out = np.empty(like.shape, np.uint8)
    cv2.rectangle(out, (0, 0), out.shape[1::-1], _value(colour), cv2.FILLED)
    return out


def blend(part: np.ndarray, over: np.ndarray, mask: np.ndarray, opacity: float = 1.0) -> None:
    """Lays `over` (H, W, 3) on `part` in place where `mask` (H, W) uint8 says."""
    weight = mask * np.float32(opacity / 255)
    part[:] = cv2.blendLinear(over, part, weight, 1 - weight)


def polygon_mask(part: np.ndarray, points: np.ndarray, soft: float = 0.0) -> np.ndarray:
    """(H, W) uint8, 255 inside the polygon; `soft` is the blur of its edge in pixels."""
    mask = np.zeros(part.shape[:2], np.uint8)
    fill(mask, points, (255,))
    return _soften(mask, soft) if soft > 0 else mask


def _soften(mask: np.ndarray, soft: float) -> np.ndarray:
    kernel = 2 * round(1.7 * soft) + 1
    return cv2.blur(mask, (kernel, kernel))


def wash(canvas: np.ndarray, points: np.ndarray, colour: Colour, opacity: float, soft: float = 0.0) -> None:
    """Fills a polygon with a see-through colour; `soft` is the blur of its edge in pixels."""
    got = window(canvas, points, 2 + 2 * soft)
    if got is None:
        return
    part, origin = got
    if soft > 0.3:
        blend(part, flat(part, colour), polygon_mask(part, points - origin, soft), opacity)
        return
    over = part.copy()
    fill(over, points - origin, colour)
    cv2.addWeighted(over, opacity, part, 1 - opacity, 0, part)


def stroke(
    canvas: np.ndarray, points: np.ndarray, colour: Colour, width: float, opacity: float, soft: float = 0.0
) -> None:
    """Draws a line (N, 2), or lines (L, N, 2); a line thinner than a pixel is fainter instead."""
    got = window(canvas, points.reshape(-1, 2), 2 + width + soft)
    if got is None:
        return
    part, origin = got
    lines = list(_fixed(points - origin).reshape(-1, *points.shape[-2:]))
    thickness, opacity = max(1, round(width)), opacity * min(1.0, width)
    if soft > 0.3:
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.polylines(mask, lines, False, 255, thickness, cv2.LINE_AA, _SHIFT)
        blend(part, flat(part, colour), _soften(mask, soft), opacity)
        return
    over = part.copy()
    cv2.polylines(over, lines, False, _value(colour), thickness, cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(over, opacity, part, 1 - opacity, 0, part)


def ellipse(centre: np.ndarray, x_axis: np.ndarray, y_axis: np.ndarray, count: int = 16) -> np.ndarray:
    """The polygon (count, 2) of an ellipse given by its half axes (2,)."""
    return centre + _circle(count) @ np.stack([x_axis, y_axis])


def cut(bank: np.ndarray, height: int, width: int, y: int = 0, x: int = 0) -> np.ndarray:
    """A piece of a texture, from (y, x) where it is large enough, else the whole stretched."""
    piece = bank[y : y + height, x : x + width]
    return piece if piece.shape[:2] == (height, width) else cv2.resize(bank, (width, height))


@cache
def _circle(count: int) -> np.ndarray:
    t = np.arange(count) * (2 * np.pi / count)
    return np.column_stack([np.cos(t), np.sin(t)]).astype(np.float32)


def pick(canvas: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The colour (3,) float32 at a point, clamped into the picture."""
    height, width = canvas.shape[:2]
    x, y = int(np.clip(at[0], 0, width - 1)), int(np.clip(at[1], 0, height - 1))
    return canvas[y, x].astype(np.float32)


def paint_eye(
    canvas: np.ndarray,
    lids: np.ndarray,
    iris: np.ndarray,
    axes: np.ndarray,
    outer: int,
    style: "EyeStyle",
    skin: np.ndarray,
) -> None:
    """Draws an eye.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        lids: (6, 2) the eye's points in iBUG order: the first four are the upper lid, corner to corner.
        iris: (2,) the iris's centre.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        outer: the outer corner's place on the upper lid, 0 (viewer's left) or -1.
        style: looks common to both eyes.
        skin: (3,) the colour of the skin round it.
    """
    upper, lower = spline(lids[:4], 5), spline(lids[[3, 4, 5, 0]], 5)
    unit = float(np.hypot(*axes[1]))
    up = -axes[1]
    got = window(canvas, np.vstack([upper, lower]), 3 + unit)
    if got is None:
        return
    part, origin = got
    light = float(skin.mean() / 190)
    inner = flat(part, style.sclera * min(1.0, 0.42 + 0.6 * light))
    centre = iris - origin
    x_axis, y_axis = axes * style.iris_radius
    fill(inner, ellipse(centre, x_axis, y_axis), style.iris * (0.35 + 0.65 * light) * 0.55)
    fill(inner, ellipse(centre, x_axis * 0.8, y_axis * 0.8), style.iris * (0.35 + 0.65 * light))
    fill(inner, ellipse(centre, x_axis * style.pupil, y_axis * style.pupil, 10), style.pupil_colour)
    # The upper lid shadows the ball.
    stroke(inner, upper - origin, style.sclera * 0.2, 2.6 * unit, 0.55)
    for spot, radius in style.highlights:
        at = centre + spot @ axes
        fill(inner, ellipse(at, axes[0] * radius, axes[1] * radius, 8), (250, 250, 250))
    blend(part, inner, polygon_mask(part, np.vstack([upper, lower[1:-1]]) - origin))
    # Beyond the outer corner, lashes and the hooded lid run on.
    tail = upper[outer] + (axes[0] * (1 if outer else -1) + axes[1] * 0.35) * style.tail
    lash = np.vstack([upper, tail]) if outer else np.vstack([tail, upper])
    stroke(canvas, lash.astype(np.float32), style.lash, style.lash_width * unit, style.lash_opacity)
    stroke(canvas, lower, skin * 0.5, 0.9 * unit, style.lash_opacity * 0.55)
    if style.crease_opacity > 0.1:
        crease = upper + up * (style.crease * (0.35 + 0.65 * _ARCH))
        stroke(canvas, crease, skin * 0.5, 1.4 * unit, style.crease_opacity, 0.5 * unit)
    if style.bag_opacity > 0.05:
        stroke(canvas, lower - up * (style.bag * _ARCH), skin * 0.55, 2 * unit, style.bag_opacity, unit)


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
        self.highlights = [
            (np.array([d.normal(0, 2), d.normal(-1.2, 1.5)], np.float32), d.uniform(0.7, 1.6)) for _ in range(spots)
        ]
        made_up = d.uniform(0, 1) ** 2
        self.lash = np.array([34, 26, 24], np.float32) * d.uniform(0.3, 1.5)
        self.lash_width, self.lash_opacity = 1.2 + 1.5 * made_up, d.uniform(0.45, 0.75) + 0.25 * made_up
        self.tail = d.uniform(0, 6) * d.uniform(0, 1)
        self.crease, self.crease_opacity = d.uniform(1.5, 5), d.uniform(0, 0.75)
        self.bag, self.bag_opacity = d.uniform(2.5, 6.5), d.uniform(0, 0.4) * d.chance(0.7)


def paint_brow(
    canvas: np.ndarray,
    line: np.ndarray,
    axes: np.ndarray,
    thickness: float,
    colour: Colour,
    opacity: float,
    grain: np.ndarray,
) -> None:
    """Draws a brow under its five points (inner end first), which lie near its upper edge."""
    ribbon = spline(line, 4)
    profile = np.interp(np.linspace(0, 4, len(ribbon)), [0, 0.6, 2, 3.2, 4], [0.7, 1, 0.9, 0.62, 0.2])[:, None]
    down = axes[1] * thickness * profile
    above = np.linspace(0.04, 0.35, len(ribbon))[:, None]
    polygon = np.vstack([ribbon - above * down, (ribbon + (1 - above) * down)[::-1]])
    unit = float(np.hypot(*axes[1]))
    got = window(canvas, polygon, 3)
    if got is None:
        return
    part, origin = got
    mask = polygon_mask(part, polygon - origin, 0.7 * unit)
    rough = cv2.multiply(mask, cut(grain, *mask.shape), scale=1 / 160)
    blend(part, flat(part, colour), rough, opacity)


def paint_nose(
    canvas: np.ndarray, base: np.ndarray, axes: np.ndarray, pitch: float, skin: np.ndarray, d: Draws
) -> None:
    """Draws nostrils and the folds of the wings.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        base: (5, 2) the nose base's points, left to right.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        pitch: radians; the nostrils show most when the face looks up.
        skin: (3,) the colour of the nose.
        d: the face's random numbers.
    """
    dark, wide, fold, line = d.uniform(0.35, 0.9), d.uniform(2.6, 4.2), d.uniform(0.1, 0.5), d.uniform(0.1, 0.45)
    tall = 1.9 * d.uniform(0.7, 1.4) * min(1.8, max(0.25, 1 - 1.6 * pitch))
    unit = float(np.hypot(*axes[1]))
    curls = []
    for side, wing, half in ((-1, base[0], base[1]), (1, base[4], base[3])):
        hole = half + (side * 1.0, -2.6) @ axes
        wash(canvas, ellipse(hole, (wide, -side * 0.8) @ axes, axes[1] * tall, 12), skin * 0.18, dark, 0.5 * unit)
        curls.append(wing + (_WING * (side, 1)) @ axes)
    stroke(canvas, spline_matrix(4, 4) @ np.stack(curls), skin * 0.45, 1.5 * unit, fold, unit)
    stroke(canvas, spline(base, 4), skin * 0.45, 2 * unit, line, unit)


def paint_folds(canvas: np.ndarray, shape: Shape, view: View, skin: np.ndarray, d: Draws) -> None:
    """Draws nasolabial folds, forehead and frown lines, freckles and blotches."""
    p, age = shape.points, d.uniform(0, 1) ** 2 * (1 - shape.child)
    depth = min(0.75, 0.12 * d.uniform(0, 1) + 0.3 * age + 0.3 * shape.smile)
    groups: list[tuple[list[np.ndarray], float]] = [([], depth), ([], 0.35 * age), ([], 0.15 + 0.4 * age), ([], 0.4)]
    nasal, crow, brow, frown = (lines for lines, _ in groups)
    for side, wing, corner in ((-1, p[31], p[48]), (1, p[35], p[54])) if depth > 0.08 else ():
        start, end = wing + (side * 3, -5), corner + (side * (6 + 2 * shape.smile), 2)
        middle = (start + end) / 2 + (side * (3 + 3 * shape.smile), -2)
        nasal.append(np.stack([start, middle, end]))
        if age > 0.3:
            eye = p[36] if side < 0 else p[45]
            for k in (-1.0, 0.2, 1.3):
                crow.append(np.stack([eye + (side * x, y * k) for x, y in ((4, 2), (8, 3.5), (12, 6))]))
    for k in range(d.pick((0.6, 0.1, 0.15, 0.15))):
        y = p[19:25, 1].mean() - 12 - 8 * k
        brow.append(np.array([(-36, y + 2), (0, y - 1), (36, y + 2)], np.float32))
    if d.chance(0.15):
        frown += [np.array([(s, -24), (s * 0.9, -16), (s * 1.3, -9)], np.float32) for s in (-5, 5)]
    controls = np.array([line for lines, _ in groups for line in lines], np.float32).reshape(-1, 2)
    curves = spline_matrix(3, 4) @ view.project(shape.lift(controls))[:, :2].reshape(-1, 3, 2)
    start = 0
    for lines, opacity in groups:
        if lines:
            stroke(canvas, curves[start : start + len(lines)], skin * 0.45, 2.5 * view.scale, opacity, 1.5 * view.scale)
        start += len(lines)
    if d.chance(0.25):
        count = int(d.uniform(3, 20))
        spots = np.column_stack([d.normals(count, 26), d.normals(count, 22) + 25])
        at = view.project(shape.lift(spots.astype(np.float32)))[:, None, :2]
        stroke(canvas, np.concatenate([at, at + 0.1], 1), skin * 0.55, 2 * view.scale, d.uniform(0.15, 0.6))


def paint_mouth(
    canvas: np.ndarray, lips: np.ndarray, axes: np.ndarray, shape: Shape, skin: np.ndarray, d: Draws
) -> None:
    """Draws lips, teeth, tongue and the gap.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        lips: (20, 2) the mouth's points in iBUG order.
        axes: (2, 2) projections of one millimetre along the head's x and y.
        shape: the face.
        skin: (3,) the colour round the mouth.
        d: the face's random numbers.
    """
    lipstick = d.uniform(0.5, 1) if d.chance(0.25) else 0.0
    bare = skin * np.array([0.9, 0.68, 0.68], np.float32) * d.uniform(0.75, 1.05)
    paint_colour = np.array([d.uniform(120, 215), d.uniform(20, 90), d.uniform(40, 100)], np.float32)
    lip = bare * (1 - lipstick) + lipstick * paint_colour * (0.25 + skin.mean() / 200)
    opacity, edge = d.uniform(0.45, 0.95), d.uniform(0, 0.3)
    contrast = d.uniform(0.7, 0.92)
    gloss, teeth, upper_reach = d.uniform(0, 0.4) * d.chance(0.6), d.uniform(0.6, 1.0), d.uniform(5, 11)
    lower_teeth, tongue, dark = d.chance(0.3), d.chance(0.4), d.uniform(12, 60)
    crease, beyond = d.uniform(0.35, 0.9), axes[0] * d.uniform(0, 4)
    has_teeth = not d.chance(0.12 + 0.5 * shape.child)

    unit = float(np.hypot(*axes[1]))
    outer_top, outer_low = spline(lips[:7], 4), spline(lips[[6, 7, 8, 9, 10, 11, 0]], 4)
    inner_top, inner_low = spline(lips[12:17], 4), spline(lips[[16, 17, 18, 19, 12]], 4)
    soft = 0.3 * unit
    wash(canvas, np.vstack([outer_top, inner_top[::-1]]), lip * contrast, opacity, soft)
    wash(canvas, np.vstack([outer_low, inner_low[::-1]]), lip, opacity, soft)
    stroke(canvas, outer_low, skin * 0.5, unit, edge)
    stroke(canvas, outer_top, skin * 0.55, unit, edge * 0.6)
    if gloss:
        middle = (lips[9] + lips[18]) / 2
        wash(canvas, ellipse(middle, axes[0] * 7, axes[1] * 1.3), (250, 240, 235), gloss, unit)
    gap = float(np.hypot(*(lips[14] - lips[18]))) / unit
    if gap > 0.9:
        got = window(canvas, np.vstack([inner_top, inner_low]), 2)
        if got is None:
            return
        part, origin = got
        light = 0.3 + 0.7 * float(skin.mean()) / 200
        inside = flat(part, (dark, dark * 0.45, dark * 0.4))
        down = axes[1]
        if tongue and gap > 7:
            at = lips[18] - down * gap * 0.2 - origin
            fill(inside, ellipse(at, axes[0] * 14, down * gap * 0.35), np.array([165, 80, 80]) * light)
        white = np.array([232, 224, 208], np.float32) * teeth * light
        if has_teeth:
            drop = 0.55 + 0.45 * np.sin(np.linspace(0, np.pi, len(inner_top)))[:, None]
            ridge = inner_top + down * upper_reach * drop
            fill(inside, np.vstack([inner_top - down * 2, ridge[::-1]]) - origin, white)
            if lower_teeth:
                ridge = inner_low - down * min(5.0, 0.3 * gap)
                fill(inside, np.vstack([inner_low + down * 2, ridge[::-1]]) - origin, white * 0.85)
            roots = lips[14] - origin + np.linspace(-17, 17, 8)[:, None] * axes[0]
            stroke(inside, np.stack([roots, roots + down * upper_reach], 1), white * 0.5, 0.45 * unit, 0.5)
            for corner in (lips[12], lips[16]):  # lie deep
                wash(inside, ellipse(corner - origin, axes[0] * 4, down * 6), (20, 10, 8), 0.6)
        blend(part, inside, polygon_mask(part, np.vstack([inner_top, inner_low[1:-1]]) - origin))
        crease *= 0.45
    seam = (inner_top + inner_low[::-1]) / 2 if gap <= 0.9 else inner_top
    # The crease runs on beyond the corners.
    seam = np.vstack([lips[0] - beyond, lips[0], seam, lips[6], lips[6] + beyond])
    stroke(canvas, seam, skin * 0.2, 1.3 * unit, crease)
