"""The search space of a study: config keys with the values that Optuna may choose."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna import Trial

from flr.config.compose import flat, groups, key_of, plain, spell, task_overrides, under
from flr.config.instantiate import build
from flr.config.schema import RESULT_NEUTRAL_KEYS, Train
from flr.config.validate import check
from flr.errors import UserError, nearest


@dataclass(frozen=True)
class Range:
    """Values between two bounds; integers where both bounds are.

    Attributes:
        low, high: The bounds, both included.
        log: Whether values are drawn evenly on a logarithmic scale.
        step: Distance between values.
        scales: Keys that are each set to their value in the config times the drawn value; the range's own key is then a
            name.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    scales: list[str] | None = None

    @property
    def integers(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def size(self) -> float:
        step = self.step or (1 if self.integers else None)
        return math.inf if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int if self.integers else int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of several values, or of the choices of a config group. Optuna keeps a list as text."""

    choices: list[str | int | float | bool | list[Any] | None]

    @property
    def size(self) -> float:
        return len(self.choices)

    def __contains__(self, value: Any) -> bool:
        return value in self.choices


@dataclass(frozen=True)
class Dimension:
    """One dimension of a search space.

    Attributes:
        key: The config key, or the name of a factor.
        values: The values to choose from.
        config_values: What each key that it sets is in the config; for a group, its choice.
    """

    key: str
    values: Range | Choice
    config_values: dict[str, Any]

    @property
    def default(self) -> Any:
        """The value that leaves the config unchanged."""
        if isinstance(self.values, Range) and self.values.scales:
            return 1
        value = self.config_values[self.key]
        return spell(value) if isinstance(value, list) else value

    def suggest(self, trial: Trial) -> Any:
        """Let a trial choose a value."""
        values = self.values
        if isinstance(values, Choice):
            return trial.suggest_categorical(self.key, values.choices)  # type: ignore[arg-type]
        if values.integers:
            return trial.suggest_int(
                self.key, int(values.low), int(values.high), step=int(values.step or 1), log=values.log
            )
        return trial.suggest_float(self.key, values.low, values.high, step=values.step, log=values.log)

    def overrides(self, value: Any) -> list[str]:
        """Return the overrides that set a value."""
        if isinstance(self.values, Range):
            factors = self.config_values if self.values.scales else {self.key: 1}
            return [f"{key}={spell(value * factor)}" for key, factor in factors.items()]
        quoted = isinstance(value, str) and not value.startswith("[") and not re.fullmatch(r"[\w./-]+", value)
        return [f"{self.key}={json.dumps(value) if quoted else spell(value)}"]


def format_short(value: Any) -> str:
    """Return a value with three digits, for tables and names."""
    return f"{value:.3g}" if isinstance(value, float) else spell(value)


def space_overrides(space: Sequence[Dimension], values: Mapping[str, Any]) -> list[str]:
    """Return the overrides that set the value of each dimension."""
    return [word for dimension in space for word in dimension.overrides(values[dimension.key])]


def read_space(cfg: DictConfig) -> list[Dimension]:
    """Read the search space of a checked config, and check that a config at each end of it can be trained.

    Raises:
        UserError: A range is invalid, its key does not exist, or a config at one of its ends cannot be trained.
    """
    plain_config = plain(cfg)
    config_values = {key: value for key, value in flat(plain_config) if not key.startswith("tune.")}
    chosen = HydraConfig.get().runtime.choices
    config_values |= {group: chosen[group] for group in groups() if group in chosen}
    space = [_read_dimension(key, node, config_values) for key, node in _leaves(plain_config["tune"]["space"])]
    if not space:
        raise UserError("tune.space is empty; name keys with their ranges, or choose tune=NAME")
    keys = [key for dimension in space for key in dimension.config_values]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"tune.space sets {repeated[0]} twice; leave one of them out")
    for dimension in space:
        _check_ends(dimension)
    endless = [dimension.key for dimension in space if math.isinf(dimension.values.size)]
    if endless and "BruteForce" in cfg.tune.sampler._target_:
        raise UserError(f"tune/sampler=grid needs a step or choices; tune.space.{endless[0]} has neither")
    return space


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, range) of a space, in which the dots of a key may be levels."""
    for key, value in node.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:  # null removes the range of a preset
            yield f"{prefix}{key}", value


def _read_dimension(key: str, node: Any, config_values: Mapping[str, Any]) -> Dimension:
    path = f"tune.space.{key}"
    if not isinstance(node, dict) or not node:
        raise UserError(f"{path}={node} is not a range; write {{low: A, high: B}} or {{choices: [A, B]}}")
    kind: type[Range] | type[Choice] = Choice if "choices" in node else Range
    check(OmegaConf.create(node), kind, path=path)
    if kind is Choice:
        node = {"choices": [spell(one) if isinstance(one, list) else one for one in node["choices"]]}
    values = kind(**node)
    if isinstance(values, Range):
        _check_range(path, values)
    elif len(values.choices) < 2:
        raise UserError(f"{path}.choices={values.choices} leaves no choice; name two or more")
    scales = values.scales if isinstance(values, Range) else None
    for one in scales or [key]:
        if one not in config_values or (one in groups() and not isinstance(values, Choice)):
            raise UserError(f"{path}: no config key '{one}'{nearest(one, config_values)}; fix it or leave it out")
        if under(one, (*RESULT_NEUTRAL_KEYS, "seed", "sweep", "debug")):
            raise UserError(f"{path}: {one} cannot be chosen by its NME; leave it out")
        if scales and not isinstance(config_values[one], int | float):
            raise UserError(
                f"{path}: {one}={config_values[one]} is not a number that a factor could scale; leave it out"
            )
    return Dimension(key, values, {one: config_values[one] for one in scales or [key]})


def _check_range(path: str, values: Range) -> None:
    low, high, step = values.low, values.high, values.step
    if not low < high:
        raise UserError(f"{path}: low={low} is not below high={high}; fix one of them")
    if values.log and low <= 0:
        raise UserError(f"{path}: log=true needs low above 0, not {low}")
    if step is not None and (values.log or step <= 0 or step > high - low):
        raise UserError(f"{path}: step={step} must be above 0 and within low..high, and has no meaning with log")


def _check_ends(dimension: Dimension) -> None:
    values = dimension.values
    for value in (values.low, values.high) if isinstance(values, Range) else values.choices:
        try:
            cfg = compose_trial(dimension.overrides(value))
            check(cfg, Train, trusted=False)
            build(cfg.augment)
        except UserError as error:
            raise UserError(f"tune.space.{dimension.key}: {error}") from error


def compose_trial(overrides: Sequence[str]) -> DictConfig:
    """Return the training's config for the user's overrides and further ones, which win."""
    search_path = [word for word in HydraConfig.get().overrides.hydra if key_of(word) == "hydra.searchpath"]
    return hydra.compose("train", [*training_overrides(overrides), *search_path])


def training_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the user's overrides of the training's config and further ones, which win."""
    replaced = {key_of(word) for word in overrides}
    typed = [word for word in task_overrides() if not re.match(r"[+~]*tune\b", word)]
    return [*(word for word in typed if word.startswith("+") or key_of(word) not in replaced), *overrides]
