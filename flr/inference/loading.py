"""From a file of a model, a checkpoint or an exported one, to a model that runs."""

import hashlib
from importlib.resources import files
from pathlib import Path

from flr.errors import UserError
from flr.inference.landmarker import Landmarker
from flr.inference.onnx import OnnxPredictor
from flr.module.checkpoints import find_checkpoint

INCLUDED = "included"  # the value of run= for the model that is part of the installation
LANDMARKS = Path(str(files("flr"))) / "assets" / "landmarks.onnx"
LANDMARKS_SHA256 = "468d4a761273b6800b08cd9e6b6ffd71b145449e86b622efd3175e76273d3f3f"


def find_model(run: str, uri: str, output: Path) -> Path:
    """Find the file of a model: the included one for ``included``, else as `flr.module.checkpoints.find_checkpoint`."""
    return LANDMARKS if run == INCLUDED else find_checkpoint(run, uri, output)


def load_file(path: Path, tta: bool | None = None, device: str = "cpu", threads: int = 0) -> Landmarker:
    """Load the model of a checkpoint or of an .onnx file that `flr.export` wrote.

    Args:
        path: The file.
        tta: See `flr.inference.predictor.Predictor.load`; null or what the .onnx file was exported with.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: Threads per batch of an .onnx file on the CPU; 0 for one per core.

    Raises:
        UserError: It is neither, the included model's file was changed, or `tta` is not what the .onnx file was exported with.
    """
    if path.suffix != ".onnx":
        from flr.inference.predictor import Predictor  # brings torch and Lightning, which .onnx files do without

        return Predictor.load(path, tta, device)
    predictor = OnnxPredictor.load(path, threads, device)
    if path == LANDMARKS and hashlib.sha256(path.read_bytes()).hexdigest() != LANDMARKS_SHA256:
        raise UserError(f"{path}: not the file of this version of flr; install flr again")
    if tta not in (None, predictor.metadata.tta):
        raise UserError(f"tta={str(tta).lower()}: {path} was exported otherwise; export it anew, or leave tta out")
    return predictor
