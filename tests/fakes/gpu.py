"""A GPU that CPU memory plays, for machines without one.

The CPU computes every result. A tag on each storage says whether the GPU would hold it, so that mixed devices raise as they do
on a real one, and each place where the host would wait for the GPU is noted. What only a real GPU shows: time, its own rounding,
its kernels' limits.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flr.augment.device import noise_bank, resampling
from flr.training.callbacks import Progress
from flr.training.distributed import OwnSigterm

# Operators that run nothing on the device.
VIEWS = frozenset([
    "view", "t", "transpose", "permute", "select", "slice", "expand", "unsqueeze", "squeeze", "as_strided", "alias",
    "unbind", "split", "split_with_sizes", "detach", "_unsafe_view", "lift_fresh", "unfold", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "set_", "diagonal", "reshape", "detach_",
    "resize_", "is_pinned", "squeeze_", "unsqueeze_", "chunk", "_local_scalar_dense",
])  # fmt: skip
# Operators whose result the host must see before it goes on.
WAITING = frozenset(
    ["_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2", "bincount"]
)
INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_"])
# Calls of cuDNN's or PyTorch's that launch two kernels.
DOUBLE = frozenset(["convolution_backward", "native_batch_norm_backward"])
PROPERTIES = {getattr(Tensor, name).__get__: name for name in ("device", "is_cuda", "is_cpu", "is_mps")}


class FakeGPU:
    """Plays a GPU while it is entered.

    Args:
        kind: ``cuda`` or ``mps``.
        free: bytes of its memory.
        ranks: that train together, of which this is the first, and each other one has the same values.

    Attributes:
        waits: (what, where) of each time that the host waited.
        launches: calls of operators that run on the device.
    """

    def __init__(self, kind: str = "cuda", free: int = 80 * 10**9, ranks: int = 1) -> None:
        self.kind, self.device, self.free, self.ranks = kind, torch.device(kind, 0), free, ranks
        self.waits: list[tuple[str, str]] = []
        self.launches: Counter[str] = Counter()
        self.held: set[int] = set()  # addresses of storages on the device
        self.pinned: set[int] = set()

    def __enter__(self) -> "FakeGPU":
        for constant in (noise_bank, resampling):  # kept for each device, and this is a new one
            constant.cache_clear()
        from_numpy = torch.from_numpy
        self.stack = ExitStack()
        for target, name, fake in (
            (torch, "from_numpy", lambda array: self.place(from_numpy(array), False)),
            (torch.cuda, "mem_get_info", lambda *_: (self.free, self.free)),
            (torch.cuda, "synchronize", lambda *_: None),
        ):
            self.stack.enter_context(patch.object(target, name, fake))
        self.stack.enter_context(_Operators(self))
        self.stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _address(value) in self.held

    def place(self, tensor: Tensor, here: bool) -> Tensor:
        if address := _address(tensor):
            (self.held.add if here else self.held.discard)(address)
            self.pinned.discard(address)
        return tensor

    def wait(self, what: str) -> None:
        self.waits.append((what, _caller()))

    def refuse_double(self, dtype: torch.dtype) -> None:
        if self.kind == "mps" and dtype == torch.float64:
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype, {_caller()}")

    def trainer(self, precision: str = "32-true", **arguments: Any) -> pl.Trainer:
        """Build Lightning's Trainer on this device."""
        plugin = MixedPrecision("bf16-mixed", "cpu") if precision == "bf16-mixed" else Precision()
        strategy = _Strategy(device=self.device, accelerator=_Accelerator(), precision_plugin=plugin)
        strategy.world_size = self.ranks
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return pl.Trainer(strategy=strategy, **quiet, **arguments)

    def train(
        self, module: pl.LightningModule, data: Any, precision: str = "32-true"
    ) -> tuple[list[tuple[str, str]], int]:
        """Train an epoch of three steps or more, validate and test.

        Returns:
            What the host waited for in the third step, and the launches of that step.
        """
        steps = _Steps(self)
        callbacks = [steps, Progress(), OwnSigterm()]
        with self, _group() if self.ranks > 1 else nullcontext():
            trainer = self.trainer(precision, max_epochs=1, callbacks=callbacks, log_every_n_steps=20)
            trainer.fit(module, data)
            trainer.test(module, datamodule=data, verbose=False)
        (first, before), (last, after) = steps.ends[1:3]
        return self.waits[first:last], after - before


class _Steps(pl.Callback):
    """What has been waited for and launched at the end of each step."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.ends = gpu, list[tuple[int, int]]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append((len(self.gpu.waits), self.gpu.launches.total()))


@contextmanager
def _group() -> Iterator[None]:
    """A process group of this process alone, by which Lightning sees that there are ranks."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class _Strategy(SingleDeviceStrategy):
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        return torch.stack([tensor] * self.world_size) if self.world_size > 1 else tensor


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class _Functions(TorchFunctionMode):
    """Answers where a tensor is, and moves tensors."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        here = bool(args) and gpu.holds(args[0])
        if func in PROPERTIES:
            answers = {
                "device": gpu.device,
                "is_cuda": gpu.kind == "cuda",
                "is_cpu": False,
                "is_mps": gpu.kind == "mps",
            }
            return answers[PROPERTIES[func]] if here else func(*args)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.move(func, *args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and here:
            raise TypeError(f"can't convert {gpu.device} device type tensor to numpy, {_caller()}")
        if func in (Tensor.tolist, Tensor.new_tensor, Tensor.__repr__, Tensor.__format__) and here:
            gpu.wait(f"{func.__name__} of a tensor or list")
            return gpu.place(out, True) if isinstance(out := func(*args, **kwargs), Tensor) else out
        pinned = kwargs.pop("pin_memory", False)
        made_here = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == gpu.kind
        if made_here:
            kwargs["device"] = torch.device("cpu")
            gpu.refuse_double(kwargs.get("dtype") or torch.float32)
            if func in (torch.tensor, torch.as_tensor):
                gpu.wait("a tensor made of host values")
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and (kwargs.get("device") is not None or func is torch.tensor or pinned):
            gpu.place(out, made_here)
            if pinned:
                gpu.pinned.add(_address(out))
        return out

    def move(self, func: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gpu, dtype, target = self.gpu, kwargs.get("dtype"), kwargs.get("device")
        for value in args:
            if isinstance(value, Tensor):
                target, dtype = gpu.device if gpu.holds(value) else "cpu", value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.device | str):
                target = value
        if func in (Tensor.cuda, Tensor.cpu):
            target = gpu.device if func is Tensor.cuda else "cpu"
        before, waits = gpu.holds(tensor), not (kwargs.get("non_blocking") or True in [a for a in args if a is True])
        after = before if target is None else torch.device(target).type == gpu.kind
        if after:
            gpu.refuse_double(dtype or tensor.dtype)
        layout = {key: kwargs[key] for key in ("memory_format",) if kwargs.get(key) is not None}
        out = Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=before != after or bool(kwargs.get("copy")), **layout)
        if before == after:
            return out
        gpu.place(out, after)
        if after:
            pageable = gpu.kind == "cuda" and _address(tensor) not in gpu.pinned and tensor.numel() > 0
            if waits or pageable:
                gpu.wait(f"a copy of {out.nbytes} bytes to the device{' from pageable memory' * pageable}")
        else:
            gpu.wait(f"a copy of {out.nbytes} bytes to the host")
        return out


class _Operators(TorchDispatchMode):
    """Sees every operator, of the backward pass and the optimiser too."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, name = self.gpu, func.overloadpacket.__name__
        if name == "lift_fresh":  # of torch.tensor, whose new memory may have been another tensor's
            gpu.place(args[0], False)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        addresses = {_address(tensor) for tensor in given}
        here = not addresses.isdisjoint(gpu.held)
        if here:
            strangers = [tensor for tensor in given if not gpu.holds(tensor) and tensor.dim() and tensor.numel()]
            if name in INDEXING and gpu.holds(args[0]):
                if strangers:
                    gpu.wait(f"{name} by an index of the host")
                if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
                    gpu.wait(f"{name} by a mask")
            elif strangers and name == "copy_":
                gpu.wait("copy_ between devices")
            elif strangers:
                raise RuntimeError(f"{func}: expected all tensors on one device, {_caller()}")
            if name in WAITING:
                gpu.wait(name)
        out = func(*args, **(kwargs or {}))
        if here and name not in VIEWS:
            gpu.launches[name] += _kernels(name, args)
        for tensor in (value for value in tree_leaves(out) if isinstance(value, Tensor)):
            if _address(tensor) not in addresses:
                gpu.place(tensor, here)
            if here:
                gpu.refuse_double(tensor.dtype)
        return out


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _caller() -> str:
    """Name the innermost line of flr, else of Lightning or torch's optimisers."""
    frames = [f for f in reversed(traceback.extract_stack()) if f.filename != __file__]
    for part in ("/flr/", "pytorch_lightning", "torch/optim"):
        for frame in frames:
            if part in frame.filename and not (part == "/flr/" and "site-packages" in frame.filename):
                return f"{frame.filename.rpartition('site-packages/')[2].rpartition('/flr/')[2]}:{frame.lineno}"
    return "?"


def _kernels(name: str, args: Any) -> int:
    """Kernels of a call; one over a list of tensors takes some of them, and some of their blocks, a launch."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    if not name.startswith(("_foreach", "_fused")) or not lists:
        return 1 + (name in DOUBLE)
    tensors = (110, 64, 48, 36, 30)[min(5, len(lists)) - 1]
    blocks = sum(-(-tensor.numel() // 65536) for tensor in lists[0])
    return int(max(np.ceil(len(lists[0]) / tensors), np.ceil(blocks / 320)))
