"""What each switch of `flr.training.precision` is worth: images/s of training steps, one switch after another on top of those before.

    python -m benchmarks.switches model=heatmap_fpn            any override of flr.train

A step is forward, loss, backward and optimiser on the same faces; batches stay as they were made, so that the input path is
not in it. All contenders take a few steps in turn, round by round. Compiling is not in the rate: its seconds stand
beside it.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import config, report, rounds
from flr.cli import quiet
from flr.config.instantiate import build
from flr.data.batches import Batch
from flr.data.datamodule import FaceData
from flr.module.assembly import assemble
from flr.system import keep_memory
from flr.training.precision import compile_net

FACES = ("data.reader.train=64", "data.reader.val=1", "data.reader.test=1", "data.crop.size=128", "data.batch_size=32")
STEPS, ROUNDS = 6, 7
MODES = ("default", "reduce-overhead")  # of torch.compile; the second is CUDA graphs


def stepper(cfg: Any, data: FaceData, batch: Batch, switches: set[str], mode: str | None) -> Callable[[], float]:
    """What takes a few training steps under switches and gives their images/s."""
    device = batch.images.device
    if "fused" in switches:
        cfg.optim.fused = True
    module = assemble(cfg, data.scheme, data.crop, data.mean_face())
    if "channels_last" not in switches:
        module.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
        images = batch.images.contiguous()
    else:
        images = batch.images
    compile_net(module.net, mode, device.type)
    net = module.net.to(device).train()
    optimiser = module.optim(net.parameters())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in switches):
            total, count = module.objective.loss(net(images), batch.points, batch.labelled, data.crop.size)
        (total / count).backward()
        optimiser.step()
        optimiser.zero_grad()

    def measure() -> float:
        step()
        start = now(device)
        for _ in range(STEPS):
            step()
        return STEPS * len(images) / (now(device) - start)

    return measure


def now(device: torch.device) -> float:
    """Seconds, when a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    quiet()
    keep_memory()
    words = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modes = [mode for mode in MODES if mode == "default" or device.type == "cuda"]
    ladder: dict[str, tuple[set[str], str | None]] = {"plain": (set(), None)}
    for switch in ("channels_last", "bf16", "fused"):
        before, _ = ladder[next(reversed(ladder))]
        ladder[f"+ {switch}"] = (before | {switch}, None)
    ladder |= {f"+ compile={mode}": ({"channels_last", "bf16", "fused"}, mode) for mode in modes}
    contenders, begun = {}, {}
    for name, (switches, mode) in ladder.items():
        cfg = config("data=synthetic", "augment=standard", *FACES, *words)
        torch.manual_seed(0)
        data: FaceData = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
        data.prepare()
        batch = data.batch(torch.from_numpy(data.rows("train")[: data.batch_size]), 0, device=device)
        contenders[name] = stepper(cfg, data, batch, switches, mode)
        start = time.perf_counter()
        contenders[name]()
        begun[name] = time.perf_counter() - start
    figures = rounds(dict(reversed(contenders.items())), ROUNDS)
    name = f"switches_{cfg.model._target_.rsplit('.', 1)[1].lower()}"
    report(name, "images/s", figures, f"python -m benchmarks.switches {' '.join(words)}", first_steps_seconds=begun)


if __name__ == "__main__":
    main()
