"""Every choice that conf/ offers composes, fits its target's signature, and is one that the README's tables may name."""

import enum
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
import pytest
import torch
from annotated_types import Ge, Gt, Lt, MinLen
from omegaconf import DictConfig

from flr.config.compose import CONF, as_config, plain
from flr.config.describe import describe_type
from flr.config.instantiate import build
from flr.config.renamed import RENAMED
from flr.config.schema import Paths, Train
from flr.config.validate import check, resolve
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


def test_targets_of_older_runs_are_found_where_they_are_now() -> None:
    cfg = compose("paths._target_=flr.config.Paths")
    check(cfg, Train, trusted=False)
    assert isinstance(build(cfg.paths), Paths)


class Shape(enum.Enum):
    square = "square"
    stretch = "stretch"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "integer"),
        (bool | None, "true or false or null"),
        (Annotated[int, Ge(8)], "integer >= 8"),
        (Annotated[float, Gt(0), Lt(1)] | None, "number > 0 and < 1 or null"),
        (Annotated[list[int], MinLen(1)], "list of integer of length >= 1"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["auto"] | None, "auto or null"),
        (float | torch.Tensor, "number"),
        (int | float, "number"),
        (int | str | list[int], "integer or text or list of integer"),
        (tuple[float, float], "[number, number]"),
        (tuple[int, ...], "list of integer"),
        (dict[str, float | None], "mapping of text to number or null"),
        (Sequence[str], "list of text"),
        (Callable[..., Any], "class or function, named by _target_"),
        (Shape, "one of square, stretch"),
        (torch.Tensor, "Tensor"),
    ],
    ids=str,
)
def test_types_are_described_in_words(hint: Any, text: str) -> None:
    assert describe_type(hint) == text


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=fast", "optim.lr=fast: expected number"),
        ("seed=1.5", "seed=1.5: expected integer >= 0 and < 4294967296"),
        ("data.crop.channels=2", "data.crop.channels=2: expected one of 1, 3"),
        ("data.download=5", "data.download=5: expected"),
    ],
)
def test_a_wrong_type_is_reported_in_words(override: str, line: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(line)}") as error:
        check(compose(override), Train)
    assert not re.search(r"Annotated|Union|torch|typing|\|", str(error.value))


def test_configs_of_older_runs_get_the_present_names() -> None:
    old = {
        "tracking": {"_target_": "flr.tracking.mlflow.Tracker"},
        "callbacks": [{"_target_": "flr.callbacks.Progress"}],
        "reader": {"_target_": "flr.data.readers.muct.read", "mirrored": False, "points": 15},
    }
    assert plain(as_config(old)) == {
        "tracking": {"_target_": "flr.tracking.tracker.Tracker"},
        "callbacks": [{"_target_": "flr.training.callbacks.Progress"}],
        "reader": {"_target_": "flr.data.readers.muct.read", "points": 15},
    }
    for target in RENAMED.values():
        module, _, name = target.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), target
