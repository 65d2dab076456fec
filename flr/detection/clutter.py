"""Things in scenes that are no faces, among them those that detectors take for one."""

from collections.abc import Callable

import cv2
import numpy as np

from flr.data.synthetic import paint
from flr.detection.textures import TexturePool, fill_shape, log_uniform

Thing = Callable[[np.random.Generator, np.ndarray], None]


def shapes(
    rng: np.random.Generator, canvas: np.ndarray, textures: TexturePool, count: int, radii: tuple[float, float]
) -> None:
    """Draw overlapping ellipses, polygons and bars, flat or textured, with a soft or hard edge and shading."""
    side = len(canvas)
    for _ in range(count):
        radius, centre = log_uniform(rng, *radii), rng.uniform(0, side, 2)
        low = np.maximum((centre - radius * 1.3 - 2).astype(int), 0)
        high = np.minimum((centre + radius * 1.3 + 2).astype(int), side)
        if (high - low).min() < 2:
            continue
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        part = canvas[window]
        mask = np.zeros_like(part)
        fill_shape(rng, mask, centre - low, radius)
        if rng.random() < 0.3:
            kernel = int(radius * rng.uniform(0.05, 0.5)) * 2 + 1
            mask = cv2.blur(mask, (kernel, kernel))
        over = textures(rng)[window] if rng.random() < 0.5 else np.full_like(part, rng.uniform(0, 255))
        if rng.random() < 0.5:
            ramp = _slope(rng, part.shape) * np.float32(rng.uniform(10, 70) / radius)
            over = cv2.add(np.ascontiguousarray(over), ramp, dtype=cv2.CV_8U)
        paint.blend(part, np.ascontiguousarray(over), mask, rng.uniform(0.6, 1))


def _slope(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return (H, W) float32, a ramp of one unit a pixel in a random direction, 0 in the middle."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.arange(-length / 2, length / 2, dtype=np.float32) for length in shape[:2])
    return x * np.float32(np.cos(angle)) + (y * np.float32(np.sin(angle)))[:, None]


def text(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw a line of small or large characters, with or without an outline."""
    side, large = len(canvas), rng.random() < 0.4
    characters = "".join(chr(int(code)) for code in rng.integers(33, 126, int(rng.integers(1, 6 if large else 14))))
    at = (int(rng.integers(-20, side - 30)), int(rng.integers(20, side + 20)))
    scale = float(rng.uniform(0.6, 4) if large else rng.uniform(0.3, 2.5))
    width = int(rng.integers(1, 14 if large else 6))
    font = int(rng.integers(8))
    if large and rng.random() < 0.5:
        outline = width + int(rng.integers(2, 8))
        cv2.putText(canvas, characters, at, font, scale, float(rng.uniform(0, 255)), outline, cv2.LINE_AA)
    cv2.putText(canvas, characters, at, font, scale, float(rng.uniform(0, 255)), width, cv2.LINE_AA)


def grid(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw rows of equal boxes: windows, shelves, keyboards."""
    cell, filled, level = rng.uniform(8, 60, 2), rng.uniform(0.4, 0.95, 2), rng.uniform(0, 255)
    angle = rng.normal(0, 0.15)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    origin = rng.uniform(-20, len(canvas) * 0.6, 2)
    box = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * filled * cell
    columns, rows = rng.integers(1, 8, 2)
    for at in np.ndindex(int(columns), int(rows)):
        paint.fill(canvas, (box + at * cell) @ turn + origin, np.full(3, np.clip(level + rng.normal(0, 20), 0, 255)))


def tuft(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw strands in one direction: grass, hair, branches."""
    count, length = int(rng.integers(10, 120)), rng.uniform(15, 120)
    starts = rng.uniform(0, len(canvas), 2) + rng.normal(0, rng.uniform(5, 70), (count, 2))
    angles = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.25, count)
    bend, level = rng.normal(0, 0.6), rng.uniform(0, 255)
    half = (length * rng.uniform(0.2, 0.6, count))[:, None]
    knees = starts + half * np.stack([np.cos(angles), np.sin(angles)], 1)
    ends = knees + half * np.stack([np.cos(angles + bend), np.sin(angles + bend)], 1)
    for strand in np.stack([starts, knees, ends], 1):
        grey = np.full(3, np.clip(level + rng.normal(0, 30), 0, 255))
        paint.stroke(canvas, strand.astype(np.float32), grey, float(rng.integers(1, 4)), 1)


def blobs(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw a shape with some darker or brighter spots, which may be laid out as in a face."""
    centre, radius, level = rng.uniform(0, len(canvas), 2), log_uniform(rng, 10, 60), rng.uniform(60, 240)
    mask = np.zeros_like(canvas)
    fill_shape(rng, mask, centre, radius)
    paint.blend(canvas, np.full_like(canvas, level), mask)
    for _ in range(int(rng.integers(1, 7))):
        at, small = centre + rng.uniform(-0.7, 0.7, 2) * radius, radius * rng.uniform(0.05, 0.3)
        _disc(canvas, at, small, small * rng.uniform(0.3, 1), rng.uniform(0, np.pi), level + rng.normal(-60, 60))


def _disc(canvas: np.ndarray, at: np.ndarray, along: float, across: float, angle: float, level: float) -> None:
    axis = np.array([np.cos(angle), np.sin(angle)])
    ring = paint.ellipse(np.asarray(at), axis * along, np.array([-axis[1], axis[0]]) * across, 20)
    paint.fill(canvas, ring, np.full(3, np.clip(level, 0, 255)))


def _paste(
    canvas: np.ndarray, image: np.ndarray, mask: np.ndarray, at: np.ndarray, degrees: float, opacity: float = 1.0
) -> None:
    """Blend an image, turned about its middle, over the canvas with its middle at a point."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    matrix[:, 2] += at - (width / 2, height / 2)
    over, weight = (cv2.warpAffine(layer, matrix, canvas.shape[::-1]) for layer in (image, mask))
    paint.blend(canvas, over, weight, opacity)


def _shaded(rng: np.random.Generator, side: int) -> np.ndarray:
    ramp = _slope(rng, (side, side)) * (rng.uniform(0, 120) / side)
    return np.clip(rng.uniform(50, 230) + ramp, 0, 255).astype(np.uint8)


def ear(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw an oval with curved folds."""
    side, aspect = int(log_uniform(rng, 18, 90)), rng.uniform(0.45, 0.75)
    image = _shaded(rng, side)
    mask, level = np.zeros_like(image), float(image.mean())
    _disc(mask, np.full(2, side / 2), side * 0.45 * aspect, side * 0.45, 0, 255)
    for _ in range(int(rng.integers(3, 8))):
        share, start = rng.uniform(0.15, 0.85), rng.uniform(0, 360)
        middle = (int(side * (0.5 + rng.normal(0, 0.07))), int(side * (0.5 + rng.normal(0, 0.1))))
        axes = (int(side * 0.45 * aspect * share), int(side * 0.45 * share))
        grey = level * (rng.uniform(0.3, 0.85) if rng.random() < 0.75 else rng.uniform(1.05, 1.4))
        stop, width = start + rng.uniform(60, 300), max(1, int(side * rng.uniform(0.02, 0.1)))
        cv2.ellipse(image, middle, axes, rng.normal(0, 12), start, stop, min(grey, 255.0), width, cv2.LINE_AA)
    if rng.random() < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), max(0.3, side * rng.uniform(0.01, 0.05)))
    _paste(canvas, image, mask, rng.uniform(0, len(canvas), 2), float(rng.normal(0, 25)))


def hand(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw a palm with two to five fingers."""
    side, fingers = int(log_uniform(rng, 24, 130)), int(rng.integers(2, 6))
    image = _shaded(rng, side)
    mask, level, width = np.zeros_like(image), float(image.mean()), side / fingers * rng.uniform(0.5, 0.9)
    for k in range(fingers):
        middle, length = ((k + 0.5) * side / fingers, side * 0.4), side * rng.uniform(0.4, 0.85)
        outline = (middle, (width, length), float(rng.normal(0, 12)))
        cv2.ellipse(mask, outline, 255, -1, cv2.LINE_AA)
        cv2.ellipse(image, outline, level * float(rng.uniform(0.4, 0.8)), max(1, int(side * 0.025)), cv2.LINE_AA)
        if rng.random() < 0.5:
            nail = ((middle[0], middle[1] - length * 0.4), (width * 0.5, width * 0.6), outline[2])
            cv2.ellipse(image, nail, min(255.0, level * 1.3), -1, cv2.LINE_AA)
    _disc(mask, np.array([side / 2, side * 0.7]), side * 0.4, side * 0.3, 0, 255)
    image = cv2.GaussianBlur(image, (0, 0), max(0.3, side * 0.012))
    _paste(canvas, image, mask, rng.uniform(0, len(canvas), 2), float(rng.uniform(0, 360)))


def mirror(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Copy a part of the scene next to its mirror image: ornaments, logos, symmetric objects."""
    side = len(canvas)
    width = int(log_uniform(rng, 12, 80))
    height = min(int(width * rng.uniform(1, 2.4)), side)
    x, y = int(rng.integers(0, max(1, side - 2 * width))), int(rng.integers(0, max(1, side - height)))
    part = canvas[y : y + height, x : x + width]
    image = np.hstack([part, part[:, ::-1]])
    mask = np.full_like(image, 255)
    if rng.random() < 0.6:
        mask[:] = 0
        _disc(mask, np.array(image.shape[::-1]) / 2, image.shape[1] / 2, image.shape[0] / 2, 0, 255)
    _paste(canvas, image, mask, rng.uniform(0, side, 2), float(rng.normal(0, 10)))


def beads(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw a cluster of discs with highlights: jewellery, lamps, fruit, buttons."""
    centre, radius = rng.uniform(0, len(canvas), 2), rng.uniform(8, 60)
    for _ in range(int(rng.integers(3, 30))):
        at = centre + rng.normal(0, radius * 0.5, 2)
        small, level = radius * rng.uniform(0.04, 0.25), rng.uniform(20, 240)
        if rng.random() < 0.4:
            _disc(canvas, at, small + 1, small + 1, 0, level - 90)
        _disc(canvas, at, small, small, 0, level)
        if rng.random() < 0.6:
            _disc(canvas, at - small * 0.3, small * 0.4, small * 0.4, 0, level + 90)


THINGS: tuple[Thing, ...] = (ear, ear, hand, mirror, mirror, beads, text, blobs, tuft)


def background(rng: np.random.Generator, textures: TexturePool) -> np.ndarray:
    """Draw a scene without people, (side, side) uint8."""
    canvas = textures(rng)
    kind = rng.random()
    if kind < 0.2:
        shapes(rng, canvas, textures, int(rng.integers(3, 12)), (10, 110))
    elif kind < 0.55:
        shapes(rng, canvas, textures, int(rng.integers(15, 60)), (rng.uniform(2, 6), rng.uniform(20, 90)))
    elif kind < 0.65:
        shapes(rng, canvas, textures, int(rng.integers(100, 250)), (rng.uniform(1.5, 3), rng.uniform(5, 20)))
    if rng.random() < 0.3:
        grid(rng, canvas)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 3))
    if rng.random() < 0.3:
        shapes(rng, canvas, textures, int(rng.integers(1, 6)), (30, 120))
    for _ in range(int(rng.integers(0, 8))):
        THINGS[int(rng.integers(len(THINGS)))](rng, canvas)
    if rng.random() < 0.3:
        shapes(rng, canvas, textures, int(rng.integers(1, 6)), (10, 60))
    return canvas
