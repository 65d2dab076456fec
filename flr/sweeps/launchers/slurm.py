"""Run jobs as a SLURM job array, by submitit."""

import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from flr.errors import UserError
from flr.sweeps.launchers.base import GRACE, Count, JobLauncher, Task, TaskEnd, import_extra
from flr.sweeps.launchers.cluster import ClusterJob

# States in which SLURM does not start a job again.
FINAL_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass
class Slurm(JobLauncher):
    """A SLURM job array. A job that reaches its time limit is requeued and resumes its run.

    Attributes:
        partition: SLURM's partition; null for the cluster's default, as for account and qos.
        account: Account that pays.
        qos: Quality of service.
        minutes: Time limit of a job.
        nodes: Nodes of a job.
        tasks: Processes on each node: ``trainer.devices``.
        cores: Cores of a process.
        gpus: GPUs of a node.
        memory: Memory of a node, GiB.
        jobs: Jobs of the array at once.
        warning: Seconds before the time limit at which a job is asked to stop. They must suffice to close its run.
        requeues: How often a job may reach its time limit and resume.
        sbatch: Further options of sbatch by their long names, as ``{constraint: a100}``; true for one without a value.
        before: Commands that the batch script runs first, as ``[module load cuda]``.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Count = 60
    nodes: Count = 1
    tasks: Count = 1
    cores: Count = 1
    gpus: Annotated[int, Ge(0)] = 0
    memory: Annotated[float, Ge(0)] | None = None
    jobs: Count = 256
    warning: Count = 90
    requeues: Annotated[int, Ge(0)] = 3
    sbatch: dict[str, str | int | float | bool] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        import_extra("submitit")
        if not shutil.which("sbatch"):
            raise UserError("hydra/launcher=slurm: no sbatch here; start the sweep on a machine that submits to SLURM")
        if ranks not in (None, self.nodes * self.tasks):
            raise UserError(
                f"hydra.launcher.nodes={self.nodes} hydra.launcher.tasks={self.tasks}: that is "
                f"{self.nodes * self.tasks} rank(s), and the config is for {ranks}; set trainer=ddp, "
                "trainer.num_nodes to the nodes and trainer.devices to the tasks"
            )

    def run(self, tasks: Sequence[Task]) -> Generator[TaskEnd, None, None]:
        running = self._submit(tasks)
        array = next(iter(running)).partition("_")[0]
        print(f"SLURM job {array}: {len(tasks)} jobs of {self.minutes} minutes")
        start = time.monotonic()
        try:
            while running:
                # Often for short jobs; the controller of a cluster is not asked often for jobs of days.
                time.sleep(min(15.0, 0.5 + (time.monotonic() - start) / 60))
                if (states := _states(array)) is None:
                    continue
                # SLURM forgets a job some minutes after its end.
                for job_id in [job_id for job_id in running if states.get(job_id, "COMPLETED") in FINAL_STATES]:
                    state = states.get(job_id, "COMPLETED")
                    yield running.pop(job_id), "" if state == "COMPLETED" else f"is {state} as SLURM job {job_id}"
        finally:
            if running:
                subprocess.run(["scancel", array], check=False)
                deadline = time.monotonic() + GRACE
                while time.monotonic() < deadline and set((_states(array) or {}).values()) - FINAL_STATES:
                    time.sleep(0.5)

    def _submit(self, tasks: Sequence[Task]) -> dict[str, Task]:
        """Submit the array and return its tasks by SLURM's job id."""
        submitit = import_extra("submitit")
        folder = tasks[0].log.parent / "slurm"
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.requeues)
            executor.update_parameters(
                name=folder.parent.name, timeout_min=self.minutes, nodes=self.nodes, tasks_per_node=self.tasks,
                cpus_per_task=self.cores, gpus_per_node=self.gpus or None, mem_gb=self.memory,
                slurm_partition=self.partition, slurm_account=self.account, slurm_qos=self.qos,
                slurm_array_parallelism=self.jobs, slurm_signal_delay_s=self.warning, slurm_setup=self.before or None,
                # Only the first process ends with an error (see `ClusterJob`): where it fails early, the others wait for it.
                slurm_srun_args=["--kill-on-bad-exit=1"],
                slurm_additional_parameters={"requeue": True, **self.sbatch},
            )  # fmt: skip
            with executor.batch():
                jobs = [executor.submit(ClusterJob(task)) for task in tasks]
            return {job.job_id: task for job, task in zip(jobs, tasks, strict=True)}
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"hydra/launcher=slurm: sbatch rejects the jobs: {error}") from error


def _states(array: str) -> dict[str, str] | None:
    """Return SLURM's state of each job of an array that it knows; None, after a message, where it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return dict(line.split()[:2] for line in done.stdout.splitlines())
    if "Invalid job id" in done.stderr:
        return {}
    print(f"flr: squeue: {' '.join(done.stderr.split())[:200]}", file=sys.stderr)
    return None
