"""Run several jobs at once on this machine, each with its share of the cores and GPUs."""

import itertools
import math
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from annotated_types import Ge

from flr.errors import UserError
from flr.sweeps.launchers.base import GRACE, Count, JobLauncher, Task, TaskEnd, describe_exit

GPU_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")  # a number, or a UUID


class Share(NamedTuple):
    """What one job may use.

    Attributes:
        cores: Numbers of CPU cores.
        gpus: Names of GPUs as in CUDA_VISIBLE_DEVICES; None on a machine without GPUs, or for CPU trainings.
    """

    cores: list[int]
    gpus: list[str] | None


@dataclass
class Joblib(JobLauncher):
    """Several jobs at once on this machine, under the name that Hydra's users know for it.

    Attributes:
        jobs: Jobs at once; by default as many as there are GPUs for, else cores.
        cores: Cores of a job; by default its share.
        gpus: GPUs of a job; by default one for each device of its trainer, where there are any. Below 1, such as 0.5, jobs share
            a GPU; 0 trains on the CPU.
    """

    jobs: Count | None = None
    cores: Count | None = None
    gpus: Annotated[float, Ge(0)] | None = None
    shares: list[Share] = field(init=False, repr=False)

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        available, ranks = _available_cores(), ranks or 1
        gpus = [] if accelerator == "cpu" else _available_gpus()
        gpus_per_job = self.gpus if self.gpus is not None else ranks if gpus else 0
        if gpus_per_job > 1 and gpus_per_job != int(gpus_per_job):
            raise UserError(f"hydra.launcher.gpus={gpus_per_job}: set a whole number, or less than 1 to share a GPU")
        if gpus and not gpus_per_job:
            print("note: hydra.launcher.gpus=0: the jobs train on the CPU", file=sys.stderr)
        places = _places(gpus, gpus_per_job)
        if gpus_per_job and (self.jobs or 1) > len(places):
            raise UserError(
                f"hydra.launcher: {self.jobs or 1} job(s) of {gpus_per_job} GPU(s) at once, and this machine has "
                f"{len(gpus)}; set hydra.launcher.jobs or hydra.launcher.gpus lower"
            )
        jobs_by_cores = max(1, len(available) // (self.cores or ranks))
        jobs = self.jobs or (len(places) if gpus_per_job else jobs_by_cores)
        cores_per_job = self.cores or max(1, len(available) // jobs)
        if cores_per_job > len(available):
            raise UserError(
                f"hydra.launcher.cores={cores_per_job}: this machine has {len(available)}; set that or fewer"
            )
        self.shares = []
        for job in range(jobs):
            first = job * cores_per_job
            cores = [available[(first + i) % len(available)] for i in range(cores_per_job)]
            self.shares.append(Share(cores, (places[job] if gpus_per_job else []) if gpus else None))

    def run(self, tasks: Sequence[Task]) -> Generator[TaskEnd, None, None]:
        waiting, free = deque(tasks), deque(self.shares)
        running: dict[subprocess.Popen[bytes], tuple[Task, Share]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    task, share = waiting.popleft(), free.popleft()
                    running[_start(task, share)] = task, share
                time.sleep(0.05)
                for process in [process for process in running if process.poll() is not None]:
                    task, share = running.pop(process)
                    free.append(share)
                    yield task, describe_exit(process.returncode)
        finally:
            for process in running:
                process.terminate()
            deadline = time.monotonic() + GRACE
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                process.kill()


def _places(gpus: list[str], per_job: float) -> list[list[str]]:
    """Return the GPUs of each job that can run at once; below 1, several jobs have the same one."""
    if not per_job:
        return []
    count, sharing = math.ceil(per_job), max(1, int(1 / per_job))
    return [gpus[i : i + count] for _ in range(sharing) for i in range(0, len(gpus) - count + 1, count)]


def _available_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS and Windows bind no process to cores


def _available_gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(GPU_NAME.fullmatch, names))  # CUDA ignores what follows a name that is none
    # torch takes seconds to import, and Hydra imports this module for every command.
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _start(task: Task, share: Share) -> "subprocess.Popen[bytes]":
    """Start a job in a process group of its own, since Ctrl-C in a terminal is for the sweep to answer."""
    threads = min(len(share.cores), int(os.environ.get("OMP_NUM_THREADS") or len(share.cores)))
    variables = {"OMP_NUM_THREADS": str(threads)}
    if share.gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    process = task.start(variables, process_group=0)
    if hasattr(os, "sched_setaffinity"):
        with suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, share.cores)
    return process
