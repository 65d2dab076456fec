"""`debias=true`: points moved by the median of their errors on the validation faces."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flr.inference.loading import load_file
from flr.inference.predictor import Predictor
from flr.metrics.errors import ENOUGH, LandmarkErrors
from tests.conftest import Workspace


def errors_of(points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, side: np.ndarray) -> LandmarkErrors:
    errors, shape = LandmarkErrors(), labelled.shape
    no, unknown = torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan)
    errors.update(
        torch.arange(len(points)), *(torch.from_numpy(x) for x in (points, truth, labelled)),
        torch.from_numpy(side / 2), torch.from_numpy(side), unknown, unknown, no,
    )  # fmt: skip
    return errors


def test_offsets_are_the_medians_of_each_point_in_shares_of_the_side() -> None:
    rng = np.random.default_rng(0)
    side, shift = rng.uniform(50, 500, 60), rng.normal(0, 0.01, (3, 2))
    truth, labelled = rng.uniform(0, 50, (60, 3, 2)), np.ones((60, 3), bool)
    noise = np.concatenate([np.full((29, 3, 2), -0.2), np.zeros((2, 3, 2)), np.full((29, 3, 2), 0.3)])
    labelled[ENOUGH - 1 :, 1] = False  # one face too few
    labelled[0, 2] = labelled[-1, 2] = False
    truth[~labelled] = np.nan
    errors = errors_of(truth - (shift + noise) * side[:, None, None], truth, labelled, side)
    np.testing.assert_allclose(errors.offsets(), shift * [[1], [0], [1]], atol=1e-6)
    moved = errors.radius_factors(torch.from_numpy(shift))
    assert moved[2] is not None and moved[2] < errors.radius_factors(None)[2] + 1e-9  # type: ignore[operator]


@pytest.mark.parametrize("tta", ["false", "true"])
def test_a_debiased_run_tests_predicts_and_exports_moved_points(workspace: Workspace, tta: str) -> None:
    workspace.train("debias=true", "data.reader.val=40", f"tta={tta}")
    run = workspace.only_run()
    best = workspace.folder(run.info.run_id) / "checkpoints" / "best.ckpt"
    predictor = Predictor.load(best)
    crops = np.random.default_rng(0).integers(0, 256, (2, predictor.crop.size, predictor.crop.size, 1), np.uint8)
    moved, offsets = predictor.run(crops)[0], predictor.module.offsets
    predictor.module.offsets = None
    assert (offsets.abs() > 1e-4).any()
    np.testing.assert_allclose(
        moved - predictor.run(crops)[0], (offsets * predictor.crop.size).expand(2, -1, -1), atol=1e-4
    )

    done = workspace.run("flr.evaluate", f"run={best}", "split=val", "tta=false")
    found = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())["metrics"]["nme"]
    assert found < 0.9 * run.data.metrics["val/nme"]  # after an epoch, most of the error is the same on all faces

    out = workspace.path / "net.onnx"
    workspace.run("flr.export", f"run={best}", f"out={out}")
    np.testing.assert_allclose(load_file(out).run(crops)[0], moved, atol=0.05)


def test_a_checkpoint_from_before_the_key_is_evaluated(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, run = trained
    checkpoint = torch.load(workspace.folder(run) / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["flr"]["config"]["debias"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    done = workspace.run("flr.evaluate", f"run={tmp_path / 'old.ckpt'}")
    found = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())["metrics"]["nme"]
    assert found == pytest.approx(workspace.client().get_run(run).data.metrics["test/nme"], rel=1e-6)
    assert Predictor.load(tmp_path / "old.ckpt").module.offsets is None
