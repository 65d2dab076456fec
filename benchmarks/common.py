"""What every benchmark shares: a config, rounds that alternate, a table and a record of where its numbers come from."""

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flr.config.compose import CONF
from flr.files import writing
from flr.tracking.provenance import code_state, hardware, lock_hash, versions

RESULTS = Path(__file__).parent / "results"


def config(*words: str) -> DictConfig:
    """The training config of overrides."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(words))


def rate(batches: Iterator[int], seconds: float, warm: int) -> float:
    """Faces a second that an iterator of batch sizes delivers, after its first `warm` batches."""
    for _ in range(warm):
        next(batches)
    start, faces = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        faces += next(batches)
    return faces / (time.perf_counter() - start)


def rounds(contenders: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Each contender's figure, `count` times, one after another so that a busy machine is busy for all."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, measure in contenders.items():
            figures[name].append(measure())
    return figures


def report(name: str, unit: str, figures: Mapping[str, list[float]], command: str, **about: Any) -> None:
    """Print figures and their ratios to the first contender round by round, and record them in results/NAME.json."""
    ours = next(iter(figures.values()))
    table = Table(title=name)
    for column in ("", f"{unit}: min", "median", "max", "ours over it: min", "median", "max"):
        table.add_column(column, justify="left" if not column else "right")
    contenders = {}
    for contender, values in figures.items():
        ratios = [own / other for own, other in zip(ours, values, strict=True)]
        spread = [[min(v), statistics.median(v), max(v)] for v in (values, ratios)]
        contenders[contender] = {unit: spread[0], "ours_over_it": spread[1], "rounds": values}
        table.add_row(contender, *(f"{v:.4g}" for v in spread[0]), *(f"{v:.3g}" for v in spread[1]))
    Console().print(table)
    record(name, command, contenders=contenders, **about)


def record(name: str, command: str, **figures: Any) -> None:
    """Write figures to results/NAME.json, gpu_NAME.json where there is one, with the code, machine and versions that gave them."""
    (code, _), machine = code_state(), hardware()
    name = name if machine["gpu"] == "none" else f"gpu_{name}"
    command = re.sub(r"(data\.root|paths\.\w+)=\S+", r"\1=DIR", command)  # folders are of one machine
    whole = {
        "command": command, **figures, "code": code, "lock": lock_hash(), "hardware": machine, "versions": versions(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with writing(RESULTS / f"{name}.json") as aside:
        aside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
