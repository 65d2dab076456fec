"""Run jobs as tasks of a Ray cluster."""

import contextlib
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from flr.errors import UserError
from flr.sweeps.launchers.base import GRACE, Count, JobLauncher, Task, TaskEnd, describe_exit, import_extra
from flr.sweeps.launchers.cluster import ClusterJob


@dataclass
class Ray(JobLauncher):
    """Tasks of a Ray cluster, which runs as many at once as it has room for.

    Attributes:
        address: Address of its head; ``auto`` for RAY_ADDRESS or a head on this machine.
        cores: Cores of a job.
        gpus: GPUs of a job; below 1 jobs share a GPU, 0 trains on the CPU.
        resources: Further resources by name.
    """

    address: str = "auto"
    cores: Count = 1
    gpus: Annotated[float, Ge(0)] = 0
    resources: dict[str, float] = field(default_factory=dict)

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default, without its warning
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = import_extra("ray")
        host, _, port = self.address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:  # Ray would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"hydra.launcher.address={self.address}: no Ray cluster answers ({str(error).splitlines()[0]}); "
                "start one by `ray start --head`, or name its head"
            ) from error
        needs = {"CPU": self.cores, "GPU": self.gpus, **self.resources}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(key, 0) >= value for key, value in needs.items()) for node in nodes):
            ray.shutdown()
            raise UserError(
                f"hydra.launcher: no machine of the Ray cluster has {needs} for a job; set cores, gpus or resources lower"
            )

    def run(self, tasks: Sequence[Task]) -> Generator[TaskEnd, None, None]:
        ray = import_extra("ray")
        remote = ray.remote(_run_in_worker).options(
            num_cpus=self.cores, num_gpus=self.gpus, resources=self.resources or None, max_retries=0
        )
        # A worker has the variables of its machine's daemon.
        variables = {key: os.environ[key] for key in os.environ if key.startswith(("FLR_", "MLFLOW_", "PYTHONPATH"))}
        if not self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave a worker those of its machine
        running = {remote.remote(ClusterJob(task), variables, os.getcwd()): task for task in tasks}
        try:
            while running:
                (done, *_), _ = ray.wait(list(running))
                task = running.pop(done)
                try:
                    yield task, describe_exit(ray.get(done))
                except ray.exceptions.RayError as error:
                    yield task, f"ended with {type(error).__name__}"
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            ray.shutdown()


def _run_in_worker(job: ClusterJob, variables: Mapping[str, str], folder: str) -> int:
    """Run a job in a Ray worker and restore the worker's environment afterwards."""
    environment = dict(os.environ)
    try:
        # Where srun started the cluster, its tasks are no ranks of this job.
        for key in [key for key in environment if key.startswith("SLURM_")]:
            del os.environ[key]
        os.environ.update(variables)
        with contextlib.chdir(folder):
            return job()
    finally:
        os.environ.clear()
        os.environ.update(environment)
