"""The device that a model runs on, and how exactly it multiplies."""

import torch

from flr.errors import UserError
from flr.system import split_device


def find_device(name: str) -> torch.device:
    """Find a device by its name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for a GPU where there is one.

    Raises:
        UserError: This machine has no such device.
    """
    kind, number = split_device(name)
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if kind == "auto":
        return torch.device(next(each for each, count in found.items() if count))
    if (number or 0) >= found[kind]:
        raise UserError(f"device={name}: this machine has {found[kind]} device(s) of that kind; set device=auto")
    return torch.device(name)


def allow_tf32(allowed: bool) -> None:
    """Set whether a GPU may round the factors of 32-bit products to 10 bits of mantissa (TF32); a CPU never does.

    torch's own default allows it in convolutions and not in matrix products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
