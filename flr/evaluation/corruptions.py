"""Corruptions of a face's image or of its box, at five severities, drawn from (seed, kind, face): what a model meets in use.

After Hendrycks and Dietterich 2019, arXiv:1903.12261; strengths are shares of the crop's side, so that models of all input
sizes meet the same.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from flr.landmarks.geometry import compose, similarity

SEVERITIES = (1, 2, 3, 4, 5)
PixelCorruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]  # a crop (S, S, C) uint8
BoxCorruption = Callable[[int, int, np.random.Generator], np.ndarray]  # a map (2, 3) between crops of a side


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blur(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian with a deviation of 1, 1.5, 2, 3 or 4 % of the side."""
    sigma = (0.01, 0.015, 0.02, 0.03, 0.04)[severity - 1] * len(crop)
    return cv2.GaussianBlur(crop, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).reshape(crop.shape)


def noise(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise with a deviation of 8, 16, 26, 38 or 52 grey levels."""
    return _uint8(crop + (8, 16, 26, 38, 52)[severity - 1] * rng.standard_normal(crop.shape))


def jpeg(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compress the crop at 128 pixels as JPEG of quality 30, 20, 12, 8 or 5."""
    side = len(crop)
    large = cv2.resize(crop, (128, 128), interpolation=cv2.INTER_LINEAR)
    data = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, (30, 20, 12, 8, 5)[severity - 1]])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if crop.shape[2] == 1 else cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.resize(decoded, (side, side), interpolation=cv2.INTER_AREA).reshape(crop.shape)


def low_light(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Take 1/2, 1/4, 1/8, 1/14 or 1/20 of the light, with the noise of so few photons and of the sensor, and brighten again."""
    gain = (2, 4, 8, 14, 20)[severity - 1]
    photons = rng.poisson(np.square(crop / 255.0) * 400 / gain) + 2 * rng.standard_normal(crop.shape)
    return _uint8(255 * np.sqrt(np.clip(photons * gain / 400, 0, 1)))


def low_resolution(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Reduce the crop to 48, 32, 24, 16 or 12 pixels and enlarge it again."""
    side, low = len(crop), (48, 32, 24, 16, 12)[severity - 1]
    small = cv2.resize(crop, (low, low), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR).reshape(crop.shape)


def occluder(crop: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Cover 4, 9, 16, 25 or 36 % of the crop by one rectangle of one colour."""
    side, ratio = len(crop), np.exp(rng.uniform(-0.5, 0.5))
    share = (0.2, 0.3, 0.4, 0.5, 0.6)[severity - 1]
    width, height = (min(side, round(side * share * factor)) for factor in (ratio, 1 / ratio))
    left, top = (int(rng.integers(side - length + 1)) for length in (width, height))
    covered = crop.copy()
    covered[top : top + height, left : left + width] = rng.integers(0, 256, crop.shape[2])
    return covered


def rotation(side: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Rotate the face by 15, 30, 45, 60 or 90 degrees to either side."""
    angle = np.radians((15, 30, 45, 60, 90)[severity - 1]) * rng.choice((-1, 1))
    return _about_centre(side, angle, 1.0, np.zeros(2))


def box_shift(side: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Shift the box by 4, 8, 12, 16 or 20 % of the crop's side in a random direction."""
    direction = rng.uniform(0, 2 * np.pi)
    way = (0.04, 0.08, 0.12, 0.16, 0.2)[severity - 1] * side
    return _about_centre(side, 0.0, 1.0, way * np.array([np.cos(direction), np.sin(direction)]))


def box_scale(side: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Make the face 1.1, 1.2, 1.3, 1.45 or 1.6 times as large in the crop, or as small."""
    return _about_centre(side, 0.0, (1.1, 1.2, 1.3, 1.45, 1.6)[severity - 1] ** rng.choice((-1, 1)), np.zeros(2))


def _about_centre(side: int, angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    centre = np.full(2, (side - 1) / 2)
    return similarity(np.array(angle), np.array(scale), centre, centre + shift)


PIXELS: Mapping[str, PixelCorruption] = {
    "blur": blur, "noise": noise, "jpeg": jpeg, "low_light": low_light, "low_resolution": low_resolution,
    "occluder": occluder,
}  # fmt: skip
BOXES: Mapping[str, BoxCorruption] = {"rotation": rotation, "box_shift": box_shift, "box_scale": box_scale}
KINDS = (*PIXELS, *BOXES)


def generator(seed: int, kind: str, row: int) -> np.random.Generator:
    """Return the generator of a face's draws, the same at each severity: a stronger blow falls in the same place."""
    return np.random.default_rng([seed, KINDS.index(kind), row])


def corrupt_pixels(crops: np.ndarray, kind: str, severity: int, seed: int, rows: np.ndarray) -> np.ndarray:
    """Corrupt crops (N, S, S, C) uint8 of the table's rows (N,)."""
    corruption = PIXELS[kind]
    return np.stack(
        [corruption(one, severity, generator(seed, kind, int(row))) for one, row in zip(crops, rows, strict=True)]
    )


def corrupt_boxes(to_crop: np.ndarray, side: int, kind: str, severity: int, seed: int, rows: np.ndarray) -> np.ndarray:
    """Corrupt maps (N, 2, 3) from image to crop pixels of the table's rows (N,)."""
    maps = np.stack([BOXES[kind](side, severity, generator(seed, kind, int(row))) for row in rows])
    return compose(maps, to_crop)
