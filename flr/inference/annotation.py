"""Images with their faces drawn on them."""

from collections.abc import Iterable, Sequence

import numpy as np

from flr.inference.effects.base import Effect, apply
from flr.inference.faces import VISIBLE, Face
from flr.landmarks.draw import draw_circles, draw_landmarks
from flr.landmarks.scheme import Scheme


def annotate(
    image: np.ndarray, faces: Sequence[Face], scheme: Scheme, effects: Iterable[Effect], draw: Sequence[str] | None
) -> np.ndarray:
    """Draw the faces of an image.

    Args:
        image: (H, W) or (H, W, 3) RGB uint8.
        faces: Faces to draw.
        scheme: Scheme of their points.
        effects: Effects on each face, one after another; one that makes a label image is skipped.
        draw: Any of boxes, points, lines, indices, radius90; None for boxes and points where there is no effect.

    Returns:
        (H, W, 3) RGB uint8.
    """
    image = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    effects = [effect for effect in effects if not effect.makes_labels]
    points = np.array([face.points for face in faces]).reshape(-1, len(scheme), 2)
    image = apply(effects, image, points, scheme)
    if draw is None:
        draw = [] if effects else ["boxes", "points"]
    if not draw:
        return image
    boxes = np.array([face.box for face in faces]).reshape(-1, 4) if "boxes" in draw else None
    captions = [_caption(face) for face in faces]
    lines, indices, dots = (word in draw for word in ("lines", "indices", "points"))
    hidden = np.array([face.visible < VISIBLE for face in faces]).reshape(points.shape[:2])
    drawn = draw_landmarks(image, points, boxes, captions, scheme, lines, indices, dots=dots, hidden=hidden)
    if "radius90" in draw:
        for face in faces:
            draw_circles(drawn, face.points, face.radius90)
    return drawn


def _caption(face: Face) -> str:
    score = f"{face.score:.2f}" if face.score < 1 else ""
    return (score if face.identity is None else str(face.identity)) + "?" * face.uncertain
