"""Draws one face: the order of the painting steps, and the interface."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from flr.data.synthetic import paint, scene, skin
from flr.data.synthetic.draws import Draws
from flr.data.synthetic.mouth import paint_mouth
from flr.data.synthetic.photo import develop
from flr.data.synthetic.shape import RIM, Shape, bell_weights, bells, habits, sample_shape
from flr.data.synthetic.view import View, place, sample_view

# The identity of what is rendered, a part of fingerprints. Raise it with every change of a pixel or a point; a test holds
# stored faces against it.
RENDERER_VERSION = 2
# How far, in millimetres, the surface must lie in front of a point to hide it: more than the coarse grid's error.
_HIDING = 9.0
_INNER = np.arange(68) > 16
_EYES = slice(36, 42), slice(42, 48)
_BROWS = [21, 20, 19, 18, 17], [22, 23, 24, 25, 26]
_RED = np.array([(-38, 32, 18, 18, 1), (38, 32, 18, 18, 1), (0, 38, 14, 14, 1)], np.float32)  # bells of a blush
_SKULL = np.array([0, 0, -80], np.float32)[:, None, None]  # hair is pushed away from here
_THREE = np.ones((3, 3), np.uint8)


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


def render(
    seed: int, index: int, size: int = 128, channels: int = 1, face: float = 0.8, even_tones: bool = False
) -> Face:
    """Draws face `index` of the series `seed`.

    The same (seed, index) shows the same face at any size.

    Args:
        seed: names the series.
        index: the face in it.
        size: side of the square image, pixels.
        channels: 1 grey, 3 RGB.
        face: largest side of the points' tight box as a share of the image, about.
        even_tones: whether dark skins are as frequent as light ones. It changes the skin's colour alone.
    """
    return photograph(Person(Draws(seed, index), size, face, even_tones), channels)


def photograph(person: "Person", channels: int = 1) -> Face:
    """Draw a person, whose looks may have been changed, before a background; 1 channel is grey, 3 are RGB."""
    d, size = person.d, person.size
    canvas = scene.background(size, channels == 1, d)
    head, cover = person.paint(canvas)
    points, view = person.points[:68], person.view
    labels = points[:, :2] + habits() @ (view.rotation[:2, :2].T * view.scale)
    return Face(develop(canvas, person.span, channels, d), labels, _visible(points, head, cover))


class Person:
    """A head with hair, neck and clothes, drawn from `d` and framed in a square image.

    Args:
        d: The face's random numbers.
        size: Side of the image that the head is framed in, pixels.
        face: See `render`.
        even_tones: See `render`.
    """

    def __init__(self, d: Draws, size: int, face: float, even_tones: bool = False) -> None:
        self.d, self.size = d, size
        self.shape, self.view = sample_shape(d), sample_view(d)
        self.grid, self.terms = self.shape.surface()
        # (70, 3): the points and the irises, pixels, and their depth.
        self.points = place(self.view, self.shape, self.grid, size, face, d)
        self.light, self.tone = skin.sample_light(d), skin.sample_tone(d, even_tones)
        self.hair, self.beard = scene.Hair(d, self.shape.child), scene.Beard(d, self.shape.child)

    @property
    def box(self) -> np.ndarray:
        """(2, 2) the points' tight box: left top, right bottom."""
        return np.array([self.points[:68, :2].min(0), self.points[:68, :2].max(0)])

    @property
    def span(self) -> float:
        """Larger side of the tight box, pixels."""
        return float(np.ptp(self.box, 0).max())

    def paint(
        self, canvas: np.ndarray, clothe: Callable[[np.ndarray, np.ndarray], None] | None = None
    ) -> tuple[skin.Head, np.ndarray]:
        """Draw the person into a canvas (H, W) or (H, W, 3), uint8, in place.

        Args:
            canvas: The image.
            clothe: Called with the canvas and a copy from before the trunk was drawn, to change the clothes.

        Returns:
            The head's surface; (H, W) uint8, not 0 where something covers the face.
        """
        shape, view, d, hair, box = self.shape, self.view, self.d, self.hair, self.box
        brightness = float((self.light.ambient + 0.6 * self.light.colour).sum()) / 3
        lit = self.tone * brightness
        cover = np.zeros(canvas.shape[:2], np.uint8)
        scene.paint_hair_back(canvas, hair, shape, view, brightness, d)
        before = canvas.copy() if clothe else canvas
        scene.paint_trunk(canvas, shape, view, lit, d)
        if clothe:
            clothe(canvas, before)
        stand = d.uniform()
        if hair.kind < 3:
            scene.paint_ears(canvas, shape, view, lit * 0.9, (-1, 1), stand)
        head = _paint_head(canvas, self.grid, self.terms, shape, view, self.light, self.tone, hair, self.beard, d)
        if abs(view.yaw) > 0.12 and hair.kind < 3:
            scene.paint_ears(canvas, shape, view, lit, (-1 if view.yaw > 0 else 1,), stand)
        _paint_features(canvas, self.points, head, shape, view, self.beard, hair.colour * brightness, d)
        scene.paint_glasses(canvas, cover, shape, view, d)
        scene.paint_hair_front(canvas, cover, hair, shape, view, brightness, d)
        scene.paint_occluder(canvas, cover, lit, box, d)
        return head, cover


def _paint_head(
    canvas: np.ndarray,
    grid: np.ndarray,
    terms: np.ndarray,
    shape: Shape,
    view: View,
    light: skin.Light,
    tone: np.ndarray,
    hair: scene.Hair,
    beard: scene.Beard,
    d: Draws,
) -> skin.Head:
    """Colours the head's surface with skin, blush, beard and hair, lights it and splats it."""
    albedo = np.empty_like(grid)
    albedo[:] = tone[:, None, None]
    local = view.rotation.T @ light.direction
    blush = d.uniform(0, 0.22)
    locks = hair.colours(grid.shape[2])[:, None]
    dark = skin.shades(shape, light, local, d)
    # Two sums of bells: how light and shadow change the skin, and where it is red.
    heights = np.zeros((2, len(dark) + len(_RED)), np.float32)
    heights[0, : len(dark)], heights[1, len(dark) :] = dark[:, 4], -0.5 * blush
    factors = 1 + bells(terms, bell_weights(np.concatenate([dark, _RED])), heights).reshape(2, RIM + 1, -1)
    albedo[1:, : RIM + 1] *= factors[1]
    relief: np.ndarray = np.ones(grid.shape[1:], np.float32)
    relief[: RIM + 1] = factors[0]
    matte, raised = np.zeros_like(relief), grid
    if beard.kind:
        on_beard = beard.on(shape, grid)
        albedo += on_beard * (locks * 0.9 + 6 - albedo)
        matte = 0.6 * on_beard
    if hair.kind:
        on_hair = hair.on(shape, grid)
        albedo += on_hair * (locks - albedo)
        matte = np.maximum(on_hair, matte)
        away = grid - _SKULL
        raised = grid + on_hair * hair.thickness / (np.sqrt((away * away).sum(0)) + 1) * away
    relief += (1 - relief) * matte
    # Under the jaw, little light arrives.
    relief[RIM + 1 :] -= 0.35 * (grid[1, RIM] > 60)
    colours, facing = skin.light_up(albedo, matte, grid, relief, view, light)
    return skin.splat(canvas, view.project_grid(raised), colours, facing, 150 * view.scale)


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
    creases = paint.Creases(canvas)
    lows = flat[[41, 40, 46, 47]].reshape(2, 2, 2).sum(1) / 2 + pixels[1] * 5
    around = np.stack([paint.pick(bare, low) for low in lows])
    paint.paint_eyes(canvas, flat, pixels, style, around, creases)
    brows = flat[_BROWS, :]
    paint.paint_brows(canvas, brows, pixels, thickness, np.minimum(hair, around) * (own * 0.8), opacity, grain)
    if abs(view.yaw) > 0.25:  # else nothing lies before an eye
        creases.lay(canvas, view.scale)
        creases = paint.Creases(canvas)
        for eye, brow in zip(_EYES, brows, strict=True):
            _restore(canvas, bare, head, np.concatenate([flat[eye], brow]), float(points[eye, 2].sum()) / 6 + 10)
    paint.paint_nose(flat[31:36], pixels, view.pitch, creases, d)
    cheek = (paint.pick(bare, (flat[48] + flat[31]) / 2) + paint.pick(bare, (flat[54] + flat[35]) / 2)) / 2
    paint.paint_folds(canvas, shape, view, cheek, creases, d)
    around = (paint.pick(bare, (flat[57] + flat[8]) / 2) + cheek) / 2
    paint_mouth(canvas, flat[48:68], pixels, shape, around, creases, d)
    creases.lay(canvas, view.scale)
    beard.paint_moustache(canvas, flat, pixels, hair * 0.8)
    _restore(canvas, bare, head, flat[27:68], 1e5)


def _restore(canvas: np.ndarray, bare: np.ndarray, head: skin.Head, region: np.ndarray, front: float) -> None:
    """Takes back what was painted off the head, or where the head lies nearer to the viewer than `front`."""
    got = paint.window(canvas, region, 6)
    if got is None:
        return
    part, (x, y) = got[0], got[1].astype(int)
    box = np.s_[y : y + part.shape[0], x : x + part.shape[1]]
    hidden = (head.mask[box] == 0) | (head.level[box] > (front - head.low) / head.step)
    cv2.copyTo(bare[box], hidden.view(np.uint8), part)


def _visible(points: np.ndarray, head: skin.Head, cover: np.ndarray) -> np.ndarray:
    """(68,) bool: inside the image, not covered, and (off the contour) not behind the head's own surface."""
    size = len(cover)
    pixel = np.rint(points[:, :2]).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(1)
    x, y = np.minimum(np.maximum(pixel, 0), size - 1).T
    nearest = head.low + head.step * cv2.erode(head.level, _THREE)[y, x]
    hidden = (nearest > points[:, 2] + _HIDING) & _INNER
    return inside & (cover[y, x] == 0) & ~hidden
