"""The points of faces in any picture, from an .onnx file of `flr.export` alone, by ONNX Runtime.

Neither torch, Lightning, MLflow nor Hydra is needed: ``pip install flr`` brings all that this imports.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from flr.data.boxes import Offset
from flr.data.crops import CropSettings
from flr.errors import UserError
from flr.files import opened
from flr.inference.landmarker import Landmarker
from flr.landmarks.scheme import Scheme

KEY = "flr"  # of the metadata
MOST = 2**31  # bytes of a file: protobuf holds no more
LARGEST = 4096  # pixels: the side of no net's crop is larger

Finite = Annotated[float, AllowInfNan(False)]


@dataclass(frozen=True)
class About:
    """What an exported file says of itself, as JSON.

    The graph takes ``crops`` (B, size, size, channels) uint8, RGB or grey, and gives ``points`` (B, K, 2) and ``spread`` (B, K),
    how uncertain each is, float32 crop pixels, an integer being a pixel's centre: pixel values are normalised and the net's
    output is decoded inside.

    Attributes:
        version: of this form.
        scheme: of the K points, see `Scheme.plain`.
        crop: its size, channels, and which box of a face it is cut round.
        pixels: what black and white become, inside.
        offset: see `flr.data.boxes.Haar.offset`.
        mean_face: K places, crop pixels: the mean training face.
        doubt: from which on a face is to be distrusted, see `Landmarker`; None for a net that does not tell.
        precision: of the weights and products.
        tta: whether each crop is averaged with its mirror image, inside.
        run: the MLflow id.
        protocol: that the run was validated on, see `flr.data.protocol.Protocol`.
        val_nme: percent, under that protocol; None where the run's last checkpoint, which knows it, is not there.
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


class OnnxPredictor(Landmarker):
    """A net that `flr.export` wrote. Several threads may call it at once.

    Args:
        session: of ONNX Runtime.
        about: what the file says of itself.
        offset: where Haar's box puts the tight one; None where that is not known.
    """

    def __init__(self, session: onnxruntime.InferenceSession, about: About, offset: Offset) -> None:
        mean_face = np.array(about.mean_face).reshape(-1, 2)
        super().__init__(Scheme.of(about.scheme), about.crop, offset, mean_face, about.doubt)
        self.session, self.about = session, about

    @classmethod
    def load(cls, path: str | Path, threads: int = 0) -> "OnnxPredictor":
        """The net of an .onnx file, which may come from anyone: nothing outside it is read, and no code of it run.

        Args:
            path: of the file.
            threads: that work on one batch; 0 for as many as there are cores.

        Raises:
            UserError: no file of `flr.export`, or a damaged one.
        """
        mend = "name an .onnx file that python -m flr.export wrote"
        try:
            with opened(Path(path), MOST) as file:
                model = file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is our own line's to say
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as nowhere:  # an empty folder is all that the file's references reach
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", nowhere)
            try:
                session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # of a dozen kinds, which share no base
                raise UserError(f"{path}: ONNX Runtime does not load it ({error!s:.200}); {mend}") from error
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise UserError(f"{path}: an .onnx file without the metadata of flr.export; {mend}")
        try:
            about = TypeAdapter(About).validate_json(text, strict=True)
            found = cls(session, about, about.offset)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"{path}: metadata {where:.80}: {error.errors()[0]['msg']:.200}; {mend}") from error
        except UserError as error:
            raise UserError(f"{path}: metadata scheme: {error}; {mend}") from error
        size, points = about.crop.size, len(found.scheme)
        takes = [(each.name, each.type, each.shape[1:]) for each in session.get_inputs()]
        gives = [(each.name, each.type, each.shape[1:]) for each in session.get_outputs()]
        if (
            size > LARGEST
            or len(about.mean_face) != points
            or takes != [("crops", "tensor(uint8)", [size, size, about.crop.channels])]
            or gives != [("points", "tensor(float)", [points, 2]), ("spread", "tensor(float)", [points])]
        ):
            raise UserError(f"{path}: its graph is not of the form that its metadata say; {mend}")
        return found

    def run(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Landmarker.run`.

        Raises:
            UserError: the graph fails, or gives no such numbers.
        """
        try:
            points, spread = self.session.run(None, {"crops": crops})
        except Exception as error:  # as above
            raise UserError(f"the .onnx graph fails ({error!s:.200}); export the run again") from error
        shape = (len(crops), len(self.scheme))
        if points.shape != (*shape, 2) or not np.isfinite(points).all() or spread.shape != shape:
            raise UserError("the .onnx graph gives no points of these faces; export the run again")
        return np.asarray(points), np.asarray(spread)
