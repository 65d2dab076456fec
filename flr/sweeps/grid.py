"""Expand a sweep's overrides to its jobs, and name the jobs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from flr.config.compose import CONF, key_of
from flr.errors import UserError

# Environment variable with the id of the sweep's MLflow run; in a job's own process followed by a slash and the job's number.
SWEEP_ENV = "FLR_SWEEP"


@dataclass(frozen=True)
class Grid:
    """The jobs of a sweep.

    Attributes:
        preset: Its name in ``conf/sweep/``; None where only the command line names what is swept.
        values: Swept key -> its values.
        jobs: The overrides of each job, in order.
    """

    preset: str | None
    values: dict[str, list[str]]
    jobs: list[list[str]]

    def __str__(self) -> str:
        return " ".join(f"{key}={','.join(values)}" for key, values in self.values.items())


def grid_of(config: DictConfig) -> Grid:
    """Return the grid of a sweep's composed config, with its ``hydra`` node.

    Raises:
        UserError: It has no jobs, as a glob that matches nothing, or a key has a range without steps.
    """
    sweeper = config.hydra.sweeper
    params = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
    swept = [override for override in overrides if override.is_sweep_override()]
    preset = config.hydra.runtime.choices.get("sweep")
    jobs = _expand(overrides)
    if not jobs:
        empty = " ".join(str(override.input_line) for override in swept)
        raise UserError(f"{empty}: matches nothing, so there is no job; list the values, or see {CONF.name}/")
    columns = (list(dict.fromkeys(column)) for column in zip(*jobs, strict=True))
    values = {key_of(words[0]): [word.partition("=")[2] for word in words] for words in columns if len(words) > 1}
    return Grid(preset, values, jobs)


def _expand(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job: all combinations, in the order of Hydra's basic sweeper."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        elif override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: a range without steps has no list of values; list them with commas"
            )
        else:
            values = [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in itertools.product(*choices.values())]


def sweep_folder() -> Path | None:
    """Return the folder that the jobs of one ``-m`` share; None for a single run."""
    job = HydraConfig.get()
    return Path(job.sweep.dir) if job.mode == RunMode.MULTIRUN else None
