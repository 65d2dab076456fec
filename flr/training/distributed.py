"""The ranks of one training: started together, ended together, with one batch norm over all of them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.plugins import TorchSyncBatchNorm
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch import distributed as dist

from flr.errors import UserError

LINE = "FLR_LINE"  # the variable by which a rank finds the pipe to the one that started it
DONE = "0"  # the word of a rank that has done its work
SETTLE = 5.0  # seconds for a line to tell of a death, once a collective has failed of it
LEAVE = 30.0  # seconds to leave a process group of GPUs that lacks a rank


class Ranks(pl.Callback):
    """The ranks of one training, of which all end as soon as one ends before its work is done.

    Rank 0 holds a line to each other rank: a pipe to those that it starts itself, a connection to those that torchrun or
    SLURM start. A thread listens on each, so that a death is seen at once, whatever the main thread waits for: a
    collective of GPUs may never return when a rank is missing.

    Rank 0 alone answers Ctrl-C and SIGTERM, which a terminal and a scheduler send to all; the others end with it.

    Args:
        lost: what rank 0 does before it ends because another rank has, given the exit code and, after a blank, why.

    Attributes:
        first: whether this is rank 0, which alone writes.
        environment: who starts the ranks.

    Raises:
        UserError: SLURM's variables are not those that Lightning can use.
    """

    def __init__(self, lost: Callable[[str], None]) -> None:
        try:
            self.environment = _environment()
        except RuntimeError as error:
            raise UserError(f"SLURM: {error}") from error
        self.first = self.environment.node_rank() == 0 and self.environment.local_rank() == 0
        self._rank = self.environment.local_rank()
        self._lost, self._mine = lost, threading.Lock()
        self._lines: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}
        self._handlers: dict[signal.Signals, Any] = {}
        if not self.first:
            self._answer(signal.SIG_IGN)
        if line := os.environ.pop(LINE, None):
            self._listen(Connection(int(line)), 0)

    def hear(self) -> None:
        """From here on SIGTERM ends the run in order: until the other ranks start, and after the fit too."""
        if self.first:
            self._answer(_terminate, signal.SIGTERM)

    def launch(self, trainer: pl.Trainer, folder: Path | None) -> None:
        """Start the other ranks, where nobody else does.

        Args:
            trainer: built, not begun.
            folder: of the run, with its config in it; None on a rank that does not know it.

        Raises:
            UserError: the trainer wants other ranks than were started, or ranks that cannot be started here.
        """
        started = trainer.world_size
        if not isinstance(self.environment, LightningEnvironment):
            started = self.environment.world_size()
        if started != trainer.world_size:
            raise UserError(
                f"{started} ranks were started, and the config is for {trainer.world_size}; set trainer=ddp, "
                "trainer.devices to the ranks of a node and trainer.num_nodes to the nodes"
            )
        if trainer.world_size == 1:
            return
        if self.environment.creates_processes_externally:
            return
        assert folder is not None
        if sys.platform == "win32":  # no pipe can be handed to a process there
            raise UserError(f"trainer.devices={trainer.world_size}: needs Linux or macOS; set trainer.devices=1")
        if trainer.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes={trainer.num_nodes}: start the ranks of several nodes by torchrun or srun"
            )
        self._before = {key: os.environ.get(key) for key in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")}
        os.environ["MASTER_ADDR"] = self.environment.main_address
        os.environ["MASTER_PORT"] = str(self.environment.main_port)
        os.environ["LOCAL_RANK"] = "0"  # tells Lightning that the ranks are started for it
        # Deaf from their first moment on: what is ignored stays so in a new process.
        heard = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for rank in range(1, trainer.world_size):
                here, there = Pipe()
                given = {"LOCAL_RANK": str(rank), LINE: str(there.fileno()), "FLR_RUN_FOLDER": str(folder)}
                command = [sys.executable, "-m", "flr.train"]
                self._processes.append(subprocess.Popen(command, env=os.environ | given, pass_fds=[there.fileno()]))
                there.close()
                self._listen(here, rank)
        finally:
            for number, handler in heard.items():
                signal.signal(number, handler)

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # The first place where all ranks can speak to each other.
        if self._lines or trainer.world_size == 1:
            return
        self._rank = trainer.global_rank
        if self.first:
            key = secrets.token_bytes(32)
            with Listener(("", 0), backlog=trainer.world_size, authkey=key) as door:
                trainer.strategy.broadcast((door.address[1], key))
                while len(self._lines) < trainer.world_size - 1:
                    with contextlib.suppress(AuthenticationError, EOFError, OSError):  # a stranger
                        line = door.accept()
                        self._listen(line, int(line.recv_bytes()))
        else:
            port, key = trainer.strategy.broadcast((0, b""))
            line = Client((os.environ["MASTER_ADDR"], port), authkey=key)
            line.send_bytes(str(self._rank).encode())
            self._listen(line, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning's own handler of SIGTERM, set just now, calls the other ranks from wherever this one is: they may be
        # in another collective, and then all wait for ever.
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, _terminate if self.first else signal.SIG_IGN)

    on_test_start = on_train_start

    # -- the end ---------------------------------------------------------------------------------------------------

    def hold(self, error: BaseException | None) -> None:
        """From here on this rank ends for a reason of its own.

        Args:
            error: that reason; None where its work is done.
        """
        if self._lines and isinstance(error, Exception) and not isinstance(error, UserError):
            time.sleep(SETTLE)  # a collective fails where another rank has ended, and its line tells so
        self._mine.acquire()
        self._answer(signal.SIG_IGN)  # Ctrl-C again must not leave the run without an end

    def close(self, error: BaseException | None) -> None:
        """Tell the other ranks that this one ends; see those end that it has started.

        Args:
            error: as for `hold`.
        """
        if error is None:
            self._tell(DONE)
            if dist.is_initialized():
                dist.destroy_process_group()
        elif self.first:
            self._tell("1")
            if dist.is_initialized() and dist.get_backend() == "nccl":
                leave = threading.Timer(LEAVE, os._exit, [1])
                leave.daemon = True
                leave.start()
        elif self._lines:
            if not isinstance(error, UserError):
                traceback.print_exception(error)  # before rank 0 has all end
            said = f"2 {error}" if isinstance(error, UserError) else f"1 rank {self._rank} failed: {error!r}"
            self._tell(" ".join(said.split()))
            sys.exit(int(said[0]))
        self._end_mine(60 if error is None else 0)
        for key, value in self._before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        if self.first:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _end_mine(self, seconds: float) -> None:
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            process.wait()

    def _tell(self, word: str) -> None:
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.send_bytes(word.encode())

    def _listen(self, line: Connection, rank: int) -> None:
        self._lines.append(line)
        threading.Thread(target=self._hear, args=(line, rank), daemon=True, name=f"line to rank {rank}").start()

    def _hear(self, line: Connection, rank: int) -> None:
        """Wait for another rank's last word: `DONE`, or an exit code and what is to be said."""
        try:
            word = line.recv_bytes().decode()
        except (EOFError, OSError):
            word = f"1 rank {rank} died, as it does when it is killed or memory runs out; all ranks stop"
            if rank == 0 and self._rank != 1:
                word = "1"  # all others see it, one says it
        if word != DONE:
            self._follow(word)

    def _follow(self, word: str) -> NoReturn:
        """End this process since another rank has ended."""
        self._mine.acquire()
        code, _, text = word.partition(" ")
        try:
            if text:
                print(f"flr: {text}", file=sys.stderr, flush=True)
            if self.first:
                self._lost(word)
        finally:
            self._tell("1")
            self._end_mine(0)
            os._exit(int(code))

    def _answer(self, handler: Any, *numbers: signal.Signals) -> None:
        for number in numbers or (signal.SIGINT, signal.SIGTERM):
            self._handlers.setdefault(number, signal.signal(number, handler))


def started_outside() -> bool:
    """Whether this is one of several ranks that torchrun or SLURM have started.

    Raises:
        UserError: as `Ranks`.
    """
    try:
        environment = _environment()
        return environment.creates_processes_externally and environment.world_size() > 1
    except RuntimeError as error:
        raise UserError(f"SLURM: {error}") from error


def first_outside() -> bool:
    """Whether this is rank 0, of those that torchrun or SLURM have started."""
    return not started_outside() or _environment().global_rank() == 0


def _environment() -> ClusterEnvironment:
    """Who starts the ranks, as Lightning's Trainer finds it."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            return kind()
    return LightningEnvironment()


def _terminate(*_: object) -> NoReturn:
    raise SIGTERMException


# -- batch norm --------------------------------------------------------------------------------------------------------


class GlobalBatchNorm(TorchSyncBatchNorm):
    """Has batch norm learn from the global batch: on GPUs by torch's layer, which takes no CPU, and there by `_normalise`.

    The layers keep their names and values, so checkpoints are those of one device.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        if dist.get_world_size() == 1:
            return model
        layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for layer in layers:
            if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                raise UserError(
                    f"{type(layer).__name__} cannot learn from several devices at once; set trainer.sync_batchnorm=false"
                )
        if dist.get_backend() == "nccl":  # the model is not on its device yet
            return super().apply(model)
        for layer in layers:
            layer.__dict__["forward"] = partial(_normalise, layer)  # before its class's
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.__dict__.pop("forward", None)
        return super().revert(model)


def _normalise(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """(B, C, ...) of this rank by the mean and the variance of all ranks' faces."""
    if not layer.training:
        return type(layer).forward(layer, x)
    weight = layer.weight if layer.affine else x.new_ones(x.shape[1], dtype=torch.float32)
    bias = layer.bias if layer.affine else torch.zeros_like(weight)
    return _Normalise.apply(x.float(), weight, bias, layer).to(x.dtype)


class _Normalise(torch.autograd.Function):
    """Batch norm as of Ioffe and Szegedy (2015), its sums taken over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(x, None, None, 0.0))
        own = x.numel() // x.shape[1]  # the ranks' shares may differ by a face
        sums = torch.cat([own * mean, own * (variance + mean**2), mean.new_tensor([own])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean**2  # exact enough in 64 bit
        if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
            layer.num_batches_tracked += 1
            rate = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.float(), rate)
            layer.running_var.lerp_((variance * count / (count - 1)).float(), rate)
        ctx.save_for_backward(x, weight, mean.float(), variance.float(), count)
        ctx.eps = layer.eps
        return nn.functional.batch_norm(x, mean.float(), variance.float(), weight, bias, eps=layer.eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # As if mean and variance were given; then what comes by way of them.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([dbias, dweight]).double()
        dist.all_reduce(sums)
        by_mean, by_scale = (sums / count).float().chunk(2)
        inverse = (variance + ctx.eps).rsqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        dx += (weight * inverse * (mean * inverse * by_scale - by_mean)).view(shape)
        dx.addcmul_(x, (-weight * inverse**2 * by_scale).view(shape))
        return dx, dweight, dbias, None  # DDP adds up those of the parameters
