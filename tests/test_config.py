"""Every choice that conf/ offers composes, fits its target's signature, and is one that the README's tables may name."""

from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from flr.config import CONF, Train, check, resolve
from flr.errors import UserError

GROUPS = ("data", "model", "objective", "augment", "optim", "schedule", "trainer", "callbacks", "debug")
CHOICES = [
    f"{group}={path.stem}"
    for group in GROUPS
    for path in sorted((CONF / group).glob("*.yaml"))
    if path.stem != "base"  # what the data sets share; no set of its own
]
EXPERIMENTS = [
    "experiment=" + str(path.relative_to(CONF / "experiment").with_suffix(""))
    for path in sorted((CONF / "experiment").rglob("*.yaml"))
]


def compose(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(words))


@pytest.mark.parametrize("word", ["seed=0", *CHOICES, *EXPERIMENTS])
def test_every_choice_fits_its_signature(word: str, tmp_path: Path) -> None:
    cfg = compose(word, f"paths.output_dir={tmp_path}")
    check(cfg, Train)
    if word.startswith(("seed", "model", "experiment")):
        net, objective = (resolve(node._target_, "", trusted=True) for node in (cfg.model, cfg.objective))
        assert net.output == objective.takes  # type: ignore[attr-defined]


def test_the_command_line_decides_over_a_model_and_an_experiment() -> None:
    assert compose("model=sepconv", "objective=l1").objective.loss._target_.endswith(".L1")
    published = compose("experiment=published/ibug_sepconv", "data=ibug", "optim.lr=1")
    assert published.objective.loss._target_.endswith(".MSE") and published.data.name == "ibug"
    assert published.optim.lr == 1 and published.trainer.max_epochs == 30


@pytest.mark.parametrize("word", ["seed=-1", "ema=1.0", "ema=-0.1", "tta=2", "data.crop.channels=two"])
def test_values_outside_their_bounds_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=word.split("=")[0]):
        check(compose(word), Train)
