"""``python -m flr.tune``: search the config values with the lowest validation error, by Optuna.

The test part chooses nothing: no trial is tested. Several processes, on one or more machines, can share a study.
"""

import sys

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from flr.cli import quiet, run_command
from flr.config.schema import Tune
from flr.config.validate import check
from flr.errors import UserError


def main(cfg: DictConfig) -> None:
    """Run trials until the study has them all, then print the results."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("a study takes neither -m nor sweep=; name what varies in tune.space")
    check(cfg, Tune, trusted=False)
    if cfg.run is not None:
        raise UserError(f"run={cfg.run} resumes one run by flr.train; a study resumes by its own command")
    # These import torch and Optuna, which --help does without.
    from optuna.trial import TrialState

    from flr.sweeps.space import read_space
    from flr.sweeps.study import TuningStudy, storage_errors
    from flr.training.distributed import started_outside

    space = read_space(cfg)
    print(f"Tuning {', '.join(dimension.key for dimension in space)} of {cfg.model._target_} on {cfg.data.name}")
    quiet()
    devices = len(cfg.trainer.devices) if isinstance(cfg.trainer.devices, ListConfig) else cfg.trainer.devices
    if devices != 1 or cfg.trainer.get("num_nodes", 1) != 1 or started_outside():
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: a trial trains on one device; start this command once a device, "
            "and the processes share the study"
        )
    with storage_errors():
        study = TuningStudy(cfg, space)
        print(f"Study {study.name}, {study.trials} trials: {study.folder}")
        study.run()
        study.report.print()
        failed = study.report.trials_in(TrialState.FAIL)
        if failed and not study.report.trials_in(TrialState.COMPLETE):
            reason = failed[-1].user_attrs.get("end", "")
            print(f"flr: no trial of study {study.name} has finished; the last failed: {reason}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    run_command(main, "tune", exit_on_sigterm=True)
