"""What a camera and a file do to an image: exposure, colour, blur, noise, compression."""

from typing import Any

import cv2
import numpy as np

from flr.data.synthetic.draws import Draws
from flr.data.synthetic.paint import cut
from flr.data.synthetic.scene import clouds, grain, textures

_LEVELS = np.arange(256, dtype=np.float32) / 255


def develop(canvas: np.ndarray, span: float, channels: int, d: Draws) -> np.ndarray:
    """Turns the painted `canvas` (H, W, 3) uint8 into a photo, (H, W) or (H, W, 3) uint8.

    Args:
        canvas: the image.
        span: the face's width in pixels; the blur grows with it.
        channels: 1 grey, 3 RGB.
        d: the face's random numbers.
    """
    size = canvas.shape[0]
    blur = (d.uniform(0.3, 0.75), d.uniform(0.6, 1.5), d.uniform(1.2, 2.4))[d.pick((0.6, 0.28, 0.12))] * span / 100
    gain, gamma, pivot = d.uniform(0.8, 1.3), np.exp(d.normal(0, 0.28)), d.uniform(100, 150)
    offset = d.normal(0, 14)
    cast, grey = 1 + d.normals(3, 0.07), d.chance(0.12)
    noise = d.uniform(0, 1) ** 2 * 0.25
    x, y = int(d.uniform(0, 1) * 256), int(d.uniform(0, 1) * 256)
    quality = int(d.uniform(30, 97))
    blotch, tile = d.uniform(0, 0.16), d.pick([1] * len(textures()))

    image: Any = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY) if channels == 3 and grey else canvas
    cloud = cut((clouds() if image.ndim == 2 else textures())[tile], size, size)
    # Uneven skin, light and sensor: a faint texture over everything.
    image = cv2.addWeighted(image, 1.0, cloud, blotch, -128 * blotch)
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    curve = _LEVELS**gamma * 255
    curve = (curve - pivot) * gain + pivot + offset
    # Shoulders instead of clipping.
    curve = np.minimum(np.maximum(curve, 0), 255) * 0.9 + 12.75 + 12.75 * np.tanh((curve - 128) / 100)
    tables = np.minimum(np.maximum(curve[:, None] * (cast if image.ndim == 3 else 1), 0), 255)
    image = cv2.LUT(image, tables.astype(np.uint8).reshape(1, 256, -1))
    field = cut(grain(), size, size, y, x)
    if image.ndim == 3:
        field = cv2.merge([field, field, field])
    image = cv2.addWeighted(image, 1.0, field, noise, -128 * noise)
    code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    image = cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
    if channels == 3 and image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image
