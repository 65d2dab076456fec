"""Faces with their points, in one style: truth green, prediction magenta, a thin yellow line for the error between.

Dots and lines are as large as the face asks for, so that they can be read on 96 pixels as on 4,000.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from flr.landmarks.outlines import is_closed, outlines_of, smooth
from flr.landmarks.scheme import Scheme

TRUTH, PREDICTION, ERROR, BOX = (60, 220, 60), (255, 0, 255), (255, 220, 0), (0, 200, 255)
SHIFT = 4  # sub-pixel bits of OpenCV's drawing
FAR = 1e5  # pixels: what lies further out is drawn there, within OpenCV's numbers


def fixed(values: np.ndarray) -> np.ndarray:
    """Pixels as OpenCV's whole numbers of `SHIFT` bits; what is no number lies far outside."""
    return np.round(np.clip(np.nan_to_num(values, nan=-FAR), -FAR, FAR) * 2**SHIFT).astype(np.int32)


def draw_points(
    canvas: np.ndarray, truth: np.ndarray | None, points: np.ndarray | None, labelled: np.ndarray, side: float,
    scheme: Scheme | None = None, lines: bool = False, indices: bool = False, dots: bool = True,
    hidden: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Draws one face's points into an image.

    Args:
        canvas: (H, W, 3) RGB uint8, changed in place.
        truth: (K, 2) its pixels, or None.
        points: (K, 2) predicted, or None.
        labelled: (K,) bool: the points whose truth is drawn.
        side: pixels of the face's crop, which the size of all goes by.
        scheme: of the points; wanted for lines alone.
        lines: whether the regions' lines are drawn through the points.
        indices: whether to write each point's number next to it.
        dots: whether the points themselves are drawn.
        hidden: (K,) bool, the predicted points that are drawn as circles rather than discs; None for none.
    """
    radius, thin = max(min(1.2, side / 90), side / 130), max(1, round(side / 400))
    everywhere = np.ones_like(labelled)
    shown = [(v, c, s) for v, c, s in ((truth, TRUTH, labelled), (points, PREDICTION, everywhere)) if v is not None]
    for values, colour, known in shown if lines and scheme is not None else ():
        for arcs in outlines_of(scheme).values():  # type: ignore[arg-type]
            at = [i for arc in arcs for i in arc]
            if known[at].all() and np.isfinite(values[at]).all():
                curve = fixed(smooth(values, arcs))
                cv2.polylines(canvas, [curve], is_closed(arcs), colour, thin, cv2.LINE_AA, SHIFT)
    if truth is not None and points is not None:
        for a, b in zip(fixed(truth)[labelled].tolist(), fixed(points)[labelled].tolist(), strict=True):
            cv2.line(canvas, a, b, ERROR, thin, cv2.LINE_AA, SHIFT)
    for values, colour, known in shown if dots else ():
        hollow = known & hidden if hidden is not None and values is points else np.zeros_like(known)
        for centre in fixed(values)[known & ~hollow].tolist():
            cv2.circle(canvas, centre, round(radius * 2**SHIFT), colour, -1, cv2.LINE_AA, SHIFT)
        for centre in fixed(values)[hollow].tolist():
            cv2.circle(canvas, centre, round(1.4 * radius * 2**SHIFT), colour, thin, cv2.LINE_AA, SHIFT)
    if indices and shown:
        values, _, known = shown[-1]
        away, size = np.array([1.3, -0.6]) * radius, max(0.28, side / 1400)
        for i in np.flatnonzero(known & np.isfinite(values).all(-1)):
            _write(canvas, str(i), np.clip(values[i] + away, -FAR, FAR), size)


def _write(canvas: np.ndarray, text: str, place: Sequence[float] | np.ndarray, size: float) -> None:
    """White words with a dark rim, their lower left corner at a place."""
    at, thin = (int(place[0]), int(place[1])), max(1, round(1.4 * size))
    for colour, thick in (((0, 0, 0), thin + max(2, round(2 * size))), ((255, 255, 255), thin)):
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)


def draw_face(
    image: np.ndarray, truth: np.ndarray | None, points: np.ndarray | None, labelled: np.ndarray, side: int,
    caption: str = "",
) -> np.ndarray:  # fmt: skip
    """One crop, enlarged, with its points.

    Args:
        image: (S, S, C) uint8, C 1 or 3.
        truth: (K, 2) crop pixels, or None.
        points: (K, 2) predicted, or None.
        labelled: (K,) bool: the points whose truth is drawn.
        side: pixels of the result.
        caption: a few words along the top.

    Returns:
        (side, side, 3) RGB uint8.
    """
    scale = side / image.shape[0]
    canvas = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    canvas = np.broadcast_to(canvas.reshape(side, side, -1), (side, side, 3)).copy()
    truth, points = ((v if v is None else (v + 0.5) * scale - 0.5) for v in (truth, points))
    draw_points(canvas, truth, points, labelled, side)
    if caption:
        _write(canvas, caption, (4, int(28 * side / 400) + 2), side / 400)
    return canvas


def draw_landmarks(
    image: np.ndarray, points: np.ndarray, boxes: np.ndarray | None = None, captions: Sequence[str] = (),
    scheme: Scheme | None = None, lines: bool = False, indices: bool = False, dots: bool = True,
    hidden: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """A whole image with all its faces.

    Args:
        image: (H, W) grey or (H, W, 3) RGB, uint8.
        points: (N, K, 2) predicted.
        boxes: (N, 4) left, top, right, bottom; none are drawn where None.
        captions: a few words a face, such as its score or number, over its box or points.
        scheme: as for `draw_points`.
        lines: as for `draw_points`.
        indices: as for `draw_points`.
        dots: as for `draw_points`.
        hidden: (N, K) bool, as for `draw_points`.

    Returns:
        (H, W, 3) RGB uint8.
    """
    height, width = image.shape[:2]
    canvas = np.broadcast_to(image.reshape(height, width, -1), (height, width, 3)).copy()
    for i, face in enumerate(points):
        with np.errstate(invalid="ignore"):
            box = boxes[i] if boxes is not None else np.concatenate([face.min(0), face.max(0)])
            span = float(np.nan_to_num(box[2:] - box[:2]).max())
        side = 1.5 * min(max(span, 0.0), 2.0 * max(canvas.shape))  # a crop is about so much larger than its box
        if boxes is not None:
            thin = max(1, round(side / 250))
            corner, other = fixed(box.reshape(2, 2)).tolist()
            cv2.rectangle(canvas, corner, other, BOX, thin, cv2.LINE_AA, SHIFT)
        known = np.ones(len(face), bool)
        draw_points(
            canvas, None, face, known, side, scheme, lines, indices, dots, None if hidden is None else hidden[i]
        )
        if i < len(captions) and captions[i]:
            size = float(np.clip(side / 400, 0.35, 3))
            x, y = np.clip(np.nan_to_num(box[:2]), 0, [canvas.shape[1], canvas.shape[0]])
            _write(canvas, captions[i], (x, max(y - 6 * size, 24 * size)), size)
    return canvas


def draw_circles(canvas: np.ndarray, points: np.ndarray, radii: np.ndarray) -> None:
    """Draw a circle with each radius (K,) round points (K, 2), pixels of the canvas; none where the radius is NaN."""
    for centre, radius in zip(points, radii, strict=True):
        if np.isfinite(radius):
            cv2.circle(canvas, fixed(centre).tolist(), round(radius * 2**SHIFT), BOX, 1, cv2.LINE_AA, SHIFT)


def sheet(faces: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Equal images (side, side, 3) laid out row by row, with a thin gap."""
    side = faces[0].shape[0]
    rows = -(-len(faces) // columns)
    out = np.full((rows * (side + 4) - 4, columns * (side + 4) - 4, 3), 255, np.uint8)
    for i, face in enumerate(faces):
        y, x = (i // columns) * (side + 4), (i % columns) * (side + 4)
        out[y : y + side, x : x + side] = face
    return out


def with_legend(image: np.ndarray, text: str) -> np.ndarray:
    """Put a line above an image (H, W, 3) that names the colours of the points, and a text."""
    bar = np.full((28, image.shape[1], 3), 255, np.uint8)
    x = 12
    for colour, label in ((TRUTH, "truth"), (PREDICTION, "prediction"), (None, text)):
        if colour:
            cv2.circle(bar, (x, 14), 5, colour, -1, cv2.LINE_AA)
            x += 12
        cv2.putText(bar, label, (x, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
        x += cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 24
    return np.concatenate([bar, image])
