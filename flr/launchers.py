"""Who runs the jobs of a sweep, and where: several at once on this machine, SLURM, Ray.

Each job is a process of its own, with the command and the variable that every other job of a sweep has, so the launchers
differ only in who starts it. A job writes to a file in the sweep's folder. The parent waits; when it is stopped it ends
its jobs. What a job has come to is in MLflow, where the sweep's table is read from.

submitit and ray are imported when they are used: Hydra imports this module at each of its starts.
"""

import contextlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

from annotated_types import Ge

from flr.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

FOREVER = 1e9  # seconds
GRACE = 60.0  # seconds for a job to close its run when it is told to end
# What a training imports late, as well as what it is made of.
PRELOAD = [
    "flr.evaluate", "flr.sweep", "flr.training.distributed", "flr.training.precision", "flr.reporting.figures", "flr.data.datamodule", "flr.data.synthetic",
    "mlflow.store.tracking.sqlalchemy_store", "sqlalchemy.dialects.sqlite",
]  # fmt: skip
# What SLURM calls the end of a job that it does not start again.
ENDS = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Task:
    """A job, as a command.

    Attributes:
        name: of the job.
        words: what follows ``python -m flr.train``.
        given: its variables, beside those of whoever starts it.
        log: the file of its output.
    """

    name: str
    words: list[str]
    given: dict[str, str]
    log: Path


class Launcher(Protocol):
    """What starts jobs."""

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        """See whether jobs can be started.

        Args:
            ranks: of each job, over all its nodes; None where that varies.
            accelerator: of each job, as Lightning names it.

        Raises:
            UserError: they cannot.
        """

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        """Run jobs; each, as it ends, with how it ended: empty for success. Closed early, it ends those that run."""


def launch(launcher: Launcher, tasks: Sequence[Task]) -> None:
    """Run jobs to their end, and tell each in a line as it ends. SIGTERM stops them as Ctrl-C does."""
    from tqdm import tqdm

    def stop(*_: object) -> NoReturn:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, stop)
    running = launcher.run(tasks)
    try:
        for task, fault in tqdm(running, total=len(tasks), unit="job", disable=None):
            said = _last_line(task.log)
            if fault:
                tqdm.write(f"flr: {task.name} {fault}: {said.removeprefix('flr: ')}; see {task.log}", file=sys.stderr)
            else:
                tqdm.write(f"{task.name}: {said}")
    finally:
        running.close()  # type: ignore[attr-defined]
        signal.signal(signal.SIGTERM, before)


def _last_line(log: Path) -> str:
    """The last line that is not empty; nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "it wrote nothing"
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it wrote nothing")


def ended(code: int | None) -> str:
    """How a process ended, by its exit code; empty for success."""
    if not code:
        return ""
    if code < 0:
        why = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{why}"
    return f"ended with exit code {code}"


def _need(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"hydra/launcher needs {module}, which is not here; pip install 'flr[cluster]'") from error


# -- this machine ------------------------------------------------------------------------------------------------------


@dataclass
class Joblib:
    """Several jobs at once on this machine, which share out its cores and its GPUs.

    A job is forked from a process that has imported what a training needs, so it starts in a tenth of a second in place
    of five, and none is touched by another's end, as the jobs of a pool of workers are.

    Attributes:
        jobs: at once; by default as many as there are GPUs for, else cores.
        cores: of a job, to which it is bound; by default its share.
        gpus: of a job; by default one a device of its trainer, where there are any.
    """

    jobs: Count | None = None
    cores: Count | None = None
    gpus: Annotated[int, Ge(0)] | None = None
    _shares: list[tuple[list[int], list[str] | None]] = field(init=False, repr=False)

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise UserError("hydra/launcher=joblib needs Linux; leave it out, and the jobs run one after another")
        cores, ranks = sorted(os.sched_getaffinity(0)), ranks or 1
        gpus = [] if accelerator == "cpu" else _gpus()
        each = self.gpus if self.gpus is not None else ranks if gpus else 0
        if each * (self.jobs or 1) > len(gpus):
            raise UserError(
                f"hydra.launcher: {self.jobs or 1} job(s) of {each} GPU(s) at once, and {len(gpus)} are here; "
                "set hydra.launcher.jobs or hydra.launcher.gpus lower"
            )
        jobs = self.jobs or (len(gpus) // each if each else max(1, len(cores) // (self.cores or ranks)))
        own = self.cores or max(1, len(cores) // jobs)
        if own > len(cores):
            raise UserError(f"hydra.launcher.cores={own}: this machine has {len(cores)}; set that or fewer")
        if jobs * own > len(cores):
            print(
                f"note: {jobs} jobs at once of {own} core(s) each, and {len(cores)} cores are here: they will wait for "
                f"each other; hydra.launcher.jobs={len(cores) // own} would not",
                file=sys.stderr,
            )
        self._shares = [
            (
                [cores[(job * own + i) % len(cores)] for i in range(own)],
                gpus[job * each : (job + 1) * each] if gpus else None,
            )
            for job in range(jobs)
        ]

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        from multiprocessing import get_context
        from multiprocessing.connection import wait
        from queue import SimpleQueue
        from threading import Lock

        from joblib import Parallel, delayed

        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        free: SimpleQueue[tuple[list[int], list[str] | None]] = SimpleQueue()
        for share in self._shares:
            free.put(share)
        # The end of a forked process may be read once, and its start reads those of others.
        one, over = Lock(), False
        running: set[BaseProcess] = set()

        def work(task: Task) -> tuple[Task, str]:
            share = free.get()
            with one:
                if over:
                    return task, "was not started"
                process = context.Process(target=_train, args=(task, dict(os.environ), *share))
                process.start()
                running.add(process)
            wait([process.sentinel])
            with one:
                process.join()
                running.discard(process)
            free.put(share)
            return task, ended(process.exitcode)

        threads = Parallel(len(self._shares), backend="threading", return_as="generator_unordered", pre_dispatch="all")
        try:
            yield from threads(delayed(work)(task) for task in tasks)
        finally:
            with one:
                over, left = True, set(running)
                for process in left:
                    process.terminate()
            until = time.monotonic() + GRACE
            for process in left:
                if not wait([process.sentinel], max(0.0, until - time.monotonic())):
                    process.kill()


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _train(task: Task, environment: dict[str, str], cores: list[int], gpus: list[str] | None) -> None:
    """The life of a forked job."""
    from multiprocessing import parent_process
    from threading import Thread

    def follow() -> None:
        if parent := parent_process():  # the sweep; this process is a child of the one that forks
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=follow, daemon=True).start()
    os.setpgid(0, 0)  # Ctrl-C is the sweep's to answer
    environment = environment | task.given
    threads = min(len(cores), int(environment.get("OMP_NUM_THREADS") or len(cores)))
    environment["OMP_NUM_THREADS"] = str(threads)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    os.environ.clear()
    os.environ.update(environment)
    os.sched_setaffinity(0, cores)
    with task.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import torch

    torch.set_num_threads(threads)  # it has been imported, with the threads of all cores
    sys.argv = ["flr.train", *task.words]
    runpy.run_module("flr.train", run_name="__main__", alter_sys=True)  # `python -m flr.train`


# -- clusters ----------------------------------------------------------------------------------------------------------


class Process:
    """A job on a machine of a cluster, as what `submitit` and `ray` call there.

    Args:
        task: the job.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it; its exit code."""
        # SLURM signals all processes of a job; what it sends before the time limit is submitit's. Ignored stays ignored.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with self.task.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flr.train", *self.task.words],
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | self.task.given,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        signal.signal(signal.SIGUSR2, before)
        try:
            # With a timeout Python looks every 50 ms; a mere wait() does not hear Ray's cancel, which is no signal.
            code = self._process.wait(timeout=FOREVER)
        except BaseException:
            self._end()
            raise
        if code and os.environ.get("SLURM_PROCID") == "0":
            raise RuntimeError(ended(code))  # for SLURM's own books; the other ranks end with this one
        return code

    def checkpoint(self) -> Any:
        """End it for now, as `submitit` asks before the time limit: it goes on from its last epoch when it is requeued."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(Process(self.task))

    def _end(self) -> None:
        if self._process:
            self._process.terminate()
            with contextlib.suppress(ChildProcessError):  # it has ended, and was waited for
                # Not its own wait(): that holds a lock, from within which a signal may have called here.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


@dataclass
class Slurm:
    """An array of SLURM jobs, by submitit. A job that comes to its time limit is requeued and goes on in the same run.

    Attributes:
        partition: SLURM's; null for the cluster's default, as for what follows.
        account: who pays.
        qos: quality of service.
        minutes: the time limit of a job.
        nodes: of a job.
        tasks: ranks on each node, each a process: ``trainer.devices``.
        cores: of a task.
        gpus: of a node.
        memory: of a node, GiB.
        jobs: of the array at once.
        warning: seconds before the time limit at which a job is told to stop. It must be able to close its run in them.
        requeues: how often a job may come to its time limit and go on.
        sbatch: further options of sbatch by their long names, as ``{constraint: a100}``; true for one without a value.
        before: commands that the batch script runs first, as ``[module load cuda]``.
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
        _need("submitit")
        if not shutil.which("sbatch"):
            raise UserError("hydra/launcher=slurm: no sbatch here; start the sweep on a machine that submits to SLURM")
        if ranks not in (None, self.nodes * self.tasks):
            raise UserError(
                f"hydra.launcher.nodes={self.nodes} hydra.launcher.tasks={self.tasks}: that is "
                f"{self.nodes * self.tasks} rank(s), and the config is for {ranks}; set trainer=ddp, "
                "trainer.num_nodes to the nodes and trainer.devices to the tasks"
            )

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        submitit = _need("submitit")
        folder = tasks[0].log.parent / "slurm"
        wanted = {
            "job_name": folder.parent.name, "slurm_partition": self.partition, "slurm_account": self.account,
            "slurm_qos": self.qos, "slurm_time": self.minutes, "nodes": self.nodes, "tasks_per_node": self.tasks,
            "cpus_per_task": self.cores, "gpus_per_node": self.gpus or None, "mem_gb": self.memory,
            "slurm_array_parallelism": self.jobs, "slurm_signal_delay_s": self.warning, "slurm_setup": self.before or None,
            # Rank 0 alone ends with an error (see `Process`): where it fails early, the others wait for it.
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": {"requeue": True, **self.sbatch},
        }  # fmt: skip
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=self.requeues)
            own = {key.removeprefix("slurm_"): value for key, value in wanted.items() if value is not None}
            executor.update_parameters(**executor._convert_parameters(own))
            with executor.batch():
                handles = [executor.submit(Process(task)) for task in tasks]
            of = {handle.job_id: task for handle, task in zip(handles, tasks, strict=True)}
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"hydra/launcher=slurm: sbatch refuses the jobs: {error}") from error
        array = handles[0].job_id.partition("_")[0]
        print(f"SLURM job {array}: {len(tasks)} jobs of {self.minutes} minutes")
        try:
            yield from self._watch(array, of)
        finally:
            if of:
                subprocess.run(["scancel", array], check=False)
                until = time.monotonic() + GRACE
                while time.monotonic() < until and set((_states(array) or {}).values()) - ENDS:
                    time.sleep(0.5)

    def _watch(self, array: str, of: dict[str, Task]) -> Iterator[tuple[Task, str]]:
        """The jobs as they end; they are taken out of `of`."""
        start = time.monotonic()
        while of:
            # Soon for short jobs; a cluster's controller is not asked often for those of days.
            time.sleep(min(15.0, 0.5 + (time.monotonic() - start) / 60))
            if (states := _states(array)) is None:
                continue
            for job_id in [job_id for job_id in of if states.get(job_id, "COMPLETED") in ENDS]:
                state = states.get(job_id, "")  # SLURM forgets a job some minutes after its end
                yield of.pop(job_id), "" if state in ("COMPLETED", "") else f"is {state} as SLURM job {job_id}"


def _states(array: str) -> dict[str, str] | None:
    """SLURM's word for each job of an array that it knows; None where its controller does not answer, which is told."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return dict(line.split()[:2] for line in done.stdout.splitlines())
    if "Invalid job id" in done.stderr:
        return {}
    print(f"flr: squeue: {' '.join(done.stderr.split())[:200]}", file=sys.stderr)
    return None


@dataclass
class Ray:
    """Tasks of a Ray cluster.

    Attributes:
        address: of its head; ``auto`` for RAY_ADDRESS or one on this machine.
        jobs: at once; by default as many as there is room for.
        cores: of a job.
        gpus: of a job.
        resources: further ones by name.
    """

    address: str = "auto"
    jobs: Count | None = None
    cores: Count = 1
    gpus: Annotated[int, Ge(0)] = 0
    resources: dict[str, float] = field(default_factory=dict)

    def prepare(self, ranks: int | None, accelerator: str) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the behaviour to come, and no warning
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = _need("ray")
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
        wanted = {"CPU": self.cores, "GPU": self.gpus, **self.resources}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(key, 0) >= value for key, value in wanted.items()) for node in nodes):
            ray.shutdown()
            raise UserError(
                f"hydra.launcher: no machine of the Ray cluster has {wanted} for a job; set cores, gpus or resources lower"
            )

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        ray = _need("ray")
        start = ray.remote(_there).options(
            num_cpus=self.cores, num_gpus=self.gpus, resources=self.resources or None, max_retries=0
        )
        # A worker has the variables of its machine's daemon.
        mine = {key: value for key, value in os.environ.items() if key.startswith(("FLR_", "MLFLOW_", "PYTHONPATH"))}
        waiting = list(tasks)
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.jobs or len(tasks)):
                    task = waiting.pop(0)
                    running[start.remote(Process(task), mine, os.getcwd())] = task
                (done, *_), _ = ray.wait(list(running))
                task = running.pop(done)
                try:
                    code = ray.get(done)
                    yield task, ended(code)
                except ray.exceptions.RayError as error:
                    yield task, f"ended with {type(error).__name__}"
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            ray.shutdown()


def _there(process: Process, variables: dict[str, str], folder: str) -> int:
    """A job in a worker of Ray, which its next tasks find as it was."""
    before = dict(os.environ)
    try:
        for key in [key for key in before if key.startswith("SLURM_")]:
            del os.environ[key]  # of a cluster that srun has started: its tasks are no ranks of this job
        os.environ.update(variables)
        with contextlib.chdir(folder):
            return process()
    finally:
        os.environ.clear()
        os.environ.update(before)
