"""Areas of a face, from its outlines, and how they are drawn with smooth edges."""

from collections.abc import Sequence

import cv2
import numpy as np

from flr.landmarks.draw import FAR, SHIFT
from flr.landmarks.outlines import Arcs, is_closed, outlines_of, smooth
from flr.landmarks.scheme import Scheme

Window = tuple[slice, slice]  # rows and columns of an image

SUPERSAMPLED_SIDE = 2048  # sub-pixels of a small window's side, for smooth edges
# Extent of a brow above and below its line, over the line's length, where a scheme has one line: the brow's upper edge.
BROW = 0.05, 0.12


def areas_of(scheme: Scheme) -> dict[str, Arcs]:
    """Return the closed outlines of a scheme, and brows of which it has one line."""
    return {name: arcs for name, arcs in outlines_of(scheme).items() if is_closed(arcs) or name.endswith("_brow")}


@np.errstate(invalid="ignore", divide="ignore")  # of points that are not finite, which `window_of` rejects
def area(points: np.ndarray, arcs: Arcs) -> np.ndarray:
    """Return the polygon (M, 2) of a closed outline of points (K, 2); of an open one a strip along it with pointed ends."""
    curve = smooth(points, arcs)
    if is_closed(arcs):
        return curve
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    length = np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()
    height = length * np.sqrt(np.sin(np.linspace(0, np.pi, len(curve))))[:, None]
    across = height * np.nan_to_num(along[:, ::-1]) * [-1, 1]
    if (across * (points.mean(0) - curve)).sum() < 0:  # to the inside of the face
        across = -across
    above, below = BROW
    return np.concatenate([curve - above * across, (curve + below * across)[::-1]])


def whole_face(points: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Return a polygon (M, 2) around the whole face with its forehead: the hull of the points and an oval.

    The oval follows from eyes and mouth alone, so that few points suffice. Its width is the larger of the distances between
    the eyes and from eyes to mouth, since the eyes come closer in a turned head. For a scheme without eyes and mouth, the
    polygon is the hull of the points, enlarged by half.
    """
    if scheme.name != "celeba5" and "celeba5" not in scheme.reductions:
        hull = hull_of(points)
        return hull.mean(0) + 1.5 * (hull - hull.mean(0))
    right, left, _, *mouth = scheme.reduce(points, "celeba5")
    eyes, lips = (right + left) / 2, (mouth[0] + mouth[1]) / 2
    down = lips - eyes
    height = float(np.linalg.norm(down))
    width = max(float(np.linalg.norm(left - right)), height)
    down = down / height if height > 0 else np.array([0.0, 1.0])
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)[:, None]
    centre = eyes + 0.35 * width * down
    oval = centre + 1.6 * width * np.cos(angle) * down + 1.3 * width * np.sin(angle) * np.array([-down[1], down[0]])
    return hull_of(np.concatenate([points, oval]))


def hull_of(points: np.ndarray) -> np.ndarray:
    """Return the convex hull (M, 2) of points (N, 2)."""
    return points[cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]]


def is_drawable(points: np.ndarray) -> bool:
    """Return whether points (..., 2) can be drawn: finite, not all in one place, and within OpenCV's range."""
    return bool(np.isfinite(points).all() and abs(points).max() < FAR and np.ptp(points, axis=0).max() >= 1)


def window_of(image: np.ndarray, areas: Sequence[np.ndarray]) -> Window | None:
    """Return the pixels that areas (M, 2) can touch; None where all lie outside the image."""
    points = np.concatenate(areas)
    if not is_drawable(points):
        return None
    low = np.maximum(np.floor(points.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 2, image.shape[1::-1])
    return (slice(low[1], high[1]), slice(low[0], high[0])) if (low < high).all() else None


def cover(areas: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """Return the share of each pixel of a window that areas (M, 2) cover: (h, w) float32 from 0 to 1."""
    height, width = (side.stop - side.start for side in window)
    scale = int(np.clip(SUPERSAMPLED_SIDE // max(height, width), 1, 8))
    canvas = np.zeros((height * scale, width * scale), np.uint8)
    for polygon in areas:
        scaled = (polygon - [window[1].start, window[0].start] + 0.5) * scale - 0.5
        cv2.fillPoly(canvas, [np.round(scaled * 2**SHIFT).astype(np.int32)], 255, cv2.LINE_AA, SHIFT)
    return cv2.resize(canvas.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) / 255
