"""The exported files of the field's models give the points and uncertainties of the models."""

from pathlib import Path

import numpy as np
import pytest

from flr.inference.export import make_metadata, write_model
from flr.inference.onnx import OnnxPredictor
from flr.inference.predictor import Predictor
from tests.test_gpu import FIELD, data_and_module


@pytest.mark.long
@pytest.mark.parametrize("recipe", FIELD)
def test_an_exported_file_gives_the_models_points(recipe: str, shared_cache: Path, tmp_path: Path) -> None:
    data, module = data_and_module(shared_cache, *FIELD[recipe])
    module.about["radius90"] = [1.0] * 68
    predictor = Predictor(module, data.crop, data.pixels, None)
    write_model(predictor, make_metadata(predictor, tmp_path / "x.ckpt", {}, "fp32"), tmp_path / "x.onnx", "fp32")
    exported, crops = OnnxPredictor.load(tmp_path / "x.onnx"), data.store.images[:5, :64, :64]
    for found, expected in zip(exported.run(crops), predictor.run(crops), strict=True):
        # A likeliest bin or cell may be another one where two are equal but for rounding.
        assert np.isclose(found, expected, atol=0.02, equal_nan=True).mean() > 0.99
    assert np.isfinite(exported.radius_factors).all()
