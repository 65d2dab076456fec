"""Grey textures of scenes: clouds, stripes, fibres, cloth and prints."""

import cv2
import numpy as np

from flr.data.synthetic import paint, scene
from flr.data.synthetic.draws import Draws

_POOL = 100  # textures that a block of scenes shares


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def smooth_field(rng: np.random.Generator, side: int, rows: int, columns: int | None = None) -> np.ndarray:
    """Draw (side, side) float32 noise of unit deviation at rows x columns nodes, interpolated between them."""
    nodes = rng.standard_normal((rows, columns or rows)).astype(np.float32)
    return np.asarray(cv2.resize(nodes, (side, side), interpolation=cv2.INTER_CUBIC))


def _levels(rng: np.random.Generator, field: np.ndarray, contrast: tuple[float, float]) -> np.ndarray:
    """Map a field to (side, side) uint8 grey levels, about a random level and with a random contrast."""
    deviation = float(field.std()) + 1e-6
    return np.clip(rng.uniform(25, 225) + field * (rng.uniform(*contrast) / deviation), 0, 255).astype(np.uint8)


def _turned(rng: np.random.Generator, side: int, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x, y (side, side) float32 of a grid that is turned by a random angle and bent by up to about `bend`."""
    y, x = np.mgrid[:side, :side].astype(np.float32) - side / 2
    angle, nodes = rng.uniform(0, np.pi), int(rng.integers(2, 7))
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift = [smooth_field(rng, side, nodes) * np.float32(bend) for _ in range(2)]
    return x * cosine + y * sine + shift[0] + side / 2, y * cosine - x * sine + shift[1] + side / 2


def clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw noise of several octaves."""
    total, decay = np.zeros((side, side), np.float32), rng.uniform(0.2, 1.3)
    for octave in range(1, 8):
        columns = max(2, int(2**octave * rng.uniform(0.3, 1.5)))
        total += smooth_field(rng, side, 2**octave, columns) * 2 ** (-decay * octave)
    return _levels(rng, total, (5, 60))


def stripes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw soft or hard stripes, or checks."""
    x, y = _turned(rng, side, rng.uniform(0, 25))
    period = log_uniform(rng, 3, 60)
    wave = np.sin(x * (2 * np.pi / period))
    if rng.random() < 0.4:
        wave = np.sign(wave)
    if rng.random() < 0.3:
        wave = wave * np.sin(y * (2 * np.pi / period * rng.uniform(0.5, 2)))
    return _levels(rng, wave, (5, 65))


def fibres(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw hair, fur, wood or grass: streaks along a bent direction."""
    streaks = smooth_field(rng, side, side, max(4, int(side / rng.uniform(4, 40))))
    streaks = cv2.GaussianBlur(streaks, (0, 0), max(rng.uniform(0, 2.5), 0.3))
    x, y = _turned(rng, side, rng.uniform(5, 60))
    streaks = cv2.remap(streaks, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    shade = smooth_field(rng, side, 4) * rng.uniform(0, 1.5)
    return _levels(rng, streaks / (streaks.std() + 1e-6) + shade, (8, 45))


def folds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw cloth: ridges lit from one side."""
    height = np.zeros((side, side), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        rows = int(rng.integers(2, 9))
        field = smooth_field(rng, side, rows, max(2, int(rows * rng.uniform(0.3, 2))))
        ridged = np.abs(field) * rng.choice([-1, 1]) if rng.random() < 0.7 else field
        height += ridged.astype(np.float32) * np.float32(rng.uniform(5, 30))
    angle = rng.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(height, -1, 1, 0) * np.cos(angle) + cv2.Sobel(height, -1, 0, 1) * np.sin(angle)
    return _levels(rng, cv2.GaussianBlur(slope, (0, 0), rng.uniform(0.5, 3)), (5, 40))


def print_pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a motif that repeats, as on printed cloth and tiles."""
    small = int(rng.integers(12, 80))
    tile = np.full((small, small), rng.uniform(0, 255), np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        mask = np.zeros_like(tile)
        fill_shape(rng, mask, rng.uniform(0, small, 2), float(rng.uniform(0.08, 0.5) * small))
        paint.blend(tile, np.full_like(tile, rng.uniform(0, 255)), mask)
    if rng.random() < 0.4:
        tile = np.hstack([tile, tile[:, ::-1]])
    repeated = np.tile(tile, (side // tile.shape[0] + 2, side // tile.shape[1] + 2))
    x, y = _turned(rng, side, rng.uniform(0, 14))
    return np.asarray(cv2.remap(repeated, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def fill_shape(rng: np.random.Generator, mask: np.ndarray, centre: np.ndarray, radius: float) -> None:
    """Fill a random ellipse, polygon or bar of a mask (H, W) uint8 with 255, in place."""
    kind = rng.random()
    if kind < 0.45:
        angle = rng.uniform(0, np.pi)
        axis = np.array([np.cos(angle), np.sin(angle)]) * radius
        across = np.array([-axis[1], axis[0]]) * rng.uniform(0.25, 1)
        corners = paint.ellipse(centre, axis, across, 24)
    elif kind < 0.75:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        spokes = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1.2, (len(angles), 1))
        corners = centre + spokes * radius
    else:
        size = (2 * radius, 2 * radius * float(rng.uniform(0.1, 1)))
        corners = cv2.boxPoints(
            ((float(centre[0]), float(centre[1])), size, float(rng.choice([0, 90, rng.uniform(0, 180)])))
        )
    paint.fill(mask, np.asarray(corners))


def _draw(rng: np.random.Generator, side: int) -> np.ndarray:
    kind = rng.random()
    if kind < 0.84:
        kinds = (fibres, folds, clouds, clouds, print_pattern, stripes)
        return kinds[int(rng.integers(len(kinds)))](rng, side)
    if kind < 0.94:
        return scene.background(side, True, Draws(int(rng.integers(1 << 40)), 1)).copy()
    return np.full((side, side), rng.uniform(0, 255), np.uint8)


class TexturePool:
    """Textures that are drawn once and varied at each use, since drawing one takes longer than all else in a scene.

    Args:
        rng: Draws the textures.
        side: Of the textures, pixels.
    """

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.textures = [_draw(rng, side) for _ in range(_POOL)]

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Return a texture (side, side) uint8, mirrored and with a contrast of its own."""
        texture = self.textures[int(rng.integers(_POOL))][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.3:
            texture = texture.T
        alpha, beta = rng.uniform(0.3, 1.3), rng.uniform(-60, 80)
        return np.asarray(cv2.convertScaleAbs(np.ascontiguousarray(texture), alpha=alpha, beta=beta))
