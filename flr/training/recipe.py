"""Identify a training by the part of its config that determines the result."""

import hashlib
import json
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from flr.config.compose import flat, plain, under
from flr.config.schema import RESULT_NEUTRAL_KEYS
from flr.errors import UserError


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


def default_name(cfg: DictConfig) -> str:
    """Name a run by its model, data and seed where the config gives no name."""
    return cfg.name or f"{cfg.model._target_.rsplit('.', 1)[1]} {cfg.data.name} seed {cfg.seed}"
