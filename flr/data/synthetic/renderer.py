"""Draws one face: the order of the painting steps, and the interface."""

from dataclasses import dataclass

import cv2
import numpy as np

from flr.data.synthetic import paint, scene, skin
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.photo import develop
from flr.data.synthetic.shape import RIM, Shape, bells, sample_shape
from flr.data.synthetic.view import View, place, sample_view

# How far, in millimetres, the surface must lie in front of a point to hide it: more than the coarse grid's error.
_HIDING = 9.0


@dataclass(frozen=True)
class Face:
    """A rendered face.

    Attributes:
        image: (H, W) uint8 grey or (H, W, 3) uint8 RGB.
        points: (68, 2) float32, pixels, iBUG order; an integer coordinate is a pixel's centre.
        visible: (68,) bool, False where the face itself or something before it hides the point.
    """

    image: np.ndarray
    points: np.ndarray
    visible: np.ndarray


def render(seed: int, index: int, size: int = 128, channels: int = 1, face: float = 0.8) -> Face:
    """Draws face `index` of the series `seed`.

    The same (seed, index) shows the same face at any size.

    Args:
        seed: names the series.
        index: the face in it.
        size: side of the square picture, pixels.
        channels: 1 grey, 3 RGB.
        face: largest side of the points' tight box as a share of the picture, about.
    """
    d = Draws(seed, index)
    shape, view = sample_shape(d), sample_view(d)
    grid = shape.surface()
    points = place(view, shape, grid, size, face, d)
    flat = points[:68, :2].copy()
    box = np.stack([flat.min(0), flat.max(0)])
    span = float((box[1] - box[0]).max())

    light, tone = skin.sample_light(d), skin.sample_tone(d)
    hair, beard = scene.Hair(d, shape.child), scene.Beard(d, shape.child)
    brightness = float((light.ambient + 0.6 * light.colour).mean())
    lit = tone * brightness
    canvas = scene.background(size, d)
    cover = np.zeros((size, size), np.uint8)
    scene.paint_hair_back(canvas, hair, shape, view, brightness, d)
    scene.paint_trunk(canvas, shape, view, lit, d)
    stand = d.uniform()
    for side in (-1, 1) if hair.kind < 3 else ():
        scene.paint_ear(canvas, shape, view, lit * 0.9, side, stand)
    head = _paint_head(canvas, grid, shape, view, light, tone, hair, beard, d)
    near_ear = -1 if view.yaw > 0 else 1
    if abs(view.yaw) > 0.12 and hair.kind < 3:
        scene.paint_ear(canvas, shape, view, lit, near_ear, stand)
    _paint_features(canvas, points, head, shape, view, beard, hair.colour * brightness, d)
    scene.paint_glasses(canvas, cover, shape, view, d)
    scene.paint_hair_front(canvas, cover, hair, shape, view, brightness, d)
    scene.paint_occluder(canvas, cover, lit, box, d)
    return Face(develop(canvas, span, channels, d), flat, _visible(points[:68], head, cover))


def _paint_head(
    canvas: np.ndarray,
    grid: np.ndarray,
    shape: Shape,
    view: View,
    light: skin.Light,
    tone: np.ndarray,
    hair: scene.Hair,
    beard: scene.Beard,
    d: Draws,
) -> skin.Head:
    """Colours the head's surface with skin, blush, beard and hair, lights it and splats it."""
    on_hair, on_beard = hair.on(shape, grid), beard.on(shape, grid)
    albedo = np.broadcast_to(tone, grid.shape).copy()
    blush = d.uniform(0, 0.22)
    red = np.array([(-38, 32, 18, 18, 1), (38, 32, 18, 18, 1), (0, 38, 14, 14, 1)], np.float32)
    albedo[: RIM + 1, :, 1:] *= 1 - 0.5 * blush * bells(grid[: RIM + 1, :, :2], red)[..., None]
    locks = hair.colours(grid.shape[1])
    albedo += on_beard[..., None] * (locks * 0.9 + 6 - albedo)
    albedo += on_hair[..., None] * (locks - albedo)
    colours, facing = skin.light_up(albedo, np.maximum(on_hair, 0.6 * on_beard), grid, shape, view, light, d)
    raised = grid.copy()
    away = grid - np.array([0, 0, -80], np.float32)
    raised += (on_hair * hair.thickness)[..., None] * away / (np.sqrt((away * away).sum(-1, keepdims=True)) + 1)
    return skin.splat(canvas, view.project(raised), colours, facing, 150 * view.scale)


def _paint_features(
    canvas: np.ndarray,
    points: np.ndarray,
    head: skin.Head,
    shape: Shape,
    view: View,
    beard: scene.Beard,
    hair: np.ndarray,
    d: Draws,
) -> None:
    """Draws eyes, brows, nose and mouth where nothing of the face lies before them."""
    flat = points[:, :2]
    pixels = view.rotation[:2, :2].T * view.scale  # rows: one millimetre along the head's x, y
    bare = canvas.copy()
    style = paint.EyeStyle(d, shape.child)
    thickness = d.uniform(4, 9.5) * (1 - 0.25 * shape.child)
    opacity, own = d.uniform(0.35, 0.95) * (1 - 0.4 * shape.child), d.uniform(0.55, 1.0)
    x, y = int(d.uniform(0, 256)), int(d.uniform(0, 256))
    grain = scene.grain()[y : y + 256, x : x + 256]
    for eye, brow, iris in ((slice(36, 42), slice(17, 22), flat[68]), (slice(42, 48), slice(22, 27), flat[69])):
        lids = flat[eye]
        low = lids.mean(0) + pixels[1] * 9
        around = paint.pick(bare, low)
        paint.paint_eye(canvas, lids, iris, pixels, 0 if eye.start == 36 else -1, style, around)
        line = flat[brow] if eye.start == 42 else flat[brow][::-1]
        colour = np.minimum(hair, around) * own * 0.8
        paint.paint_brow(canvas, line, pixels, thickness, colour, opacity, grain)
        if abs(view.yaw) > 0.25:  # else nothing lies before an eye
            _restore(canvas, bare, head, np.vstack([lids, line]), float(points[eye, 2].mean()) + 10)
    nose = paint.pick(bare, flat[28:31].mean(0))
    paint.paint_nose(canvas, flat[31:36], pixels, view.pitch, nose, d)
    cheek = (paint.pick(bare, (flat[48] + flat[31]) / 2) + paint.pick(bare, (flat[54] + flat[35]) / 2)) / 2
    paint.paint_folds(canvas, shape, view, cheek, d)
    around = (paint.pick(bare, (flat[57] + flat[8]) / 2) + cheek) / 2
    paint.paint_mouth(canvas, flat[48:68], pixels, shape, around, d)
    beard.paint_moustache(canvas, flat, pixels, hair * 0.8)
    _restore(canvas, bare, head, flat[27:68], 1e5)


def _restore(canvas: np.ndarray, bare: np.ndarray, head: skin.Head, region: np.ndarray, front: float) -> None:
    """Takes back what was painted off the head, or where the head lies nearer to the viewer than `front`."""
    got = paint.window(canvas, region, 6)
    if got is None:
        return
    part, (x, y) = got[0], got[1].astype(int)
    box = np.s_[y : y + part.shape[0], x : x + part.shape[1]]
    hidden = (head.mask[box] == 0) | (head.depth[box] > front)
    part[hidden] = bare[box][hidden]


def _visible(points: np.ndarray, head: skin.Head, cover: np.ndarray) -> np.ndarray:
    """(68,) bool: inside the picture, not covered, and (off the contour) not behind the head's own surface."""
    size = len(cover)
    pixel = np.rint(points[:, :2]).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(1)
    x, y = np.clip(pixel, 0, size - 1).T
    nearest = cv2.erode(head.depth, np.ones((3, 3), np.uint8))[y, x]
    hidden = (nearest > points[:, 2] + _HIDING) & (np.arange(68) > 16)
    return inside & (cover[y, x] == 0) & ~hidden
