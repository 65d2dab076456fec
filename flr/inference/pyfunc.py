"""The model of a model version as MLflow runs it: an image in, the points of its faces out.

MLflow's "models from code" form: this file is copied into the model, together with flr, and executed there.
"""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from flr.errors import UserError
from flr.inference.predictor import Predictor


class Landmarks(PythonModel):
    """The best checkpoint of a run."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that is part of the model, on the device of ``load_model(..., model_config={"device": "cpu"})``."""
        device = (context.model_config or {}).get("device", "auto")
        self.predictor = Predictor.load(context.artifacts["checkpoint"], device=device)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Find the points (N, K, 2), image pixels, of an image (H, W, 3) RGB uint8.

        Args:
            context: MLflow's.
            model_input: The image.
            params: ``boxes``, flat: left, top, right, bottom of each of N faces. Without them the detector of
                `flr.inference.landmarker.Landmarker.detect` finds the faces, and their points are refined once as in `flr.predict`.
        """
        boxes = np.asarray((params or {}).get("boxes", ()), np.float64)
        if boxes.size % 4:
            raise UserError(
                f"boxes has {boxes.size} numbers; give left, top, right, bottom of each face, one after another"
            )
        if boxes.size:
            boxes, refine = boxes.reshape(-1, 4), 0
        else:
            boxes, refine = self.predictor.detect(model_input), int(self.predictor.refines)
        return self.predictor([model_input] * len(boxes), boxes, refine=refine)


set_model(Landmarks())
