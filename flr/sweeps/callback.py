"""Start a sweep where Hydra begins a multirun.

Hydra imports this module at each start of `flr.train`, so it imports torch and MLflow only where a sweep begins.
"""

import logging
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from flr.cli import exit_on_error, exit_stack, quiet
from flr.config.compose import key_of, under
from flr.config.validate import accepts, check_launcher
from flr.errors import UserError
from flr.sweeps.grid import SWEEP_ENV, grid_of

CONSTANT = ("tracking", "paths", "again", "name")  # keys that all jobs of a sweep share


class SweepCallback(Callback):
    """Hydra's callback that starts the record of a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with exit_on_error():
            start_sweep(config)


def start_sweep(config: DictConfig) -> None:
    """Start a sweep: open its MLflow run and pass the run's id to the jobs. The table follows when the command exits.

    Raises:
        UserError: The overrides make no sweep, or another process runs it.
    """
    from flr.sweeps.record import recorded_sweep, sweep_name
    from flr.training.distributed import started_outside

    logging.getLogger("hydra").setLevel(logging.WARNING)  # the jobs print their own names
    quiet()
    grid, is_rank = grid_of(config), started_outside()
    check_launcher(config)
    if is_rank and not str(config.hydra.launcher._target_).endswith(".BasicLauncher"):
        raise UserError("hydra/launcher starts the jobs itself; remove torchrun or srun, or hydra/launcher")
    if is_rank or any(key_of(word) == "run" for word in [*config.hydra.overrides.task, *grid.values]):
        return  # ranks of torchrun have no common parent, and a resumed run has its own sweep
    if varied := [key for key in grid.values if under(key, CONSTANT)]:
        raise UserError(f"{varied[0]} cannot vary in a sweep, which is one table in one place; set it to one value")
    words = config.hydra.overrides.task
    for i, word in enumerate(words):
        if key_of(word) in grid.values and accepts(config, word.partition("=")[0]):
            words[i] = f"+{word}"
    overrides = config.hydra.overrides.hydra
    if any(key_of(word) == "hydra.sweep.dir" for word in overrides):
        folder = Path(config.hydra.sweep.dir).absolute()
    else:
        name = sweep_name(grid, str(config.tracking.experiment), config.again)
        folder = Path(config.paths.output_dir).absolute() / "sweeps" / name
        overrides.append("hydra.sweep.dir='{}'".format(str(folder).replace("\\", "\\\\").replace("'", "\\'")))
        config.hydra.sweep.dir = str(folder)
    os.environ[SWEEP_ENV] = exit_stack.enter_context(recorded_sweep(config, grid, folder))
    exit_stack.callback(os.environ.pop, SWEEP_ENV)
