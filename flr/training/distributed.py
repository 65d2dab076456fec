"""Train one run in several processes, the ranks: who starts them, and what each does with Ctrl-C and SIGTERM."""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import DictConfig
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.utilities.exceptions import SIGTERMException

from flr.errors import CommandFailed, UserError
from flr.system import cores

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REFUSED = 2  # exit code of a rank that ended with a UserError


def cluster_environment() -> ClusterEnvironment:
    """Return who starts the ranks, as Lightning's Trainer finds it.

    Raises:
        UserError: SLURM's variables are not those that Lightning can use.
    """
    try:
        for kind in (TorchElasticEnvironment, SLURMEnvironment):
            if kind.detect():
                return kind()
    except RuntimeError as error:
        raise UserError(f"SLURM: {error}") from error
    return LightningEnvironment()


def started_outside() -> bool:
    """Return whether this is one of several ranks that torchrun, SLURM or `run_ranks` have started.

    Raises:
        UserError: See `cluster_environment`.
    """
    environment = cluster_environment()
    return environment.creates_processes_externally and environment.world_size() > 1


def is_first_rank() -> bool:
    """Return whether this is rank 0, which alone writes.

    Raises:
        UserError: See `cluster_environment`.
    """
    environment = cluster_environment()
    return environment.node_rank() == 0 and environment.local_rank() == 0


def check_ranks(settings: DictConfig, trial: pl.Trainer) -> None:
    """Check that a Trainer would train on the devices that the config names, and that their ranks are or can be started.

    Args:
        settings: The config's ``trainer``.
        trial: The Trainer that Lightning makes of it.

    Raises:
        UserError: It would not, or they cannot.
    """
    environment, devices, wanted = cluster_environment(), settings.devices, trial.world_size
    if isinstance(devices, int) and devices not in (-1, trial.num_devices):
        raise UserError(
            f"trainer.strategy={settings.strategy} trains on {trial.num_devices} device(s), not {devices}; set ddp"
        )
    if isinstance(trial.accelerator, CPUAccelerator) and trial.num_devices > cores() and not started_outside():
        raise UserError(f"trainer.devices={devices}: this machine has {cores()} cores; set that or fewer")
    started = wanted if isinstance(environment, LightningEnvironment) else environment.world_size()
    if started != wanted:
        raise UserError(
            f"{started} ranks were started, and the config is for {wanted}; set trainer=ddp, trainer.devices to the ranks "
            "of a node and trainer.num_nodes to the nodes"
        )
    if wanted == 1 or environment.creates_processes_externally:
        return
    if sys.platform == "win32":  # where a rank would outlive a killed parent
        raise UserError(f"trainer.devices={wanted}: needs Linux or macOS; set trainer.devices=1")
    if trial.num_nodes > 1:
        raise UserError(f"trainer.num_nodes={trial.num_nodes}: start the ranks of several nodes by torchrun or srun")


def run_ranks(count: int, training: dict[str, Any]) -> None:
    """Train in processes of this machine, one for each device, under torch's elastic agent.

    The agent ends all of them when one fails, or when Ctrl-C or SIGTERM raises in this process (see `exit_on_signals`).

    Args:
        count: Number of ranks.
        training: What `flr.training.rank` needs to know, plain values.

    Raises:
        UserError: A rank found bad input.
        CommandFailed: A rank failed or was killed.
    """
    # It takes a tenth of a second, which trainings on one device do without.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # one line is reported, by whoever catches the error
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="flr-") as folder:
        file = Path(folder) / "training.json"
        training |= {"parent": os.getpid(), "threads": max(1, cores() // count)}
        file.write_text(json.dumps(training), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, run_id="flr", rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="",  # the handlers of this process raise, and the agent then ends the ranks
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "flr.training.rank", str(file))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                why = ", as when memory runs out" if failure.exitcode == -9 else ""
                name = signal.Signals(-failure.exitcode).name
                raise CommandFailed(f"rank {rank} was killed by {name}{why}; all ranks stop") from None
            recorded: Any = failure.message  # a text where the rank could not record its error
            reason = recorded["message"] if isinstance(recorded, dict) else f"exit code {failure.exitcode}"
            if failure.exitcode == REFUSED:
                raise UserError(reason.removeprefix("UserError: ")) from None
            raise CommandFailed(f"rank {rank} failed: {' '.join(reason.split())}") from None


# -- signals -----------------------------------------------------------------------------------------------------------


class OwnSigterm(pl.Callback):
    """Keep this process's handler of SIGTERM during a training.

    Lightning's own broadcasts from wherever a rank is. The others may be in another collective, and then all wait forever.
    Lightning also has the ranks ask each other before each step whether one got SIGTERM, for which a GPU waits.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.handler)
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None  # there is no setting for it

    on_test_start = on_train_start

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        # What a checkpoint's epoch measured is sent before the checkpoint counts: a signal may end a rank at any time.
        for logger in trainer.loggers:
            logger.save()


def exit_on_signals(first: bool) -> None:
    """Set what this process does with Ctrl-C and SIGTERM while it trains.

    Args:
        first: Whether it closes the run, for which SIGTERM raises `SIGTERMException`; other ranks end at once.
    """
    if first:
        signal.signal(signal.SIGTERM, _raise_sigterm)
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM: a second one must not leave a run without an end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _raise_sigterm(*_: object) -> NoReturn:
    raise SIGTERMException


@contextlib.contextmanager
def restored_signals() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM at the end."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
