"""Find the points of faces in any image with an .onnx file of `flr.export` alone, by ONNX Runtime.

Neither torch, Lightning, MLflow nor Hydra is needed: ``pip install flr`` brings all that this module imports.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from flr.data.crops import CropSettings
from flr.data.onnx_file import open_onnx
from flr.errors import UserError
from flr.inference.landmarker import Landmarker
from flr.landmarks.definition import parse_scheme
from flr.system import split_device

METADATA_KEY = "flr"
MAX_BYTES = 2**31  # of a file: protobuf holds no more
MAX_CROP = 4096  # pixels a side
PROVIDERS = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}

HINT = "name an .onnx file that python -m flr.export wrote"

Finite = Annotated[float, AllowInfNan(False)]


@dataclass(frozen=True)
class ExportMetadata:
    """Metadata of an exported file, stored as JSON.

    The graph maps ``crops`` (B, size, size, channels) uint8, RGB or grey, to ``points`` (B, K, 2) and their uncertainty
    ``spread`` (B, K), float32 crop pixels; an integer is a pixel's centre; and to ``visible`` (B, K), the probability that
    each point is visible, where the model gives it. The graph normalises pixel values and decodes the network's output.

    Attributes:
        version: Version of this format.
        scheme: Scheme of the K points (see `Scheme.plain`).
        crop: Size, channels and box policy of the input.
        pixels: Values of black and white, inside the graph.
        offset: See `flr.data.boxes.Haar.offset`.
        mean_face: K points, crop pixels: the mean training face.
        radius90: The ``radius_factors`` of `Landmarker`, None where unknown; files of earlier versions have none.
        doubt: The ``uncertainty_threshold`` of `Landmarker`, under the name that files of this version have for it.
        precision: Precision of the weights and products.
        tta: Whether each crop is averaged with its mirror image, inside the graph.
        run: MLflow id of the run.
        protocol: Protocol of the run's validation (see `flr.data.datamodule.Protocol`).
        val_nme: Percent, under that protocol; None where the run's last checkpoint, which has it, was missing.
    """

    version: Literal[2]
    scheme: dict[str, Any]
    crop: CropSettings
    pixels: tuple[Finite, Finite]
    offset: tuple[Finite, Finite, Finite, Finite] | None
    mean_face: list[tuple[Finite, Finite]]
    doubt: Finite | None
    precision: Literal["fp32", "fp16", "int8"]
    tta: bool
    run: str | None
    protocol: dict[str, Any]
    val_nme: float | None
    radius90: list[Finite | None] | None = None


class OnnxPredictor(Landmarker):
    """A model that `flr.export` wrote. Several threads may call it at once."""

    def __init__(self, session: onnxruntime.InferenceSession, metadata: ExportMetadata) -> None:
        mean_face = np.array(metadata.mean_face).reshape(-1, 2)
        factors = None if metadata.radius90 is None else np.array(metadata.radius90, np.float64)
        scheme = parse_scheme(metadata.scheme)
        super().__init__(scheme, metadata.crop, metadata.offset, mean_face, metadata.doubt, factors)
        self.session, self.metadata = session, metadata

    @classmethod
    def load(cls, path: str | Path, threads: int = 0, device: str = "cpu") -> "OnnxPredictor":
        """Load an .onnx file, which may come from anyone: nothing outside the file is read, and no code of it is run.

        Args:
            path: The file.
            threads: Number of threads per batch; 0 for one per core.
            device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for a GPU that the installed ONNX Runtime can use.

        Raises:
            UserError: Not a file of `flr.export`, or a damaged one.
        """
        file = open_onnx(Path(path), METADATA_KEY, MAX_BYTES, HINT, threads, execution_providers(device))
        try:
            predictor = cls(file.session, TypeAdapter(ExportMetadata).validate_json(file.metadata, strict=True))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"{path}: metadata {where:.80}: {error.errors()[0]['msg']:.200}; {HINT}") from error
        except UserError as error:
            raise UserError(f"{path}: metadata scheme: {error}; {HINT}") from error
        if not predictor._fits_graph():
            raise UserError(f"{path}: its graph does not have the shapes that its metadata state; {HINT}")
        return predictor

    def _fits_graph(self) -> bool:
        size, points = self.crop.size, len(self.scheme)
        inputs = [(each.name, each.type, each.shape[1:]) for each in self.session.get_inputs()]
        outputs = [(each.name, each.type, each.shape[1:]) for each in self.session.get_outputs()]
        return (
            size <= MAX_CROP
            and len(self.mean_face) == points
            and (self.radius_factors is None or len(self.radius_factors) == points)
            and inputs == [("crops", "tensor(uint8)", [size, size, self.crop.channels])]
            and outputs[:2] == [("points", "tensor(float)", [points, 2]), ("spread", "tensor(float)", [points])]
            and outputs[2:] in ([], [("visible", "tensor(float)", [points])])
        )

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run the model, as `Landmarker.run`.

        Raises:
            UserError: The graph fails, or its output is not finite or has another shape.
        """
        try:
            points, spread, *rest = self.session.run(None, {"crops": crops})
        except Exception as error:  # of a dozen classes without a common base
            raise UserError(f"the .onnx graph fails ({error!s:.200}); export the run again") from error
        shape = (len(crops), len(self.scheme))
        visible = rest[0] if rest else np.full(shape, np.nan)
        if points.shape != (*shape, 2) or not np.isfinite(points).all() or not spread.shape == visible.shape == shape:
            raise UserError("the .onnx graph gives no points of these faces; export the run again")
        return np.asarray(points), np.asarray(spread), np.asarray(visible)


def execution_providers(device: str) -> list[Any]:
    """List the execution providers of a device, the CPU's last; print a note where ONNX Runtime lacks the one asked for."""
    kind, number = split_device(device)
    installed = onnxruntime.get_available_providers()
    wanted = [PROVIDERS[kind]] if kind in PROVIDERS else list(PROVIDERS.values()) if kind == "auto" else []
    found = [name for name in wanted if name in installed][:1]
    if kind in PROVIDERS and not found:
        package = "onnxruntime-gpu in place of onnxruntime" if kind == "cuda" else "onnxruntime on macOS"
        print(f"note: device={device}: ONNX Runtime runs on the CPU here; a GPU needs {package}", file=sys.stderr)
    return [name if number is None else (name, {"device_id": number}) for name in found] + ["CPUExecutionProvider"]
