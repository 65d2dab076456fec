"""``python -m flr.train``: train, track and test a landmark model, or resume a run (``run=ID|DIR``)."""

import os
import signal

from omegaconf import DictConfig, OmegaConf

from flr.cli import quiet, run_command
from flr.config.compose import model_names, task_overrides
from flr.config.schema import Train
from flr.config.validate import check
from flr.sweeps.grid import SWEEP_ENV, sweep_folder
from flr.sweeps.launchers.base import PARENT


def main(cfg: DictConfig) -> None:
    """Train from a composed config, or as a job of a sweep."""
    # The imports below bring torch or OpenCV, which --help and --cfg job do without; they follow the first line that is printed.
    if parent := os.environ.pop(PARENT, None):
        from flr.system import set_parent_death_signal

        set_parent_death_signal(int(parent), signal.SIGTERM)
    if identity := os.environ.get(SWEEP_ENV):
        from flr.sweeps.job import run_job

        run_job(cfg, identity)
        return
    overrides = task_overrides()
    if cfg.run is not None:
        print(f"Resuming {cfg.run}", flush=True)
        check(cfg, Train)
        from flr.training.resume import resumed_session

        quiet()
        resumed_session(cfg, overrides).run()
        return
    model = str(OmegaConf.select(cfg, "model._target_"))
    colour = "grey" if OmegaConf.select(cfg, "data.crop.channels") == 1 else "colour"
    words = f"{model_names().get(model, model)} on {cfg.data.name}, {colour} crops"
    print(
        f"Training {f'{cfg.name}, ' if cfg.name else ''}{words} of {OmegaConf.select(cfg, 'data.crop.size')} px",
        flush=True,
    )
    # As strict as for a run's own config: what could not be loaded again must not be trained for hours.
    check(cfg, Train, trusted=False)
    from flr.training.session import TrainingSession

    quiet()
    sweep = sweep_folder()
    TrainingSession(cfg, overrides, sweep=sweep.name if sweep else None).run()


if __name__ == "__main__":
    run_command(main, "train")
