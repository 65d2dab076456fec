"""Identify a training by the part of its config that determines the result."""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flr.config.compose import choices, flat, key_of, label_of, model_names, plain, under
from flr.config.schema import RESULT_NEUTRAL_KEYS
from flr.errors import UserError
from flr.files import write_file, write_json
from flr.module.checkpoints import RunFolder
from flr.tracking import provenance
from flr.tracking.tracker import Tracker

MAX_NAME = 60  # characters of a run's name before its seed


def recipe(cfg: DictConfig, counted_overrides: Sequence[str] = ()) -> str:
    """Return a digest of a composed config without the keys that do not change the result.

    Args:
        cfg: The composed config.
        counted_overrides: Overrides of such keys that count nevertheless, as in a sweep over devices.
    """
    try:
        values = plain(cfg)
    except UserError:  # reported by the check of the training's config
        values = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    leaves = sorted((key, str(value)) for key, value in flat(values) if not under(key, RESULT_NEUTRAL_KEYS))
    return hashlib.sha256(json.dumps([leaves, sorted(counted_overrides)]).encode()).hexdigest()[:16]


def record_origin(
    tracker: Tracker, folder: RunFolder, values: Mapping[str, Any], overrides: Sequence[str], diff: str
) -> None:
    """Write the config, code, versions and hardware of a run that begins to its folder and to the store.

    Args:
        tracker: Of the run, which is started.
        folder: Of the run.
        values: The composed config.
        overrides: What the user typed to get it.
        diff: Of the working tree against the commit; empty for none.
    """
    note = {"run_id": tracker.run_id, "uri": values["tracking"]["uri"], "experiment": tracker.experiment}
    write_json(folder.path / "run.json", note)
    write_file(folder.config, OmegaConf.to_yaml(OmegaConf.create(dict(values))))
    tracker.tag(folder=str(folder.path))
    tracker.params({**dict(flat(values)), "overrides": " ".join(overrides)})
    tracker.params({f"version.{key}": value for key, value in provenance.versions().items()})
    tracker.params({f"hardware.{key}": value for key, value in provenance.hardware().items()})
    tracker.file(folder.config)
    tracker.file(folder.path / "run.json")
    if diff:
        tracker.text(diff, "code.diff")


def model_name(target: str) -> str:
    """Return the name in ``conf/model/`` of a model's class, or its own name where it is the user's."""
    return model_names().get(target, target.rpartition(".")[2])


def objective_name(node: DictConfig) -> str:
    """Return the name in ``conf/objective/`` of an objective, by its class and that of its loss, or its class's own name."""

    def classes(node: DictConfig) -> tuple[str, str | None]:
        return node._target_, (node.get("loss") or {}).get("_target_")

    names = {classes(choice): name for name, choice in choices("objective").items()}
    return names.get(classes(node), node._target_.rpartition(".")[2])


def data_name(cfg: DictConfig) -> str:
    """Return the name of a dataset; that of its folder for ``data=table`` where the user has not named it."""
    return Path(str(cfg.data.root)).name if cfg.data.name == "table" and cfg.data.root else str(cfg.data.name)


def default_name(cfg: DictConfig, overrides: Sequence[str] = ()) -> str:
    """Name a run by its model, its data, what else the overrides set, and its seed, where the config gives no name."""
    last = {key_of(word): word for word in overrides if not under(key_of(word), RESULT_NEUTRAL_KEYS)}
    changed = label_of(list(last.values()), last.keys() - {"model", "data", "seed"})
    words = f"{model_name(cfg.model._target_)} {data_name(cfg)} {changed}"
    return cfg.name or f"{textwrap.shorten(words, MAX_NAME, placeholder=' ...')} seed {cfg.seed}"
