"""From a file of a model, a checkpoint or an exported one, to a model that runs."""

from pathlib import Path

from flr.errors import UserError
from flr.inference.landmarker import Landmarker
from flr.inference.onnx import OnnxPredictor


def load_file(path: Path, tta: bool | None = None, device: str = "cpu") -> Landmarker:
    """Load the model of a checkpoint or of an .onnx file that `flr.export` wrote, on ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        UserError: It is neither, or `tta` is not what the .onnx file was exported with.
    """
    if path.suffix != ".onnx":
        from flr.inference.predictor import Predictor  # brings torch and Lightning, which .onnx files do without

        return Predictor.load(path, tta, device)
    predictor = OnnxPredictor.load(path, device=device)
    if tta not in (None, predictor.metadata.tta):
        raise UserError(f"tta={str(tta).lower()}: {path} was exported otherwise; export it anew, or leave tta out")
    return predictor
