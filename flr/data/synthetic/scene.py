"""What surrounds and covers the face: background, trunk, ears, hair, glasses, occluders."""

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.paint import LUMA, Ink, ellipse, fill, stroke, strokes, wash
from flr.data.synthetic.shape import RIM, Shape, clip01, spline, spline_matrix
from flr.data.synthetic.view import View

# Black, dark brown, brown, fair, blond, red, grey.
_HAIR_COLOURS = np.array(
    [(22, 18, 16), (48, 34, 26), (88, 60, 40), (150, 112, 72), (205, 172, 120), (120, 52, 26), (175, 172, 168)], np.float32
)  # fmt: skip
_BANK = 24  # random images a process makes once
_EVEN = [1] * _BANK
_LEVELS = np.arange(256, dtype=np.float32)[:, None]


@cache
def textures() -> np.ndarray:
    """(N, 256, 256, 3) uint8 backgrounds: clouds of several scales, with and without clutter."""
    rng = np.random.default_rng(68)
    bank = []
    for k in range(_BANK):
        total = np.zeros((256, 256, 3), np.float32)
        steep = rng.uniform(0.4, 1.1)
        for octave in range(1, 8):
            coarse = rng.normal(0, 1, (2**octave, 2**octave, 1)) + rng.normal(0, 0.35, (2**octave, 2**octave, 3))
            total += cv2.resize(coarse.astype(np.float32), (256, 256), interpolation=cv2.INTER_CUBIC) * 2 ** (
                -steep * octave
            )
        total = 125 + 55 * total / total.std()
        canvas = np.clip(total, 0, 255).astype(np.uint8)
        for _ in range((k % 3) * 14):
            centre, radius = rng.uniform(0, 256, 2), rng.uniform(6, 50)
            skin = rng.uniform(0.5, 1.1) * np.array([205, 155, 130])
            colour = skin if rng.random() < 0.25 else rng.uniform(0, 255, 3)
            ring = ellipse(centre, np.array([radius, 0]), np.array([0, radius * rng.uniform(0.6, 1.6)]))
            if rng.random() < 0.6:
                corners = np.sort(rng.permutation(16)[: rng.integers(3, 9)])
                ring = centre + (ring[corners] - centre) * rng.uniform(0.5, 1.4, (len(corners), 1))
            if rng.random() < 0.3:
                stroke(canvas, rng.uniform(0, 256, (2, 2)).astype(np.float32), colour, rng.uniform(1, 9), 1)
            wash(canvas, ring, colour, rng.uniform(0.4, 1), rng.uniform(0, 4))
        bank.append(canvas)
    return np.stack(bank)


@cache
def grain() -> np.ndarray:
    """(512, 512) uint8 fine noise about 128."""
    noise = np.random.default_rng(69).normal(128, 45, (512, 512))
    return np.clip(noise, 0, 255).astype(np.uint8)


@cache
def strands() -> np.ndarray:
    """(8, 512) float32 about 1: brightness of hair along the surface's columns, from fine to coarse."""
    rng = np.random.default_rng(70)
    rows = []
    for k in range(8):
        row = rng.normal(0, 1, 512).astype(np.float32)
        row = cv2.GaussianBlur(row[None], (0, 0), 0.5 + 0.35 * k)[0]
        rows.append(1 + 0.28 * row / row.std())
    return np.stack(rows)


@cache
def clouds() -> np.ndarray:
    """(N, 256, 256) uint8: one channel of the textures."""
    return np.ascontiguousarray(textures()[..., 1])


@cache
def _greys() -> np.ndarray:
    """(N, 256, 256) uint8: the textures in grey."""
    return np.stack([cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY) for texture in textures()])


def background(size: int, grey: bool, d: Draws) -> np.ndarray:
    """(size, size) or (size, size, 3) uint8."""
    bank = _greys() if grey else textures()
    tile = bank[d.pick(_EVEN)]
    side = int(256 * d.uniform(0.2, 1.0))
    x, y = int(d.uniform(0, 256 - side)), int(d.uniform(0, 256 - side))
    out = cv2.resize(tile[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_LINEAR)
    soft = d.uniform(0, 0.04) * d.chance(0.6)
    kernel = 2 * round(1.7 * soft * size) + 1
    if kernel > 1:
        out = cv2.blur(out, (kernel, kernel))
    contrast, colour = d.uniform(0.1, 1.2), d.colour(0, 255)
    ramp = d.normal(0, 45) * d.chance(0.5)
    table = _LEVELS * contrast + (colour - 128 * contrast)
    table = np.minimum(np.maximum(table, 0), 255)
    out = cv2.LUT(out, (table @ LUMA if grey else table).astype(np.uint8)[None])
    if ramp:
        shade = np.linspace(128 - ramp, 128 + ramp, size).astype(np.uint8)
        out = cv2.addWeighted(out, 1, np.repeat(shade, out[0].size).reshape(out.shape), 1, -128)
    return out


def paint_trunk(canvas: np.ndarray, shape: Shape, view: View, skin: np.ndarray, d: Draws) -> None:
    """Draws neck and clothes."""
    wide, root, feet = d.normal(56, 6), d.normal(165, 12), d.normal(63, 7)
    chin_x, chin_y = shape.points[8].tolist()
    top = [(-wide, 62, -100), (wide, 62, -100), (chin_x, chin_y + 6, -45)]
    flat = view.project(np.array(top, np.float32))[:, :2]
    jaw, chin = flat[:2], flat[2]
    shade, slope, collar = d.uniform(0.45, 0.95), d.uniform(10, 55), d.uniform(-12, 45)
    half = (62, root - 8, -95), (120, root + slope * 0.4, -110), (230, root + slope + 30, -110), (230, 600, -110)
    left = [(-x, y, z) for x, y, z in reversed(half)]
    body = view.project_body(
        np.array([(-feet, root, -90), (feet, root, -90), *left, (0, root + collar, -60), *half], np.float32)
    )[:, :2]
    low, edge = body[:2], body[2:]
    side = np.stack([jaw, (jaw + low) / 2, low, low + (0, 60 * view.scale)])  # down either side of the neck
    fill(canvas, np.concatenate([side[:, 0], side[::-1, 1]]), skin * min(1.0, shade * 1.15))
    across, down = view.roll.T * view.scale
    wash(canvas, ellipse(chin, across * 55, down * 28), skin * 0.35, 0.6, 8 * view.scale)
    fill(canvas, edge, d.colour(5, 250, 50))
    if d.chance(0.5):
        stroke(canvas, spline(edge[3:6], 5), d.colour(), d.uniform(2, 9) * view.scale, d.uniform(0.3, 1))


_EAR_X = np.array([0, 12, 24, 25, 20, 14, 7, 1, 0], np.float32)[:, None]
_EAR_Y = np.array([-16, -29, -25, -10, 4, 14, 26, 27, 16], np.float32)[:, None] * np.array([0, 1, 0.12], np.float32)


def paint_ears(
    canvas: np.ndarray, shape: Shape, view: View, skin: np.ndarray, sides: Sequence[int], stand: float
) -> None:
    """Draws the ears on `sides` (-1 viewer's left); `stand` is how far they stand off, 0 to 1."""
    rims = []
    for side in sides:
        x, y = shape.points[16 if side > 0 else 0].tolist()
        out = np.array([side * (0.35 + 0.5 * stand), 0, -0.8 + 0.3 * stand], np.float32)
        rims.append(_EAR_Y + _EAR_X * out + np.array([x - side * 3, y + 6, -90], np.float32))
    flat = view.project(np.concatenate(rims))[:, :2].reshape(-1, len(_EAR_X), 2)
    flat = spline_matrix(len(_EAR_X), 3, closed=True) @ flat
    fill(canvas, flat, skin * 0.92)
    wash(canvas, flat * 0.55 + flat.mean(1, keepdims=True) * 0.45, skin * 0.5, 0.6, 1.5 * view.scale)


class Hair:
    """Style and colour of the hair, as far as several painting steps share them."""

    def __init__(self, d: Draws, child: float) -> None:
        self.kind = d.pick((0.07, 0.4, 0.18, 0.35))  # bald, short, medium, long
        self.colour = _HAIR_COLOURS[d.pick((0.28, 0.2, 0.17, 0.12, 0.08, 0.05, 0.1))] * d.uniform(0.75, 1.25)
        self.line = d.normal(-68, 6) - 8 * child * d.uniform(0, 1)
        self.recession = d.uniform(-1, 1)
        self.thickness = (0.0, d.uniform(2, 16), d.uniform(8, 26), d.uniform(4, 22))[self.kind]
        self.sideburn = d.uniform(-10, 28)
        self.fringe = d.uniform(-46, -16) if self.kind and d.chance(0.27) else 0.0
        self.curl = d.uniform(0, 1) ** 2
        self.strand, self.phase = d.pick([1] * 8), int(d.uniform(0, 380))
        self.hat = d.chance(0.07)

    def on(self, shape: Shape, grid: np.ndarray) -> np.ndarray:
        """How much hair covers the head's surface, the grid (3, A, C + 1): (A, C + 1) in 0..1."""
        x, y, width = grid[0], grid[1], float(shape.points[16, 0])
        across = np.abs(x) / width
        waves = np.cos(across * 9) * (across < 0.7)
        line = self.line + (14 - 10 * self.recession) * across * across + 10 * self.recession * waves
        line += clip01((across - 0.8) / 0.12) * ((self.sideburn - self.line) * 0.75)
        cover = clip01((line - y) / 7 + 0.5)
        cover[RIM + 2 :][y[RIM + 2 :] < 45] = 1
        return cover

    def colours(self, columns: int) -> np.ndarray:
        """(3, columns) RGB of the strands along the surface's columns."""
        return strands()[self.strand, self.phase : self.phase + columns] * self.colour[:, None]

    def shape_back(self, shape: Shape, d: Draws) -> np.ndarray:
        """(N, 3) outline of the mass of hair behind the head, head millimetres."""
        width, crown = shape.points[16, 0], shape.outline[:, 1].min()
        top = crown - self.thickness * 1.1
        side = width + 6 + self.thickness
        low = (0.0, 20.0, d.uniform(40, 95), d.uniform(110, 230))[self.kind]
        flare = side + d.uniform(-5, 30) * (self.kind > 1)
        x = (0, side * 0.6, side * 0.92, side, (side + flare) / 2, flare, flare * 0.5)
        y = (top, top + 10, top + 40, -30, 0.4 * low, low, low + 12)
        right = np.column_stack([x, y])
        ring = np.vstack([right, right[::-1] * (-1, 1)])
        ring += d.normals(len(ring) * 2, 2 + 9 * self.curl).reshape(-1, 2)
        return np.column_stack([ring, np.full(len(ring), -105)]).astype(np.float32)


def paint_hair_back(canvas: np.ndarray, hair: Hair, shape: Shape, view: View, light: float, d: Draws) -> None:
    """Draws the hair behind head and neck."""
    ring = view.project(hair.shape_back(shape, d))[:, :2]
    if hair.kind == 0:
        return
    fill(canvas, spline(ring, 4, closed=True), hair.colour * light * 0.75)
    if hair.kind > 1:
        middle = ring.mean(0)
        share = np.array([d.uniform(0.3, 0.98) for _ in range(16)], np.float32)[:, None, None]
        paths = middle + (spline(ring, 2, closed=True)[3:-3] - middle) * share
        tints = d.uniform(0.35, 0.9), d.uniform(0.8, 1.4)
        inks = [(np.s_[k::2], hair.colour * light * tints[k], d.uniform(1, 4) * view.scale) for k in (0, 1)]
        strokes(canvas, paths, inks, 0.5)


def paint_hair_front(
    canvas: np.ndarray, cover: np.ndarray, hair: Hair, shape: Shape, view: View, light: float, d: Draws
) -> None:
    """Draws what falls over the face: fringe, side strands, a hat; marks `cover` (H, W) uint8."""
    width, crown = shape.points[16, 0], float(shape.outline[:, 1].min())

    def lay(polygon: np.ndarray, colour: np.ndarray, soft: float) -> None:
        wash(canvas, polygon, colour, 1.0, soft)
        fill(cover, polygon)

    def ink(darkest: float, widest: float, start: int, stop: int) -> list[Ink]:
        """Two inks, for every other one of the lines from `start` to `stop`."""
        return [
            (
                slice(start + k, stop, 2),
                hair.colour * (light * d.uniform(darkest, 1.5)),
                d.uniform(1, widest) * view.scale,
            )
            for k in (0, 1)
        ]

    if hair.fringe and not hair.hat:
        xs = np.linspace(-0.9, 0.9, 9)
        tips = hair.fringe + 14 * xs**2 + d.normals(9, 5) + d.normal(0, 9) * xs
        top = np.linspace(0.75, -0.75, 5)
        low = np.column_stack([xs * width, tips]).astype(np.float32)
        high = np.column_stack([top * width, crown + 22 + 30 * top**2]).astype(np.float32)
        flat = view.project(shape.lift(np.vstack([low, high])) + np.array([0, 0, 6], np.float32))[:, :2]
        lay(np.vstack([spline(flat[:9], 4), flat[9:]]), hair.colour * light * 0.95, 0.8 * view.scale)
        paths = np.stack([flat[:9], np.repeat(flat[11:12], 9, 0)], 1)
        strokes(canvas, paths, ink(0.5, 4, 0, 9), 0.5)
    if hair.kind >= 2 and d.chance(0.75):
        reach = (0, 0, d.uniform(20, 70), d.uniform(90, 200))[hair.kind]
        inset = d.uniform(0.72, 1.08)
        rings, shares, inks = np.empty((2, 9, 3), np.float32), [], []
        for k, side in enumerate((-1, 1)):
            near = inset + d.normal(0, 0.06)
            across, down = (0.45, near * 0.9, near, near * 0.96, near), (crown + 32, -30, 15, 60, reach)
            rings[k, :5] = np.array([across, down, (-30, -45, -58, -62, -70)]).T
            rings[k, 5:] = (1.28, reach, -80), (1.3, 40, -90), (1.2, -20, -95), (1.0, crown + 45, -95)
            rings[k, :, 0] *= side * width
            rings[k, :, 0] += d.normals(9, 1 + 3 * hair.curl)
            rings[k, 5:, 0] += side * (hair.thickness - 10)
            shares.append([d.uniform(0.05, 0.95) for _ in range(6)])
            inks += ink(0.45, 5, 6 * k, 6 * k + 6)
        flat = view.project(rings.reshape(-1, 3))[:, :2].reshape(2, 9, 2)
        locks = spline_matrix(5, 4) @ flat[:, :5], spline_matrix(4, 4) @ flat[:, 5:]
        lay(np.concatenate(locks, 1), hair.colour * light * 0.85, 0.8 * view.scale)
        share = np.array(shares, np.float32)[..., None, None]
        paths = spline_matrix(4, 3) @ (flat[:, None, :4] * (1 - share) + flat[:, None, [8, 7, 6, 5]] * share)
        strokes(canvas, paths.reshape(12, -1, 2), inks, 0.55)
    if hair.hat:
        _paint_hat(canvas, cover, width, view, light, d)


def _paint_hat(canvas: np.ndarray, cover: np.ndarray, width: float, view: View, light: float, d: Draws) -> None:
    """Draw a hat on a head whose half width is `width`; marks `cover`."""
    y, tall, brim = d.uniform(-62, -36), d.uniform(50, 90), d.uniform(0, 22)
    xs = np.linspace(-1, 1, 9)
    low = np.column_stack([xs * (width + 8), y + brim * (1 - xs**2) + 6 * xs**2, 12 - 90 * xs**2])
    high = np.column_stack([xs[::-1] * (width + 10), y - tall * np.sqrt(1 - 0.8 * xs**2), -60 + 0 * xs])
    flat = view.project(np.vstack([low, high]).astype(np.float32))[:, :2]
    colour = d.colour(10, 240, 50)
    wash(canvas, flat, colour * light, 1.0, 0.4)
    fill(cover, flat)
    band = np.vstack([flat[:9], flat[8::-1] - view.roll[:, 1] * 14 * view.scale])
    wash(canvas, band, colour * 0.6 * light, 0.8, view.scale)


class Beard:
    """Style of the beard: stubble, a full beard, a goatee, a moustache, mostly none."""

    def __init__(self, d: Draws, child: float) -> None:
        kind = d.pick((0.66, 0.13, 0.12, 0.05, 0.04))
        strength = (0.0, d.uniform(0.08, 0.45), d.uniform(0.5, 0.95), d.uniform(0.4, 0.95), d.uniform(0.4, 0.95))[kind]
        self.kind, self.strength = (0, 0.0) if child else (kind, strength)
        self.cheek, self.droop = d.uniform(-8, 10), d.uniform(-2, 6)

    def on(self, shape: Shape, grid: np.ndarray) -> np.ndarray:
        """How much beard covers the head's surface, the grid (3, A, C + 1): (A, C + 1) in 0..1."""
        p = shape.points
        x, y, corner = np.abs(grid[0] - p[57, 0]), grid[1], p[54, 0]
        if self.kind == 4:
            line = np.full_like(y, 1e3)
        elif self.kind == 3:
            line = np.where(x < corner + 4, p[54, 1] - 2, 1e3)
        else:
            down = [p[33, 1] + 4, p[54, 1] - 10, 42, 10]
            line = np.interp(x, [corner * 0.7, corner + 6, 60, 76], down) + self.cheek
        cover = clip01((y - line) / 8 + 0.5)
        lip = clip01(np.minimum((y - p[33, 1] - 2) / 4, (p[51, 1] + 3 - y) / 3))
        cover = np.maximum(cover, lip * clip01((corner + 4 - x) / 6))
        cover[RIM + 5 :] = 0
        return (cover * self.strength).astype(np.float32)

    def paint_moustache(self, canvas: np.ndarray, points: np.ndarray, axes: np.ndarray, colour: np.ndarray) -> None:
        """Draws what hangs over the upper lip; `points` are the 68, `axes` one millimetre along x and y."""
        if self.kind < 2:
            return
        down = axes[1] * self.droop
        low = spline(points[48:55] + down * np.array([1.6, 0.8, 0.6, 0.6, 0.6, 0.8, 1.6])[:, None], 3)
        high = points[[54, 35, 33, 31, 48]] + np.array([[3, -2], [2, 6], [0, 5], [-2, 6], [-3, -2]]) @ axes
        unit = float(np.hypot(*axes[1]))
        wash(canvas, np.vstack([low, high]), colour, self.strength, unit)


def paint_glasses(canvas: np.ndarray, cover: np.ndarray, shape: Shape, view: View, d: Draws) -> None:
    """Draws glasses or sunglasses over the eyes, some of the time; dark ones mark `cover`."""
    if not d.chance(0.16):
        return
    dark = d.chance(0.33)
    wide, tall, boxy, drop = d.uniform(19, 28), d.uniform(12, 23), d.uniform(1.6, 4), d.uniform(0, 6)
    frame, width = d.colour(5, 130 if d.chance(0.8) else 240, 20), d.uniform(0.6, 3.6)
    tint, opacity = d.colour(5, 70, 15), d.uniform(0.75, 1) if dark else d.uniform(0, 0.15)
    glare = d.uniform(0, 0.6) * d.chance(0.4)
    ring = ellipse(np.zeros(2), np.array([1, 0]), np.array([0, 1]), 24)
    ring = ellipse(np.zeros(2), np.array([1, 0]), np.array([0, 1]), 24)
    ring = np.sign(ring) * np.abs(ring) ** (2 / boxy) * (wide, tall)
    ends = []
    for side, eye in ((-1, shape.points[36:42].mean(0)), (1, shape.points[42:48].mean(0))):
        centre_x = eye[0] + side * 1.5
        rim = ring + (centre_x, eye[1] + drop)
        lens = np.column_stack([rim, 9 - 0.012 * (np.abs(rim[:, 0]) - 10) ** 2])
        end = (side * (shape.points[16, 0] + 3), eye[1] - 2, -85)
        hinge = np.array([(centre_x + side * wide, eye[1], 9 - 0.012 * (wide + 24) ** 2), end])
        flat = view.project(np.vstack([lens, hinge]).astype(np.float32))[:, :2]
        if opacity > 0.02:
            wash(canvas, flat[:24], tint, opacity)
        if glare:
            middle = flat[:24].mean(0)
            wash(canvas, middle + (flat[:24] - middle) * 0.5 - view.scale * 5, (240, 245, 250), glare, 3 * view.scale)
        stroke(canvas, flat[np.r_[:24, 0]], frame, width * view.scale, 0.95)
        if side * view.yaw < 0.25:
            stroke(canvas, flat[24:], frame, width * view.scale, 0.9)
        ends.append(flat[12 if side > 0 else 0])
        if dark:
            fill(cover, flat[:24])
    stroke(canvas, np.stack(ends), frame, width * view.scale, 0.95)


def paint_occluder(canvas: np.ndarray, cover: np.ndarray, skin: np.ndarray, face: np.ndarray, d: Draws) -> None:
    """Covers part of the face with a hand, a blob or a bar, some of the time.

    Args:
        canvas: (H, W, 3) uint8, changed in place.
        cover: (H, W) uint8, marked in place.
        skin: (3,) RGB, for hands.
        face: (2, 2) low and high corner of the points' box.
        d: the face's random numbers.
    """
    kind = d.pick((0.87, 0.06, 0.05, 0.02))
    side = (face[1] - face[0]).max()
    angle = d.uniform(-0.6, np.pi + 0.6)  # mostly from below or the sides
    at = face.mean(0) + side * d.uniform(0.4, 0.62) * np.array([np.cos(angle), np.sin(angle)])
    if kind == 0:
        return

    def ray(turn: float) -> np.ndarray:
        return np.array([np.cos(turn), np.sin(turn)])

    if kind == 1:  # a hand: a palm and four fingers
        colour = skin * d.uniform(0.75, 1.15)
        aim = float(np.arctan2(*(face.mean(0) - at)[::-1])) + d.normal(0, 0.7)
        reach, thick = side * d.uniform(0.22, 0.38), side * 0.048
        base = at - reach * 0.5 * ray(aim)
        fill(canvas, ellipse(base, reach * 0.5 * ray(aim), reach * 0.55 * ray(aim + np.pi / 2)), colour)
        for k in range(4):
            along, across = ray(aim + (k - 1.5) * 0.16), ray(aim + (k - 1.5) * 0.16 + np.pi / 2)
            root = base + along * reach * 0.75 + across * (k - 1.5) * thick * 1.5
            finger = ellipse(root, along * reach * 0.62, across * thick)
            fill(canvas, finger, colour * (0.94 + 0.04 * k))
            stroke(canvas, finger, colour * 0.55, side * 0.012, 0.6)
            fill(cover, finger)
        return
    sides = 7 if kind == 2 else 4
    turns = np.arange(sides) * (2 * np.pi / sides) + d.uniform(0, 6)
    radii = side * d.uniform(0.12, 0.28) * (1 + d.normals(sides, 0.2))[:, None]
    ring = at + radii * np.column_stack([np.cos(turns), np.sin(turns)]) * (1, d.uniform(0.3, 1))
    ring = spline(ring.astype(np.float32), 4, closed=True) if kind == 2 else ring
    fill(canvas, ring, d.colour(5, 250, 60))
    fill(cover, ring)
