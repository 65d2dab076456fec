"""The lit head: albedo and shading on the surface's grid, splatted into the image back to front."""

from dataclasses import dataclass

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.paint import LUMA
from flr.data.synthetic.shape import Shape
from flr.data.synthetic.view import View

# From dark to light.
TONES = np.array([(74, 46, 34), (122, 82, 60), (172, 126, 98), (208, 164, 136), (236, 202, 180)], np.float32)
_FIVE = np.ones((5, 5), np.uint8)


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
        level: (H, W) uint8, how near the surface is; 0 off the head.
        low: the depth towards the viewer at level 0, millimetres.
        step: millimetres a level.
    """

    mask: np.ndarray
    level: np.ndarray
    low: float
    step: float


def sample_tone(d: Draws, even: bool = False) -> np.ndarray:
    """(3,) float32 RGB of the skin; `even` draws dark tones as often as light ones."""
    at = d.uniform(0, 1) ** (1 if even else 0.7) * (len(TONES) - 1)
    low = min(int(at), len(TONES) - 2)
    return (TONES[low] + (at - low) * (TONES[low + 1] - TONES[low])) * (1 + d.normals(3, 0.05))


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


def shades(shape: Shape, light: Light, local: np.ndarray, d: Draws) -> np.ndarray:
    """Bells (K, 5) for what a dome cannot shadow by itself: sockets, nose sides, under nose and lip, folds.

    Args:
        shape: the face.
        light: the light; its shadow of the nose falls away from it.
        local: (3,) the light's direction in head axes.
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
        x, y = (eye.sum(0) / 6).tolist()
        inner = x - side * 14
        rows += [
            (inner - side * 2, y - 4, 6.5, 9, -0.26),
            (x, y - 7, 17, 5, -0.17),
            (x - side * 3, y + 9, 12, 3.5, -0.12),
            (wing[0] + side * 3, wing[1] - 2, 3.2, 5, -0.26),
            (wing[0] + side * 9, wing[1] + 13, 6, 10, -0.08 - 0.12 * shape.smile),
            (p[54 if side > 0 else 48, 0] + side * 2, p[54, 1], 4, 5, -0.18),
        ]
    table = np.array(rows, np.float32)
    table[:, 4] *= depth
    return table


def normals(grid: np.ndarray) -> np.ndarray:
    """Outward normals (3, A, C + 1) of the surface's grid, not of unit length."""
    down, along = np.empty_like(grid), np.empty_like(grid)
    np.subtract(grid[:, 2:], grid[:, :-2], out=down[:, 1:-1])
    down[:, 0], down[:, -1] = grid[:, 1] - grid[:, 0], grid[:, -1] - grid[:, -2]
    np.subtract(grid[:, :, 2:], grid[:, :, :-2], out=along[:, :, 1:-1])
    along[:, :, 0] = along[:, :, -1] = grid[:, :, 1] - grid[:, :, -2]
    (ax, ay, az), (bx, by, bz) = along, down
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def light_up(
    albedo: np.ndarray, matte: np.ndarray | float, grid: np.ndarray, relief: np.ndarray, view: View, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, A, C + 1) of the lit surface and how far each part faces the viewer (A, C + 1).

    Args:
        albedo: (3, A, C + 1) float32 RGB.
        matte: (A, C + 1) float32, 1 where hair or beard hides the skin's gloss.
        grid: (3, A, C + 1) float32, the surface.
        relief: (A, C + 1) float32, a factor of the light.
        view: the camera.
        light: the light.
    """
    normal = normals(grid).reshape(3, -1)
    local, eye = view.rotation.T @ light.direction, view.rotation[2]
    half = local + eye
    half /= np.sqrt((half * half).sum())
    length = np.sqrt((normal * normal).sum(0) + 1e-6)
    lambert, glint, facing = (np.stack([local, half, eye]) @ normal / length).reshape(3, *grid.shape[1:])
    lambert = np.maximum(0, (lambert + 0.15) / 1.15)
    shine = np.maximum(0, glint)
    for _ in range(4):
        shine *= shine
    shine *= (light.gloss * 70 * float(light.colour.mean())) * (1 - matte)
    lit = lambert * light.colour[:, None, None]
    lit += light.ambient[:, None, None]
    lit *= albedo
    lit *= relief
    lit += shine
    return lit, facing


def splat(canvas: np.ndarray, points: np.ndarray, colours: np.ndarray, facing: np.ndarray, span: float) -> Head:
    """Draws the head into `canvas`, in place.

    Points of the finely resampled grid are written back to front; pixels that none of them hits take the
    mean of their neighbours.

    Args:
        canvas: the image, grey or RGB.
        points: (3, A, C + 1) float32, the projected surface.
        colours: (3, A, C + 1) float32 RGB.
        facing: (A, C + 1) float32, positive where the surface faces the viewer.
        span: the face's width in pixels, which sets how finely the grid is resampled.
    """
    height, width = canvas.shape[:2]
    colours = np.minimum(np.maximum(colours, 0), 255)
    if canvas.ndim == 2:
        colours = (LUMA @ colours.reshape(3, -1)).reshape(1, *facing.shape)
    fine = (min(max(int(2.3 * span), 120), 900), min(max(int(0.8 * span), 40), 360))
    # The back of the head, most of the time, is not seen.
    rows = min(int(np.flatnonzero(facing.max(1) > -0.02)[-1]) + 2, len(facing))
    fx, fy = fine[0] / facing.shape[1], fine[1] / len(facing)
    x, y, z, turned = (cv2.resize(plane[:rows], None, fx=fx, fy=fy).ravel() for plane in (*points, facing))
    column, row = np.rint(x).astype(np.int32), np.rint(y).astype(np.int32)
    # One comparison a side: a negative number is a huge unsigned one.
    keep = (turned > -0.02) & (column.view(np.uint32) < width) & (row.view(np.uint32) < height)
    # In 255 steps of a millimetre: numpy sorts bytes fastest. 0 is left for pixels without the head.
    low = float(z.min())
    step = (float(z.max()) - low) / 254
    level = ((z - (low - step)) * (1 / step)).astype(np.uint8)
    order = np.flatnonzero(keep)
    order = order[np.argsort(level[order], kind="stable")]
    # Colour and depth are written as one word.
    inks = [cv2.resize(plane[:rows], None, fx=fx, fy=fy) for plane in colours.astype(np.uint8)]
    ink = cv2.merge([*inks, level.reshape(inks[0].shape)])
    layer = np.zeros((height, width, ink.shape[2]), np.uint8)
    word = np.uint16 if canvas.ndim == 2 else np.uint32
    layer.view(word).ravel()[(row * width + column)[order]] = ink.view(word).ravel()[order]

    hit = cv2.threshold(cv2.extractChannel(layer, ink.shape[2] - 1), 0, 255, cv2.THRESH_BINARY)[1]
    mask = cv2.morphologyEx(hit, cv2.MORPH_CLOSE, _FIVE)
    # A closed pixel has a hit one within two steps, so that one pass fills all holes.
    hits = cv2.merge([cv2.blur(hit, (5, 5))] * ink.shape[2])
    cv2.copyTo(cv2.divide(cv2.blur(layer, (5, 5)), hits, scale=255), mask - hit, layer)
    *shown, level = cv2.split(layer)
    cv2.copyTo(shown[0] if canvas.ndim == 2 else cv2.merge(shown), mask, canvas)
    return Head(mask, level, low - step, step)
