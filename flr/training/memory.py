"""Report and free the memory of a training's device."""

import functools
import gc
from collections.abc import Callable
from typing import Any

import torch

from flr.errors import UserError


def device_memory(run: Callable[..., None]) -> Callable[..., None]:
    """Wrap the run of a `TrainingSession`: report in one line that memory ran out, and free the device afterwards.

    Otherwise the next training of this process would find less memory and keep its crops on the host.
    """

    @functools.wraps(run)
    def wrapped(session: Any) -> None:
        try:
            run(session)
        except RuntimeError as error:
            data = getattr(session, "data", None)
            full = isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)
            if data is None or data.table is None or not full:
                raise
            where = ", ".join(sorted({str(held.images.device) for held in data.tensors.values()})) or "not loaded"
            raise UserError(
                f"the {session.device} device is out of memory with data.batch_size={data.batch_size}, "
                f"data.crop.size={data.crop.size} and crops of {data.store.images.nbytes / 2**30:.1f} GiB ({where}); "
                "lower data.batch_size or data.crop.size, or set trainer.precision=bf16-mixed"
            ) from error
        finally:
            if hasattr(session, "data"):
                session.data.tensors.clear()
                session.data.trainer = None  # a result keeps the data
            if hasattr(session, "trainer"):
                for callback in session.trainer.callbacks:
                    for name in ("log", "log_dict"):  # Lightning makes the module's methods theirs
                        vars(callback).pop(name, None)
                del session.trainer
            vars(session).pop("module", None)
            gc.collect()  # Lightning's Trainer and the module refer to each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    return wrapped
