"""The faces of an image in one call. Needs no torch."""

import functools
from pathlib import Path

import numpy as np

from flr.data.images import read_image
from flr.inference.detectors import BuiltinDetector, Detector
from flr.inference.faces import Face
from flr.inference.faces import find_faces as find
from flr.inference.landmarker import Landmarker, validate_image
from flr.inference.loading import LANDMARKS, load_file


@functools.cache
def _included_model() -> Landmarker:
    return load_file(LANDMARKS)


def find_faces(
    image: str | Path | np.ndarray, model: Landmarker | None = None, detector: Detector | None = None, refine: int = 1
) -> list[Face]:
    """Find the faces of an image and their points.

    Args:
        image: File of an image, or (H, W) or (H, W, 3) RGB uint8.
        model: Model that finds the points, such as ``OnnxPredictor.load("model.onnx")``; None for the included one.
        detector: Detector that finds the faces; None for the built-in one.
        refine: Number of refinement passes (see `flr.inference.landmarker.Landmarker.find`).

    Returns:
        The faces, the best first. Points and boxes are image pixels; an integer is a pixel's centre.

    Raises:
        UserError: The image cannot be read, or is no such array.

    Example:
        >>> import numpy as np
        >>> import flr
        >>> flr.find_faces(np.zeros((100, 100), np.uint8))
        []
    """
    pixels = read_image(Path(image), upright=True) if isinstance(image, str | Path) else image
    validate_image(pixels, 0)
    return find(model or _included_model(), detector or BuiltinDetector(), pixels, refine=refine)
