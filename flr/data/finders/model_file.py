"""What the detectors share that run a file of the user's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le


@dataclass(frozen=True)
class ModelFile:
    """Settings of a detector that runs a file.

    Attributes:
        model: The file.
        score: Minimum score of a face.
        overlap: Of two faces that overlap by more, the better one is kept.
        missed: See `flr.data.boxes.Haar.missed`.
        offset: See `flr.data.boxes.Haar.offset`.
    """

    model: str
    score: Annotated[float, Gt(0), Le(1)] = 0.7
    overlap: Annotated[float, Gt(0), Le(1)] = 0.3
    missed: Literal["truth", "picture", "leave_out"] = "truth"
    offset: tuple[float, float, float, float] | None = None

    @property
    def identity(self) -> tuple[str | float | int | None, ...]:
        """What the boxes depend on."""
        return hashlib.sha256(Path(self.model).read_bytes()).hexdigest(), self.score, self.overlap
