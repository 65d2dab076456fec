"""The points of faces in any picture, from a checkpoint alone: crop, net, decode, and back to the picture."""

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
from flr.landmarks.scheme import Scheme
from flr.module.assembly import reassemble
from flr.module.checkpoints import load_checkpoint
from flr.module.landmark_module import LandmarkModule


class Predictor(Landmarker):
    """A trained net that sees pictures as its evaluation saw them. Several threads may call it at once.

    Args:
        module: the net, its objective and scheme; put into its evaluating state.
        crop: what the net sees.
        pixels: what black and white become.
        offset: where Haar's box puts the tight one (see `flr.data.boxes.Haar.offset`); None where that is not known.
        half: whether the net's products are of bf16, as ``trainer.precision=bf16-mixed`` had them.
        device: where the net runs.
        doubt: from which on a face is to be distrusted, see `Landmarker`.
    """

    def __init__(
        self, module: LandmarkModule, crop: CropSettings, pixels: tuple[float, float], offset: Offset,
        half: bool = False, device: str = "cpu", doubt: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(module.scheme, crop, offset, module.mean_face.double().cpu().numpy(), doubt)
        self.module = module.eval().requires_grad_(False).to(device)
        self.pixels, self.half = pixels, half

    @classmethod
    def load(cls, path: str | Path, tta: bool | None = None, device: str = "cpu") -> "Predictor":
        """The net of a checkpoint.

        Args:
            path: of the file.
            tta: whether each picture is averaged with its mirror image; None for what the run was trained with.
            device: where it runs.

        Raises:
            UserError: no checkpoint of this project, or it would build what it may not (see `flr.config.validate.check`).
        """
        path = Path(path)
        checkpoint = load_checkpoint(path)
        about, values = checkpoint["flr"], checkpoint["flr"]["config"]
        data, trainer = (dict(values[key]) if isinstance(values.get(key), dict) else {} for key in ("data", "trainer"))
        kept = {key: values.get(key) for key in ("seed", "ema", "tta", "model", "objective", "optim", "schedule")}
        kept |= {key: data.get(key) for key in ("crop", "pixels")} | {
            key: about.get(key) for key in ("offset", "doubt")
        }
        own = as_config(kept)
        check(own, Net, trusted=False)
        scheme, settings = Scheme.of(about["scheme"]), build(own.crop)
        module = reassemble(own, scheme, settings, checkpoint, path)
        if tta is not None:
            module.tta = tta
        offset = OFFSETS.get(scheme.name) if settings.policy.source == "truth" else own.offset
        # 16-mixed is for devices that have it, and no evaluation on another one would take it either.
        half = trainer.get("precision") == "bf16-mixed"
        return cls(module, settings, tuple(own.pixels), offset, half, device, own.doubt)

    @torch.inference_mode()
    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device, (low, high) = self.module.device, self.pixels
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
        images = (images * (high - low) + low).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            points, spread = self.module.look(images)
        return points.double().cpu().numpy(), spread.double().cpu().numpy()
