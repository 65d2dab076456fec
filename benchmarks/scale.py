"""Cost a face of sets of 2,000, 20,000 and 200,000: reading and cropping, a second start, and training batches.

    python -m benchmarks.scale data.root=DIR        CelebA's form; SIZES=2000,20000 before it for others

Of a set that is smaller, the same pictures stand under further names (hard links beside it, removed at the end), so that
every one is read, decoded and stored. Each size runs in a process of its own; crops of 128 px grey, `augment=standard`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import config, record
from flr.config.instantiate import build
from flr.data.batches import IndexBatches
from flr.data.datamodule import FaceData

if sys.platform == "win32":
    sys.exit("benchmarks.scale: Windows has no peak memory by getrusage; run it on Linux or macOS")
import resource

LISTS = {"list_landmarks_celeba.txt": 2, "list_bbox_celeba.txt": 2}  # and how many lines head them
BATCHES = 200
WORDS = ("data=celeba", "augment=standard", "data.crop.size=128", "data.batch_size=64")


def grow(source: Path, folder: Path, faces: int) -> None:
    """A set of so many faces in CelebA's form, of the pictures and labels of another: 80 % train, 10 % val, 10 % test."""
    pictures = folder / "img_celeba"
    pictures.mkdir()
    for name, heads in LISTS.items():
        lines = (source / name).read_text().splitlines()
        head, rows = lines[1:heads], [line.split() for line in lines[heads:]]
        grown = (" ".join([f"{i + 1:06d}.jpg", *rows[i % len(rows)][1:]]) for i in range(faces))
        (folder / name).write_text("\n".join([str(faces), *head, *grown]) + "\n")
    for i in range(faces):
        os.link(source / "img_celeba" / rows[i % len(rows)][0], pictures / f"{i + 1:06d}.jpg")
    parts = ("0" if i < 0.8 * faces else "1" if i < 0.9 * faces else "2" for i in range(faces))
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{i:06d}.jpg {part}\n" for i, part in enumerate(parts, start=1))
    )


def measure(root: str, cache: str) -> dict[str, float]:
    """Of one process: seconds to the crops and memory; of batches, microseconds a face; of an epoch's order, seconds."""
    cfg = config(*WORDS, f"data.root={root}", f"paths.cache_dir={cache}")
    data: FaceData = build(cfg.data, augment=build(cfg.augment), seed=0, cache=cfg.paths.cache_dir)
    start = time.perf_counter()
    data.prepare()
    prepared = time.perf_counter() - start
    torch.set_num_threads(1)
    start = time.perf_counter()
    batches = iter(IndexBatches(data.rows("train"), cfg.data.batch_size, 0, 1, lambda: 1, seed=0))
    first = next(batches)
    ordered = time.perf_counter() - start
    data.batch(first, 1)
    start, faces = time.perf_counter(), 0
    for _, index in zip(range(BATCHES), batches, strict=False):
        faces += len(data.batch(index, 1).index)
    batch = (time.perf_counter() - start) / faces
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"prepare s": prepared, "order s": ordered, "batch us": batch * 1e6, "memory MiB": memory}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
        return
    source = Path(config(*WORDS, *sys.argv[1:]).data.root)
    if not (source / "img_celeba").is_dir():
        sys.exit(f"{source / 'img_celeba'} is missing; set data.root=DIR to a CelebA in the wild")
    sizes = [int(size) for size in os.environ.get("SIZES", "2000,20000,200000").split(",")]
    table, rows = Table(title="scale"), []
    columns = (
        "faces",
        "first start, us a face",
        "second start, s",
        "batch, us a face",
        "order of an epoch, ms",
        "memory, MiB",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for faces in sizes:
        with tempfile.TemporaryDirectory(prefix="flr-scale-", dir=source.parent) as name:
            folder = Path(name) / "celeba"
            folder.mkdir()
            grow(source, folder, faces)
            command = [sys.executable, "-m", "benchmarks.scale", "--one", str(folder), f"{name}/cache"]
            first, second = (
                json.loads(
                    subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
                )
                for _ in range(2)
            )
        rows.append({"faces": faces, "first": first, "second": second})
        figures = (first["prepare s"] / faces * 1e6, second["prepare s"], second["batch us"], second["order s"] * 1e3)
        table.add_row(str(faces), *(f"{value:.4g}" for value in (*figures, second["memory MiB"])))
    Console().print(table)
    slowest, fastest = (end(row["second"]["batch us"] for row in rows) for end in (max, min))
    print(f"a batch's cost a face, dearest over cheapest size: {slowest / fastest:.2f}")
    record("scale", f"python -m benchmarks.scale {' '.join(sys.argv[1:])}", sizes=rows)


if __name__ == "__main__":
    main()
