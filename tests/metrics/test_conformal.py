"""Conformal radii: the promise on new faces, its quantile by hand, and what a run keeps and reports of it."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from flr.inference.export import make_metadata
from flr.inference.onnx import ExportMetadata, OnnxPredictor
from flr.inference.predictor import Predictor
from flr.landmarks.scheme import CELEBA5
from flr.metrics.conformal import FLOOR, calibrate, coverage, radii
from tests.conftest import Workspace


def test_the_factor_is_the_ceiling_of_90_percent_of_n_plus_1():
    errors = np.arange(1.0, 21)[:, None]  # (20 + 1) * .9 = 18.9: the 19th
    assert calibrate(errors, np.full((20, 1), np.nan), np.full(20, 1 / FLOOR)) == [19.0]
    assert calibrate(errors, np.full((20, 1), 9.0), np.full(20, 1 / FLOOR)) == [pytest.approx(1.9)]
    held = coverage(errors.repeat(5, 1), np.full((20, 5), 19.0), np.ones(20), CELEBA5, {})
    assert held["coverage90"] == 95  # an error as large as the radius is inside


def test_too_few_faces_promise_nothing():
    errors = np.arange(1.0, 11)[:, None].repeat(3, 1)
    errors[:2, 1], errors[:, 2] = np.nan, np.nan
    assert calibrate(errors, np.full((10, 3), np.nan), np.full(10, 1 / FLOOR)) == [10.0, None, None]
    radius = radii(np.array([10.0, None], np.float64), np.zeros((4, 2)), 1 / FLOOR)
    assert (radius[:, 0] == 10).all() and np.isnan(radius[:, 1]).all()
    assert np.isnan(radii(None, np.zeros((4, 2)), 64)).all()
    assert coverage(np.ones((4, 5)), np.full((4, 5), np.nan), np.ones(4), CELEBA5, {}) == {}


@pytest.mark.parametrize("informed", [True, False])
def test_new_faces_are_held_in_90_percent_of_cases(informed):
    rng = np.random.default_rng(0)
    difficulty = rng.lognormal(0, 0.7, (8000, 5))
    errors, side = difficulty * rng.rayleigh(1, (8000, 5)), np.full(8000, 12.8)
    spread = difficulty if informed else np.full((8000, 5), np.nan)
    factors = np.array(calibrate(errors[:4000], spread[:4000], side[:4000]))
    radius = radii(factors, spread[4000:], side[4000:, None])
    found = coverage(errors[4000:], radius, np.full(4000, 50.0), CELEBA5, {"half": np.arange(4000) < 2000})
    assert found["coverage90"] == pytest.approx(90, abs=1) and found["half/coverage90"] == pytest.approx(90, abs=1.5)
    assert found["radius90"] == pytest.approx(200 * radius.mean() / 100, rel=1e-6)
    # Where the model knows what is hard, each kind of face has its 90 %; else easy ones have more and hard ones less.
    hard = errors[4000:][difficulty[4000:] > 2] <= radius[difficulty[4000:] > 2]
    assert hard.mean() > 0.88 if informed else hard.mean() < 0.8


def test_a_run_keeps_and_reports_its_radii(trained: tuple[Workspace, str]) -> None:
    workspace, run = trained
    folder = workspace.folder(run)
    predictor = Predictor.load(folder / "checkpoints" / "best.ckpt")
    assert predictor.radius_factors.shape == (68,) and (predictor.radius_factors > 0).all()
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert 0 <= metrics["coverage90"] <= 100 and metrics["radius90"] > 0 and "region/jaw/coverage90" in metrics
    image, box = np.zeros((90, 80), np.uint8), np.array([[10.0, 10, 60, 70]])
    radius = predictor.find([image], box).radius90
    assert radius.shape == (1, 68) and np.isfinite(radius).all()
    twice = predictor.find([np.zeros((180, 160), np.uint8)], 2 * box + 0.5).radius90
    np.testing.assert_allclose(twice, 2 * radius, rtol=1e-6)
    metadata = json.loads(make_metadata(predictor, folder / "checkpoints" / "best.ckpt", {}, "fp32"))
    assert metadata["radius90"] == predictor.radius_factors.tolist()
    exported = OnnxPredictor(None, TypeAdapter(ExportMetadata).validate_python(metadata))  # type: ignore[arg-type]
    np.testing.assert_array_equal(exported.radius_factors, predictor.radius_factors)
