"""What MLflow runs of a model version: a picture in, the points of its faces out.

MLflow's "models from code" form: this file is copied into the model and executed there, flr beside it.
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
        self.predictor = Predictor.load(context.artifacts["checkpoint"])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """(N, K, 2) picture pixels of a picture (H, W, 3) RGB uint8.

        Args:
            context: MLflow's.
            model_input: the picture.
            params: ``boxes``, flat: left, top, right, bottom of each of N faces. Without them OpenCV's Haar cascade
                finds the faces, the largest first, and each is looked at twice as in `flr.predict`; where it finds none, N is 0.
        """
        boxes = np.asarray((params or {}).get("boxes", ()), np.float64)
        if boxes.size % 4:
            raise UserError(
                f"boxes has {boxes.size} numbers; give left, top, right, bottom of each face, one after another"
            )
        if boxes.size:
            boxes, looks = boxes.reshape(-1, 4), 1
        else:
            boxes, looks = self.predictor.detect(model_input), 1 + self.predictor.by_points
        return self.predictor([model_input] * len(boxes), boxes, looks)


set_model(Landmarks())
