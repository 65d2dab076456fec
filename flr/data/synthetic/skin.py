"""The lit head: albedo and shading on the surface's grid, splatted into the picture back to front."""

from dataclasses import dataclass

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.shape import RIM, Shape, bells
from flr.data.synthetic.view import View

_TONES = np.array([(74, 46, 34), (122, 82, 60), (172, 126, 98), (208, 164, 136), (236, 202, 180)], np.float32)


@dataclass
class Light:
    """Directional and ambient light: direction (3,) towards the light in camera axes, colours (3,) about 1."""

    direction: np.ndarray
    colour: np.ndarray
    ambient: np.ndarray
    gloss: float


@dataclass
class Head:
    """The painted head.

    Attributes:
        mask: (H, W) uint8, 255 on the head.
        depth: (H, W) float32, millimetres towards the viewer, -1e6 off the head.
    """

    mask: np.ndarray
    depth: np.ndarray


def sample_tone(d: Draws) -> np.ndarray:
    """(3,) float32 RGB of the skin."""
    at = d.uniform(0, 1) ** 0.7 * (len(_TONES) - 1)
    tone = np.array([np.interp(at, range(len(_TONES)), _TONES[:, i]) for i in range(3)], np.float32)
    return tone * (1 + d.normals(3, 0.05))


def sample_light(d: Draws) -> Light:
    """Draws a light: mostly from above and in front, at times hard from a side."""
    hard = d.uniform(0.15, 1.25)
    azimuth, elevation = d.normal(0, 0.8), d.normal(0.45, 0.45)
    direction = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], np.float32
    )
    colour = hard * (1 + d.normals(3, 0.06))
    ambient = (1.08 - 0.62 * hard * d.uniform(0.75, 1.2)) * (1 + d.normals(3, 0.05))
    return Light(
        direction, colour.astype(np.float32), np.maximum(ambient, 0.06).astype(np.float32), d.uniform(0, 1) ** 2
    )


def shades(shape: Shape, light: Light, local: np.ndarray, xy: np.ndarray, d: Draws) -> np.ndarray:
    """Factors (...) for what a dome cannot shadow by itself: sockets, nose sides, under nose and lip, folds.

    Args:
        shape: the face.
        light: the light; its shadow of the nose falls away from it.
        local: (3,) the light's direction in head axes.
        xy: (..., 2) frontal points.
        d: the face's random numbers.
    """
    p = shape.points
    depth = d.uniform(0.5, 1.4)
    mouth = p[57]
    rows: list[tuple[float, ...]] = [(mouth[0], mouth[1] + 7, 13, 4, -0.2), (p[33, 0], p[33, 1] + 4, 12, 5, -0.16)]
    throw = -local[:2] / max(0.35, float(local[2]))
    hard = float(light.colour.mean()) * 0.42
    rows.append((p[30, 0] + 17 * throw[0], p[30, 1] + 3 + 13 * max(0.0, float(throw[1])), 10, 10, -hard))
    for side, eye, wing in ((-1, p[36:42], p[31]), (1, p[42:48], p[35])):
        x, y = eye.mean(0)
        inner = x - side * 14
        rows += [
            (inner - side * 2, y - 4, 6.5, 9, -0.26),
            (x, y - 7, 17, 5, -0.17),
            (x - side * 3, y + 9, 12, 3.5, -0.12),
            (wing[0] + side * 3, wing[1] - 2, 3.2, 5, -0.26),
            (wing[0] + side * 9, wing[1] + 13, 6, 10, -0.08 - 0.12 * shape.smile),
            (p[54 if side > 0 else 48, 0] + side * 2, p[54, 1], 4, 5, -0.18),
        ]
    return 1 + depth * bells(xy, np.array(rows, np.float32))


def normals(grid: np.ndarray) -> np.ndarray:
    """Unit outward normals (A, C + 1, 3) of the surface's grid."""
    down = np.empty_like(grid)
    down[1:-1] = grid[2:] - grid[:-2]
    down[0], down[-1] = grid[1] - grid[0], grid[-1] - grid[-2]
    round_ = np.empty_like(grid)
    round_[:, 1:-1] = grid[:, 2:] - grid[:, :-2]
    round_[:, 0] = round_[:, -1] = grid[:, 1] - grid[:, -2]
    a, b = round_, down
    (ax, ay, az), (bx, by, bz) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    return np.stack([x, y, z], -1) / np.sqrt(x * x + y * y + z * z + 1e-6)[..., None]


def light_up(
    albedo: np.ndarray, matte: np.ndarray, grid: np.ndarray, shape: Shape, view: View, light: Light, d: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (A, C + 1, 3) of the lit surface and how far each part faces the viewer (A, C + 1).

    Args:
        albedo: (A, C + 1, 3) float32 RGB.
        matte: (A, C + 1) float32, 1 where hair or beard hides the skin's relief and gloss.
        grid: (A, C + 1, 3) float32, the surface.
        shape: the face.
        view: the camera.
        light: the light.
        d: the face's random numbers.
    """
    normal = normals(grid)
    local = view.rotation.T @ light.direction
    eye = view.rotation.T @ np.array([0, 0, 1], np.float32)
    half = (local + eye) / np.linalg.norm(local + eye)
    lambert, glint, facing = (normal.reshape(-1, 3) @ np.stack([local, half, eye], 1)).T.reshape(3, *matte.shape)
    lambert = np.maximum(0, (lambert + 0.15) / 1.15)
    shine = np.maximum(0, glint) ** 16 * light.gloss * 70 * light.colour.mean() * (1 - matte)
    relief = np.ones(matte.shape, np.float32)
    relief[: RIM + 1] = shades(shape, light, local, grid[: RIM + 1, :, :2], d)
    # Under the jaw, little light arrives.
    under = (np.arange(len(grid)) > RIM)[:, None] * (shape.outline[:, 1] > 60)[np.r_[: len(shape.outline), 0]]
    relief = relief + (1 - relief) * matte - 0.35 * under
    lit = albedo * (light.ambient + lambert[..., None] * light.colour) * relief[..., None]
    return lit + shine[..., None], facing


def splat(canvas: np.ndarray, points: np.ndarray, colours: np.ndarray, facing: np.ndarray, span: float) -> Head:
    """Draws the head into `canvas` (H, W, 3) uint8, in place.

    Points of the finely resampled grid are written back to front; pixels that none of them hits take the
    mean of their neighbours.

    Args:
        canvas: the picture.
        points: (A, C + 1, 3) float32, the projected surface.
        colours: (A, C + 1, 3) float32 RGB.
        facing: (A, C + 1) float32, positive where the surface faces the viewer.
        span: the face's width in pixels, which sets how finely the grid is resampled.
    """
    height, width = canvas.shape[:2]
    fine = (int(np.clip(2.3 * span, 120, 900)), int(np.clip(0.8 * span, 40, 360)))
    near = cv2.resize(np.dstack([points, facing]), fine, interpolation=cv2.INTER_LINEAR).reshape(-1, 4)
    packed = np.empty((*colours.shape[:2], 4), np.uint8)
    packed[..., :3], packed[..., 3] = np.clip(colours, 0, 255), 255
    ink = cv2.resize(packed, fine, interpolation=cv2.INTER_LINEAR).reshape(-1, 4).view(np.uint32)[:, 0]
    column, row = np.rint(near[:, 0]).astype(np.int32), np.rint(near[:, 1]).astype(np.int32)
    # One comparison a side: a negative number is a huge unsigned one.
    keep = (near[:, 3] > -0.02) & (column.view(np.uint32) < width) & (row.view(np.uint32) < height)
    order = np.flatnonzero(keep)
    z = near[order, 2]
    # In 256 steps of a millimetre or two: numpy sorts bytes fastest.
    order = order[np.argsort(((z - z.min()) * (255 / np.ptp(z))).astype(np.uint8), kind="stable")]
    at = (row * width + column)[order]
    layer = np.zeros((height, width, 4), np.uint8)
    layer.view(np.uint32)[..., 0].ravel()[at] = ink[order]
    depth = np.full((height, width), -1e6, np.float32)
    depth.ravel()[at] = near[order, 2]

    mask = cv2.morphologyEx(layer[..., 3], cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    holes = mask - layer[..., 3]
    # A closed pixel has a hit one within two steps, so that one pass fills all holes.
    mean = cv2.blur(layer, (5, 5))
    cv2.copyTo(cv2.divide(mean, cv2.merge([mean[..., 3]] * 4), scale=255), holes, layer)
    cv2.copyTo(cv2.dilate(depth, np.ones((5, 5), np.uint8)), holes, depth)
    cv2.copyTo(cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), mask, canvas)
    return Head(mask, depth)
