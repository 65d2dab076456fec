"""Kernel launches of a training step, and how often the host waits for the GPU in it, counted without one.

    python -m benchmarks.launches [EXPERIMENT ...]

Each experiment trains three steps of four rendered faces on the GPU that tests/fakes/gpu.py plays, in bf16, with its crops on the
device and then on the host. Neither count depends on the batch.
"""

import sys
import tempfile

import hydra
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from flr.cli import quiet
from flr.config.compose import CONF
from flr.config.instantiate import build
from flr.module.assembly import assemble
from flr.reproduction.smoke import rendered
from tests.fakes.gpu import FakeGPU

LAUNCH = 5e-6  # seconds


def count(name: str, cache: str, free: int) -> tuple[int, int]:
    """Waits and launches of a step of an experiment on a GPU with so many free bytes."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = rendered(name, cache)
    data = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cache)
    data.prepare()
    waits, launches = FakeGPU("cuda", free).train(
        assemble(cfg, data.scheme, data.crop, data.mean_face()), data, "bf16-mixed"
    )
    return len(waits), launches


def main() -> None:
    quiet()
    files = (CONF / "experiment").rglob("*.yaml")
    known = [str(file.relative_to(CONF / "experiment").with_suffix("")) for file in files]
    names = sys.argv[1:] or sorted(known)
    table = Table("experiment", "waits, crops on the device", "on the host", "launches", "ceiling, steps/s")
    figures = {}
    with tempfile.TemporaryDirectory(prefix="flr-") as cache:
        for name in names:
            (waits, launches), (host, _) = count(name, cache, 10**12), count(name, cache, 0)
            figures[name] = {"waits": waits, "waits_host": host, "launches": launches}
            table.add_row(name, *map(str, (waits, host, launches)), f"{1 / (launches * LAUNCH):.0f}")
    Console().print(table)
    record("launches", "python -m benchmarks.launches", experiments=figures)


if __name__ == "__main__":
    main()
