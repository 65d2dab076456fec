"""Find the points of faces in any image with a checkpoint alone, by torch."""

from pathlib import Path

import numpy as np
import torch

from flr.config.compose import as_config
from flr.config.instantiate import build
from flr.config.schema import Net
from flr.config.validate import check
from flr.data.boxes import OFFSETS, Offset
from flr.data.crops import CropSettings
from flr.inference.landmarker import Landmarker
from flr.landmarks.definition import parse_scheme
from flr.module.assembly import reassemble
from flr.module.checkpoints import load_checkpoint
from flr.module.device import find_device
from flr.module.landmark_module import LandmarkModule


class Predictor(Landmarker):
    """A trained model that gets images as its evaluation did. Several threads may call it at once.

    Args:
        module: The network, its objective and scheme; put into evaluation mode.
        crop: Size, channels and box policy of the model's input.
        pixels: Values of black and white.
        offset: Position of the tight box in Haar's box (see `flr.data.boxes.Haar.offset`); None where it is not known.
        half: Whether the network multiplies in bf16, as with ``trainer.precision=bf16-mixed``.
        device: Device on which the network runs, see `find_device`.
        uncertainty_threshold: See `Landmarker`.
    """

    def __init__(
        self, module: LandmarkModule, crop: CropSettings, pixels: tuple[float, float], offset: Offset,
        half: bool = False, device: str = "cpu", uncertainty_threshold: float | None = None,
    ) -> None:  # fmt: skip
        mean_face = module.mean_face.double().cpu().numpy()
        super().__init__(module.scheme, crop, offset, mean_face, uncertainty_threshold, module.radius_factors)
        self.module = module.eval().requires_grad_(False).to(find_device(device))
        self.pixels, self.half = pixels, half

    @classmethod
    def load(cls, path: str | Path, tta: bool | None = None, device: str = "cpu") -> "Predictor":
        """Load the model of a checkpoint.

        Args:
            path: The checkpoint file.
            tta: Whether each image is averaged with its mirror image; None for the setting of the run.
            device: Device on which the network runs, see `find_device`.

        Raises:
            UserError: Not a checkpoint of this project, or one that would build what it may not (see `flr.config.validate.check`).
        """
        path = Path(path)
        checkpoint = load_checkpoint(path)
        stored, values = checkpoint["flr"], checkpoint["flr"]["config"]
        data, trainer = (dict(values[key]) if isinstance(values.get(key), dict) else {} for key in ("data", "trainer"))
        nodes = {key: values.get(key) for key in ("seed", "ema", "tta", "model", "objective", "optim", "schedule")}
        nodes["debias"] = bool(values.get("debias"))  # configs of older runs lack it
        nodes |= {key: data.get(key) for key in ("crop", "pixels")}
        nodes |= {key: stored.get(key) for key in ("offset", "doubt", "radius90")}
        config = as_config(nodes)
        check(config, Net, trusted=False)
        scheme, crop = parse_scheme(stored["scheme"]), build(config.crop)
        module = reassemble(config, scheme, crop, checkpoint, path)
        if tta is not None:
            module.tta = tta
        # The stored offset is that of the detector of the training's crops.
        offset = OFFSETS.get(scheme.name) if crop.policy.source in ("truth", "detector") else config.offset
        # 16-mixed is for devices that have it, and no evaluation on another one would take it either.
        half = trainer.get("precision") == "bf16-mixed"
        return cls(module, crop, tuple(config.pixels), offset, half, device, config.doubt)

    @torch.inference_mode()
    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run the model, as `Landmarker.run`."""
        device, (low, high) = self.module.device, self.pixels
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
        images = (images * (high - low) + low).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            points, spread, visible = (each.cpu().double().numpy() for each in self.module.predict_points(images))
        return points, spread, visible
