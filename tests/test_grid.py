"""Expand the overrides of a sweep to its jobs."""

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from flr.config.compose import CONF, label_of
from flr.errors import UserError
from flr.sweeps.grid import Grid, grid_of


def grid(*overrides: str) -> Grid:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loaded = GlobalHydra.instance().hydra
        assert loaded
        return grid_of(
            loaded.compose_config("train", list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False)
        )


def test_jobs_are_all_combinations_in_the_order_of_the_overrides() -> None:
    found = grid("seed=range(2)", "model=glob(sepconv*)", "+trainer.limit_train_batches=3", "~callbacks.progress")
    fixed = ["+trainer.limit_train_batches=3", "~callbacks.progress=null"]
    assert found.jobs == [
        [f"seed={seed}", f"model={model}", *fixed] for seed in (0, 1) for model in ("sepconv", "sepconv_light")
    ]
    assert found.values == {"seed": ["0", "1"], "model": ["sepconv", "sepconv_light"]}
    assert str(found) == "seed=0,1 model=sepconv,sepconv_light"


def test_the_last_override_of_a_key_counts() -> None:
    assert grid("seed=0,1", "ema=0.5", "seed=choice(3,4)").jobs == [["seed=3", "ema=0.5"], ["seed=4", "ema=0.5"]]


def test_a_range_without_steps_is_refused() -> None:
    with pytest.raises(UserError, match=r"^optim.lr=interval\(1e-4,1e-2\): .*list them with commas"):
        grid("optim.lr=interval(1e-4,1e-2)")


def test_a_job_is_named_by_what_varies() -> None:
    found = grid("seed=0,1", "model=sepconv,ytf_cnn", "+trainer.limit_train_batches=1,2", "optim.lr=0.5")
    names = [label_of(overrides, found.values) for overrides in found.jobs]
    assert names[0] == "sepconv seed 0 limit_train_batches 1" and len(set(names)) == 8
