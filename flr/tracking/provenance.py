"""Record where a number came from: code, lock, versions, hardware, process."""

import functools
import getpass
import hashlib
import importlib.util
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import flr
from flr.system import cores

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "opencv-python-headless", "hydra-core", "mlflow")
ROOT = Path(flr.__file__).parent.parent


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def code_state() -> tuple[dict[str, str], str]:
    """Return the commit, whether the tree differs from it, and the diff, in which untracked files are only named.

    For an installed wheel, the package's version replaces the commit.
    """
    tracked = _git("ls-files", "--error-unmatch", "flr/__init__.py")
    commit = _git("rev-parse", "HEAD") if tracked else None
    if commit is None:
        return {"commit": f"flr {flr.__version__} (no checkout)", "dirty": "unknown"}, ""
    status, diff = _git("status", "--porcelain") or "", _git("diff", "HEAD") or ""
    untracked = "".join(f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??"))
    return {"commit": commit.strip(), "dirty": str(bool(status)).lower()}, untracked + diff


def changed_files(exclude: Sequence[str] = ()) -> list[str] | None:
    """Return the files that differ from the commit, except those of some names; None where there is no commit."""
    if code_state()[0]["dirty"] == "unknown":
        return None
    status = _git("status", "--porcelain", "-uall", "--", ":/", *(f":(top,exclude,glob)**/{name}" for name in exclude))
    return None if status is None else [line[3:] for line in status.splitlines()]


@functools.cache
def code_digest() -> str:
    """Return the digest of the code on disk: this package, and a user's own modules in FLR_TRUST."""
    digest = hashlib.sha256()
    for name in ["flr", *sorted(filter(None, os.environ.get("FLR_TRUST", "").split(",")))]:
        found = importlib.util.find_spec(name.partition(".")[0])
        file = Path(found.origin) if found and found.origin else None
        if file:
            for path in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
                digest.update(f"{path.relative_to(file.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def lock_hash() -> str:
    """Return the digest of the lock file, or ``none`` outside a checkout."""
    lock = ROOT / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.exists() else "none"


def versions() -> dict[str, str]:
    """Return the versions of Python and the main packages."""
    found = {"python": platform.python_version(), "flr": flr.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def hardware() -> dict[str, str]:
    """Return the processor, its cores, the memory and the GPUs, with the driver, CUDA and cuDNN that they run."""
    # Reading runs back needs no torch.
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cores": str(cores()),
        "threads": str(torch.get_num_threads()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "gpu": ", ".join(gpus) or "none",
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "driver": _driver() if gpus else "none",
    }


def _driver() -> str:
    """The version of NVIDIA's driver, as nvidia-smi reports it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


def source_tags(commit: str) -> dict[str, str]:
    """Return the tags that MLflow shows as a run's Source and User."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"
    program = Path(sys.argv[0]).stem
    source = f"flr.{program}" if program in ("train", "tune") else "flr"
    tags = {"mlflow.source.name": source, "mlflow.source.type": "LOCAL", "mlflow.user": user}
    return tags | ({"mlflow.source.git.commit": commit} if re.fullmatch("[0-9a-f]{40}", commit) else {})


def process_tag() -> dict[str, str]:
    """Return tags that identify this process; the system uses a process id again."""
    me = psutil.Process()
    return {"host": socket.gethostname(), "process": f"{me.pid}@{_started(me.pid)}"}


def process_alive(tag: str) -> bool:
    """Return whether the process of a `process_tag` of this host still runs."""
    pid, _, started = tag.partition("@")
    return pid.isdigit() and _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return when a process started, independent of the clock; empty where there is none."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if not Path("/proc/self/stat").exists():  # not Linux
            return f"{psutil.Process(pid).create_time():.0f}"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        # Its name, in brackets, may hold anything.
        return f"{boot}-{stat.read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()[19]}"
    except (OSError, IndexError, psutil.NoSuchProcess):
        return ""
