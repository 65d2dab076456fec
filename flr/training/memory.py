"""Explain that a device's memory is full, and free it after a training."""

import gc
from typing import Any

import torch

from flr.data.datamodule import FaceData
from flr.errors import UserError


def explain_memory(error: RuntimeError, data: FaceData, device: str) -> UserError | None:
    """Explain the error of a device whose memory is full in one line; return None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError) and "MPS backend out of memory" not in str(error):
        return None
    where = ", ".join(sorted({str(held.images.device) for held in data.tensors.values()})) or "not loaded"
    return UserError(
        f"the {device} device is out of memory with data.batch_size={data.batch_size}, "
        f"data.crop.size={data.crop.size} and crops of {data.store.images.nbytes / 2**30:.1f} GiB ({where}); "
        "lower data.batch_size or data.crop.size, or set trainer.precision=bf16-mixed"
    )


def free_device(session: Any) -> None:
    """Free what a `TrainingSession` keeps on its device.

    Otherwise the next training of this process would find less memory and keep its crops on the host.
    """
    session.data.tensors.clear()
    session.data.trainer = None  # a result keeps the data
    if hasattr(session, "trainer"):
        for callback in session.trainer.callbacks:
            for name in ("log", "log_dict"):  # Lightning makes the module's methods theirs
                vars(callback).pop(name, None)
        del session.trainer
    del session.module
    gc.collect()  # Lightning's Trainer and the module refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
