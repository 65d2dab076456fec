"""Register the launchers of `flr.sweeps.launchers` with Hydra, which looks for plugins only in this namespace."""

from flr.sweeps.launchers import local, ray, slurm


class Joblib(local.Joblib):
    """Register `local.Joblib`."""


class Slurm(slurm.Slurm):
    """Register `slurm.Slurm`."""


class Ray(ray.Ray):
    """Register `ray.Ray`."""
