"""Copy the arrays of a batch to a device without waiting for the device."""

import numpy as np
import torch
from torch import Tensor

ALIGN = 16  # bytes: every item size divides it


def to_device(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Copy arrays in one transfer, which the device makes when it comes to it.

    On a CUDA device the transfer is from pinned memory: from other memory the host would wait until the device has done all that
    it was given before.

    Returns:
        The arrays as tensors; float64 becomes float32, since MPS has no float64.
    """
    arrays = tuple(np.ascontiguousarray(a, np.float32 if a.dtype == np.float64 else None) for a in arrays)
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    starts = np.cumsum([0, *(-(-array.nbytes // ALIGN) * ALIGN for array in arrays)]).tolist()
    packed = torch.empty(starts.pop(), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, start in zip(arrays, starts, strict=True):
        packed.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = packed.to(device, non_blocking=True)
    return [
        there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=True)
    ]
