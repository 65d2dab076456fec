"""The points of faces in any picture, from a checkpoint alone: crop, net, decode, and back to the picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flr.checkpoints import load_checkpoint
from flr.config import Net, as_config, build, check, reassemble
from flr.data.boxes import OFFSETS, Offset, from_detection
from flr.data.crops import CropSettings, crop
from flr.errors import UserError
from flr.landmarks.geometry import invert, transform
from flr.landmarks.scheme import Scheme
from flr.module import LandmarkModule

BATCH = 64  # faces that run at once
FAR = 1e6  # pixels: no box reaches so far, and none is smaller than the inverse
LONGEST = 2**15 - 2  # pixels a side: OpenCV warps no larger picture


class Predictor:
    """A trained net that sees pictures as its evaluation saw them. Several threads may call it at once.

    Args:
        module: the net, its objective and scheme; put into its evaluating state.
        crop: what the net sees.
        pixels: what black and white become.
        offset: where Haar's box puts the tight one (see `flr.data.boxes.Haar.offset`); None where that is not known.
        half: whether the net's products are of bf16, as ``trainer.precision=bf16-mixed`` had them.
        device: where the net runs.
    """

    def __init__(
        self, module: LandmarkModule, crop: CropSettings, pixels: tuple[float, float], offset: Offset,
        half: bool = False, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.module = module.eval().requires_grad_(False).to(device)
        self.crop, self.pixels, self.offset, self.half = crop, pixels, offset, half

    @classmethod
    def load(cls, path: str | Path, tta: bool | None = None, device: str = "cpu") -> "Predictor":
        """The net of a checkpoint.

        Args:
            path: of the file.
            tta: whether each picture is averaged with its mirror image; None for what the run was trained with.
            device: where it runs.

        Raises:
            UserError: no checkpoint of this project, or it would build what it may not (see `flr.config.check`).
        """
        path = Path(path)
        checkpoint = load_checkpoint(path)
        about, values = checkpoint["flr"], checkpoint["flr"]["config"]
        data, trainer = (dict(values[key]) if isinstance(values.get(key), dict) else {} for key in ("data", "trainer"))
        kept = {key: values.get(key) for key in ("seed", "ema", "tta", "model", "objective", "optim", "schedule")}
        own = as_config(kept | {key: data.get(key) for key in ("crop", "pixels")} | {"offset": about.get("offset")})
        check(own, Net, trusted=False)
        scheme, settings = Scheme.of(about["scheme"]), build(own.crop)
        module = reassemble(own, scheme, settings, checkpoint, path)
        if tta is not None:
            module.tta = tta
        offset = OFFSETS.get(scheme.name) if settings.policy.source == "truth" else own.offset
        # 16-mixed is for devices that have it, and no evaluation on another one would take it either.
        half = trainer.get("precision") == "bf16-mixed"
        return cls(module, settings, tuple(own.pixels), offset, half, device)

    @property
    def scheme(self) -> Scheme:
        """Of the K points."""
        return self.module.scheme

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
            _refuse_odd(image, i)
            if not (abs(box).max() < FAR and (box[2:] - box[:2] > 1 / FAR).all()):
                raise UserError(
                    f"box {i} is {box.tolist()}; give left, top, right, bottom in pixels, with right and bottom larger"
                )
        size, channels = self.crop.size, self.crop.channels
        affine = self.crop.policy.crop(boxes, size)
        found = [np.zeros((0, len(self.scheme), 2))]
        for at in range(0, len(boxes), BATCH):
            some = range(at, min(at + BATCH, len(boxes)))
            found.append(self._run(np.stack([crop(images[i], affine[i], size, channels) for i in some])))
        return transform(invert(affine), np.concatenate(found))

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> np.ndarray:
        """(B, K, 2) crop pixels of crops (B, size, size, C) uint8."""
        device, (low, high) = self.module.device, self.pixels
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
        images = (images * (high - low) + low).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            return self.module(images).double().cpu().numpy()

    def detect(self, image: np.ndarray) -> np.ndarray:
        """(M, 4) boxes of a picture's faces, the largest first, as this net wants them; none where none is found.

        OpenCV's Haar cascade finds them; a net of ``policy.source=picture`` takes the whole picture as one face.

        Raises:
            UserError: it is not known where the points lie in a detected box.
        """
        policy = self.crop.policy
        _refuse_odd(image, 0)
        if policy.source == "picture":
            return np.array([[-0.5, -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5]])
        if self.offset is None:
            raise UserError(
                f"no detector is known to find the boxes of policy {policy} for {self.scheme.name}; give boxes"
            )
        found = policy.haar.detect(image)
        return from_detection(found[np.argsort(found[:, 0] - found[:, 2], kind="stable")], self.offset)


def _refuse_odd(image: np.ndarray, i: int) -> None:
    if not isinstance(image, np.ndarray):
        raise UserError(f"picture {i} is a {type(image).__name__}; give an array (H, W) or (H, W, 3) RGB, uint8")
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"picture {i} is {image.dtype} of shape {image.shape}; give (H, W) or (H, W, 3) RGB, uint8")
    if max(image.shape) > LONGEST:
        raise UserError(
            f"picture {i} is {image.shape[1]} x {image.shape[0]}; give one of at most {LONGEST} pixels a side"
        )
