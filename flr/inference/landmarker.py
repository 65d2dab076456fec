"""From pictures and boxes to points, whatever runs the net: crop, net, and back to the picture. Needs no torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flr.data.boxes import Offset
from flr.data.crops import CropSettings, crop
from flr.errors import UserError
from flr.inference.detector import HaarFaces, WholePicture
from flr.landmarks.geometry import invert, transform
from flr.landmarks.scheme import Scheme

BATCH = 64  # faces that run at once
FAR = 1e6  # pixels: no box reaches so far, and none is smaller than the inverse
LONGEST = 2**15 - 2  # pixels a side: OpenCV warps no larger picture


class Landmarker(ABC):
    """A net with what stands before and behind it.

    Args:
        scheme: of the K points.
        crop: what the net sees.
        offset: where Haar's box puts the tight one (see `flr.data.boxes.Haar.offset`); None where that is not known.
        mean_face: (K, 2) crop pixels: the mean training face.
    """

    def __init__(self, scheme: Scheme, crop: CropSettings, offset: Offset, mean_face: np.ndarray) -> None:
        self.scheme, self.crop, self.offset, self.mean_face = scheme, crop, offset, mean_face

    @abstractmethod
    def run(self, crops: np.ndarray) -> np.ndarray:
        """(B, K, 2) crop pixels of crops (B, size, size, C) uint8."""

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """The points of N faces.

        Args:
            images: N pictures, (H, W) grey or (H, W, 3) RGB, uint8, each of any size; one of two faces stands twice.
            boxes: (N, 4) left, top, right, bottom in pixels of those pictures, an integer being a pixel's centre. What
                they hold is what the run's box policy cut: for ``source=truth`` the tight box of the points.

        Returns:
            (N, K, 2) float64, in pixels of the pictures.

        Raises:
            UserError: a picture or box that is none, or not one box a picture.
        """
        boxes = np.asarray(boxes, np.float64)
        if boxes.shape != (len(images), 4):
            raise UserError(f"{len(images)} picture(s) and boxes of shape {boxes.shape}: give one box (N, 4) a picture")
        for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
            refuse_odd(image, i)
            if not (abs(box).max() < FAR and (box[2:] - box[:2] > 1 / FAR).all()):
                raise UserError(
                    f"box {i} is {box.tolist()}; give left, top, right, bottom in pixels, with right and bottom larger"
                )
        size, channels = self.crop.size, self.crop.channels
        affine = self.crop.policy.crop(boxes, size)
        found = [np.zeros((0, len(self.scheme), 2))]
        for at in range(0, len(boxes), BATCH):
            some = range(at, min(at + BATCH, len(boxes)))
            found.append(self.run(np.stack([crop(images[i], affine[i], size, channels) for i in some])))
        return transform(invert(affine), np.concatenate(found).astype(np.float64))

    def detect(self, image: np.ndarray) -> np.ndarray:
        """(M, 4) boxes of a picture's faces, the largest first, as this net wants them; none where none is found.

        OpenCV's Haar cascade finds them; a net of ``policy.source=picture`` takes the whole picture as one face.

        Raises:
            UserError: it is not known where the points lie in a detected box.
        """
        policy = self.crop.policy
        refuse_odd(image, 0)
        finder = WholePicture() if policy.source == "picture" else HaarFaces(policy.haar.step, policy.haar.neighbours)
        return finder(image, "", self)[0]


def refuse_odd(image: np.ndarray, i: int) -> None:
    """Raises `UserError` where picture `i` is none."""
    if not isinstance(image, np.ndarray):
        raise UserError(f"picture {i} is a {type(image).__name__}; give an array (H, W) or (H, W, 3) RGB, uint8")
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"picture {i} is {image.dtype} of shape {image.shape}; give (H, W) or (H, W, 3) RGB, uint8")
    if max(image.shape) > LONGEST:
        raise UserError(
            f"picture {i} is {image.shape[1]} x {image.shape[0]}; give one of at most {LONGEST} pixels a side"
        )


def load(path: Path, tta: bool | None) -> Landmarker:
    """The net of a checkpoint, or of a file of `flr.export`.

    Raises:
        UserError: it is neither, or an exported net is to be averaged otherwise than it was exported.
    """
    if path.suffix != ".onnx":
        from flr.inference.predictor import Predictor

        return Predictor.load(path, tta)
    from flr.inference.onnx import OnnxPredictor

    found = OnnxPredictor.load(path)
    if tta not in (None, found.about.tta):
        raise UserError(f"tta={str(tta).lower()}: {path} was exported otherwise; export it anew, or leave tta out")
    return found
