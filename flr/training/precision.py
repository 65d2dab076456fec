"""What makes a training faster on the device at hand: each a key of the config, the safe ones set by ``trainer.speed=auto``.

| key | what | auto |
|---|---|---|
| ``trainer.precision=bf16-mixed`` | products in 16 bit; coordinates, losses and weights stay 32 bit | where the device multiplies them natively |
| ``optim.fused=true`` | one kernel for all weights | where gradients are not clipped, which Lightning cannot join with it in 16 bit |
| ``trainer.tf32=true`` | an NVIDIA GPU of 2020 or later rounds the factors of 32-bit products to 10 bits of mantissa | never |
| ``trainer.compile=default`` | the model's own kernels, by torch.compile | never: it takes a minute to begin |
| ``trainer.compile=reduce-overhead`` | on a GPU CUDA graphs as well | never |

Images are channels_last under all of them. `benchmarks/switches.py` measures what each is worth.
"""

import inspect
import os
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import nn

from flr.config.instantiate import build
from flr.config.validate import EXTRA_KEYS, resolve
from flr.errors import UserError
from flr.module.device import allow_tf32

if TYPE_CHECKING:
    import pytorch_lightning as pl

# Keys of Lightning's Trainer that a run must not change, with the value that they may have and the reason.
REQUIRED = {
    "enable_checkpointing": (True, "a run is tested and resumed from its checkpoints"),
    "fast_dev_run": (False, "it keeps neither checkpoints nor metrics; debug=fast trains two batches"),
    "barebones": (False, "it keeps neither checkpoints nor metrics"),
    "limit_test_batches": (None, "a test set is never scored in part"),
}
# The CPU features that make bfloat16 products faster than 32 bit. Plain AVX-512 emulates them and is slower; ARM is not measured.
CPU_BF16 = ("amx_bf16", "avx512_bf16")
OWN_STATISTICS = 16  # faces of a rank that are enough for its batch norm to learn from them alone


def trainer_of(cfg: DictConfig, **given: Any) -> "pl.Trainer":
    """Lightning's Trainer of a checked config, less the keys that it does not know, which are set here."""
    allow_tf32(bool(cfg.trainer.get("tf32")))
    trainer: pl.Trainer = build(
        {key: cfg.trainer[key] for key in cfg.trainer if key not in EXTRA_KEYS["trainer"]},
        sync_batchnorm=bool(cfg.trainer.get("sync_batchnorm")),
        **given,
    )
    return trainer


def check_trainer(trainer: DictConfig) -> None:
    """Refuse what leaves a run without training, checkpoints or a whole test.

    Raises:
        UserError: such a value; it names the key.
    """
    for key, (allowed, reason) in REQUIRED.items():
        value = trainer.get(key)
        if value is not None and value != allowed:
            raise UserError(f"trainer.{key}={value}: {reason}; leave it out")
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(key) is not None and (trainer[key] == 0 or (key == "max_epochs" and trainer[key] < 0)):
            raise UserError(f"trainer.{key}={trainer[key]} trains nothing; set 1 or more")


def settle_batch_norm(cfg: DictConfig, device: str, ranks: int) -> None:
    """Resolve ``trainer.sync_batchnorm=null``: true where a GPU has fewer than `OWN_STATISTICS` faces of a batch.

    torch's layer waits for the device three times a layer and step, and takes no CPU tensor, so that on CPUs it is always false.

    Args:
        cfg: A checked config, changed in place.
        device: Device type of the ranks, as ``cpu`` or ``cuda``.
        ranks: Number of processes that train together.
    """
    given = cfg.trainer.get("sync_batchnorm")
    if given and device == "cpu" and ranks > 1:
        print(
            "note: trainer.sync_batchnorm=true needs GPUs; on CPUs each rank normalises its own faces", file=sys.stderr
        )
    few = ranks > 1 and cfg.data.batch_size // ranks < OWN_STATISTICS
    cfg.trainer.sync_batchnorm = device != "cpu" and bool(few if given is None else given)


def check_batch_norm(net: nn.Module) -> None:
    """Check that torch's synchronised batch norm can stand for each layer of a model.

    Raises:
        UserError: A layer is of a class that does more than batch norm, which torch would drop.
    """
    for layer in net.modules():
        standard = type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and not standard:
            raise UserError(
                f"{type(layer).__name__} cannot learn from several devices at once; set trainer.sync_batchnorm=false"
            )


def resolve_precision_and_fusion(cfg: DictConfig, device: str, bf16: bool | None = None) -> None:
    """Resolve ``trainer.speed=auto`` for a device, so that a run's config says what it trained with.

    Args:
        cfg: a checked config, changed in place; keys that are set already stay, but for a precision of 32 bit, the default.
        device: ``cpu`` or ``cuda``; any other gets nothing.
        bf16: whether it multiplies bfloat16 natively; None looks.

    Raises:
        UserError: a fused optimiser is to have its gradients clipped in 16 bit.
    """
    clipped = bool(cfg.trainer.get("gradient_clip_val"))
    if cfg.trainer.get("speed") == "auto":
        cfg.trainer.speed = None
        if str(cfg.trainer.precision) in ("32", "32-true") and (has_bf16(device) if bf16 is None else bf16):
            cfg.trainer.precision = "bf16-mixed"
        knows = "fused" in inspect.signature(resolve(cfg.optim._target_, "optim", trusted=True)).parameters
        if device in ("cpu", "cuda") and knows and not clipped and cfg.optim.get("fused") is None:
            cfg.optim.fused = True
    if clipped and cfg.optim.get("fused") and "mixed" in str(cfg.trainer.precision):
        raise UserError(
            f"optim.fused=true and trainer.gradient_clip_val do not go together under {cfg.trainer.precision}; leave one out"
        )


def bf16_hardware(device: str) -> str:
    """Name what multiplies bfloat16 natively on a device.

    Args:
        device: ``cpu``, ``cuda`` or another.

    Returns:
        ``tensor cores`` on a GPU, the first of `CPU_BF16` that a CPU has, else ``none``.
    """
    if device == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else "none"
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # oneDNN has the kernels
        return "none"
    features = torch.cpu.get_capabilities()
    return next((feature for feature in CPU_BF16 if features.get(feature)), "none")


def has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 natively; see `bf16_hardware`."""
    return bf16_hardware(device) != "none"


def compile_net(net: nn.Module, mode: str | None, device: str, ranks: int = 1) -> None:
    """Have a model's forward and backward compiled at its first batch; its keys stay as they are.

    ``reduce-overhead`` puts both into CUDA graphs, which take no launch for each kernel. The rest of a step stays outside of
    them: the draws of an augmentation come from the host, the learning rate and the decay of the averaged weights are numbers
    that change, and Lightning calls the optimiser. The next run of a graph overwrites its output, from which the objective
    computes the loss and the points into memory of their own. Untested: no GPU has run it.

    Args:
        net: the model.
        mode: of torch.compile; None leaves it as it is.
        device: ``cpu`` or ``cuda``.
        ranks: that train together.

    Raises:
        UserError: what compiles for that device is not installed, or several ranks are to do it on CPUs.
    """
    if mode is None:
        return
    if device == "cpu" and ranks > 1:
        raise UserError(f"trainer.compile={mode} and {ranks} ranks on CPUs do not go together; leave one out")
    if device == "cuda" and find_spec("triton") is None:
        raise UserError(f"trainer.compile={mode} needs triton, which is not installed; leave it out")
    if device == "cpu" and not shutil.which(compiler := os.environ.get("CXX", "g++")):
        raise UserError(f"trainer.compile={mode} needs a C++ compiler, and there is no {compiler}; leave it out")
    net.compile(mode=mode)
