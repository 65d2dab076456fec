"""What Hydra may take for ``hydra/launcher``: it looks for plugins in this namespace alone. See `flr.launchers`."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from flr import launchers  # which imports nothing of weight: Hydra loads its plugins at each start


class _Jobs(Launcher):
    def setup(self, *, config: DictConfig, **_: Any) -> None:
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        from flr.train import launch

        launch(self, self._config, job_overrides, initial_job_idx)
        return []


class Joblib(launchers.Joblib, _Jobs):
    pass


class Slurm(launchers.Slurm, _Jobs):
    pass


class Ray(launchers.Ray, _Jobs):
    pass
