"""What all launchers share: a job as a command, its process, and the loop that reports jobs as they end.

Hydra imports this module at each start of a command, so libraries that take long to import are imported where they are used.
"""

import importlib
import os
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from annotated_types import Ge
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from flr.config.compose import key_of, label_of
from flr.errors import UserError
from flr.sweeps.grid import SWEEP_ENV, grid_of

GRACE = 60.0  # seconds for a job to close its run after SIGTERM
PARENT = "FLR_PARENT"  # variable with the id of the process that started a job, with which the job ends

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Task:
    """A job as a command.

    Attributes:
        name: The job's name.
        arguments: What follows ``python -m flr.train``.
        variables: Environment variables, in addition to those of the process that starts it.
        log: The file for its output.
    """

    name: str
    arguments: list[str]
    variables: dict[str, str]
    log: Path

    def start(self, variables: dict[str, str], process_group: int | None = None) -> "subprocess.Popen[bytes]":
        """Start the process, with further variables and, where 0 is given, in a process group of its own."""
        common = {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flr.train", *self.arguments],
                env=os.environ | common | variables | self.variables,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=process_group,
            )  # fmt: skip


# How a task ended: empty for success, else words that follow the job's name.
TaskEnd = tuple[Task, str]


class JobLauncher(Launcher):
    """Base class of the launchers, in the form that Hydra calls."""

    @abstractmethod
    def prepare(self, ranks: int | None, accelerator: str) -> None:
        """Check that jobs can be started.

        Args:
            ranks: Processes of each job, over all its nodes; None where that varies.
            accelerator: Accelerator of each job, by Lightning's name.

        Raises:
            UserError: They cannot be started.
        """

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> Generator[TaskEnd, None, None]:
        """Run tasks and yield each when it ends. Closing the generator early ends the tasks that still run."""

    def setup(self, *, config: DictConfig, **_: Any) -> None:
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Run the jobs of a sweep to their end and report each in one line. SIGTERM stops them like Ctrl-C."""
        trainer, keys = self._config.trainer, grid_of(self._config).values.keys()
        devices, nodes = trainer.devices, trainer.get("num_nodes", 1)
        constant = isinstance(devices, int) and devices > 0 and not keys & {"trainer", "trainer.devices", "experiment"}
        self.prepare(devices * nodes if constant else None, str(trainer.accelerator))
        tasks = self._tasks(job_overrides, initial_job_idx)
        previous_handler = signal.signal(signal.SIGTERM, _exit)
        running = self.run(tasks)
        try:
            _report(running, len(tasks))
        finally:
            running.close()
            signal.signal(signal.SIGTERM, previous_handler)
        return []

    def _tasks(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Task]:
        keys = grid_of(self._config).values
        folder = Path(self._config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        sweep = os.environ.get(SWEEP_ENV)
        tasks = []
        for number, overrides in enumerate(job_overrides, first):
            log = folder / f"{number}.log"
            log.unlink(missing_ok=True)  # of an earlier start
            variables = {SWEEP_ENV: f"{sweep}/{number}"} if sweep else {}
            name = label_of(list(overrides), keys) or f"job {number}"
            tasks.append(Task(name, job_arguments(self._config, overrides), variables, log))
        return tasks


def job_arguments(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return what follows ``python -m flr.train`` for a job in a process of its own."""
    search_path = [word for word in config.hydra.overrides.hydra if key_of(word) == "hydra.searchpath"]
    return [*overrides, *search_path, "hydra.mode=RUN"]


def describe_exit(code: int | None) -> str:
    """Describe how a process ended by its exit code; empty for success."""
    if not code:
        return ""
    if code < 0:
        why = ", as when memory runs out" if code == -9 else ""
        return f"was killed by {signal.Signals(-code).name}{why}"
    return f"ended with exit code {code}"


def import_extra(module: str) -> Any:
    """Import a library of the extra ``cluster``.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"hydra/launcher needs {module}, which is not installed; pip install 'flr[cluster]'") from error


def _exit(*_: object) -> NoReturn:
    sys.exit(143)


def _report(running: Generator[TaskEnd, None, None], count: int) -> None:
    for ended, (task, fault) in enumerate(running, 1):
        line = _last_line(task.log)
        if fault:
            print(f"flr: {task.name} {fault}: {line.removeprefix('flr: ')}; see {task.log}", file=sys.stderr)
        else:
            print(f"{ended} of {count}: {task.name}: {line}", flush=True)


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it wrote nothing")
