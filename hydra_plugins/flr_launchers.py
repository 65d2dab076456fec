"""Register the launchers of `flr.sweeps.launchers` with Hydra, which looks for plugins only in this namespace."""

from flr.sweeps.launchers import local, ray, slurm


class Joblib(local.Joblib):
    pass


class Slurm(slurm.Slurm):
    pass


class Ray(ray.Ray):
    pass
