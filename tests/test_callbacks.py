"""Which weights a training keeps as the best."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from flr.training.callbacks import BestCheckpoint


@pytest.mark.parametrize(("nme", "kept"), [(0.1, True), (float("nan"), False), (float("inf"), False), (None, False)])
def test_only_a_finite_error_is_the_best(nme: float | None, kept: bool) -> None:
    best = BestCheckpoint("folder")
    assert best.check_monitor_top_k(Mock(), None if nme is None else torch.tensor(nme)) is kept


def test_without_a_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    best, trainer = BestCheckpoint(str(tmp_path)), Mock()
    assert best.save_last_weights(trainer)
    trainer.save_checkpoint.assert_called_once_with(str(tmp_path / "best.ckpt"), weights_only=True)
    assert not best.save_last_weights(trainer)


def test_a_run_of_an_earlier_version_knows_its_best() -> None:
    earlier = ModelCheckpoint("folder", "best", monitor="val/nme", save_on_train_epoch_end=False)
    assert BestCheckpoint("folder").state_key == earlier.state_key
