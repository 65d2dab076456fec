"""The device that a model runs on, and how exactly it multiplies."""

import torch

from flr.errors import UserError


def find_device(name: str) -> torch.device:
    """Find a device by its name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for a GPU where there is one.

    Raises:
        UserError: This machine has no such device.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind, _, number = name.partition(":")
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}
    if kind not in found or not (number or "0").isdigit():
        raise UserError(f"device={name}: set auto, cpu, cuda, cuda:1 or mps")
    if int(number or 0) >= found[kind]:
        raise UserError(f"device={name}: this machine has {found[kind]} device(s) of that kind; set device=auto")
    return torch.device(name)


def allow_tf32(allowed: bool) -> None:
    """Set whether a GPU may round the factors of 32-bit products to 10 bits of mantissa (TF32); a CPU never does.

    torch's own default allows it in convolutions and not in matrix products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
