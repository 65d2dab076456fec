"""The detector's file: a network of `flr.detection`, run by ONNX Runtime."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from flr.data.onnx_file import open_onnx
from flr.errors import UserError

METADATA_KEY = "flr_detector"
MAX_BYTES = 2**26
BUILTIN = Path(__file__).parent.parent.parent / "assets" / "detector.onnx"
BUILTIN_SHA256 = "2682682fc9c2a5ddf58df378990a55275acb44bc5ba716e7dc0d2a415d66ee1c"

Finite = Annotated[float, AllowInfNan(False)]


@dataclass(frozen=True)
class DetectorMetadata:
    """Metadata of a detector's file, stored as JSON.

    The graph maps ``image`` (1, 1, H, W) float32, grey levels of 0 to 255, to ``maps`` (1, 4, h, w), see
    `flr.data.finders.votes.Network`.

    Attributes:
        version: Version of this format.
        threshold: Lowest score of a face, see `flr.data.finders.votes.merge`.
        offsets: By scheme, the tight box of its points in units of the detected square, see `flr.data.boxes.Haar.offset`.
        trained: How the network was trained: seed, commit, scenes.
    """

    version: Literal[1]
    threshold: Annotated[Finite, Ge(0)]
    offsets: dict[str, tuple[Finite, Finite, Finite, Finite]]
    trained: dict[str, str | int | float]


class FaceNetwork:
    """Find faces with a detector's file. Several threads may call it at once.

    Args:
        path: The file, which may come from anyone: nothing outside it is read, and no code of it is run.
        threads: Threads of one image; 0 for one per core.

    Attributes:
        metadata: Of the file.
        digest: SHA-256 of the file.

    Raises:
        UserError: Not a detector's file, or a damaged one.
    """

    def __init__(self, path: Path, threads: Annotated[int, Ge(0)] = 1) -> None:
        hint = "name a file that python -m flr.train_detector wrote"
        # Each level of the pyramid has its own shape.
        self.session, text, self.digest = open_onnx(path, METADATA_KEY, MAX_BYTES, hint, threads, fixed_shapes=False)
        try:
            self.metadata = TypeAdapter(DetectorMetadata).validate_json(text, strict=True)
        except ValidationError as error:
            raise UserError(f"{path}: metadata: {error.errors()[0]['msg']:.200}; {hint}") from error

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """Return the maps (4, h, w) of a level (H, W) uint8, as `flr.data.finders.votes.Network`."""
        return self.session.run(None, {"image": grey[None, None].astype(np.float32)})[0][0]


@functools.lru_cache(4)
def open_network(model: str | None, threads: int = 1) -> FaceNetwork:
    """Load a detector's file, or the built-in one where `model` is None; a second call returns the same network.

    Raises:
        UserError: As of `FaceNetwork`, or the built-in file is missing or not the one that this version was tested with.
    """
    if model is not None:
        return FaceNetwork(Path(model), threads)
    network = FaceNetwork(BUILTIN, threads)
    if network.digest != BUILTIN_SHA256:
        raise UserError(f"{BUILTIN}: not the file of this version of flr; install flr again")
    return network
