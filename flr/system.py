"""Cores, memory, signals and work in parallel."""

import contextlib
import ctypes
import functools
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import TypeVar

from flr.errors import UserError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
SPAN = 32  # items a worker computes at a time


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Make glibc keep freed memory for later use; other systems are unchanged.

    A batch's big tensors come and go with every step, and fresh pages cost more than the work on them (a depthwise
    model trains 1.5 times faster on a CPU).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def _c_stderr() -> tuple[ctypes.c_void_p, int, int] | None:
    """Return the C library's variable ``stderr``, its stream and one that drops everything; None without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.fopen.argtypes, library.fopen.restype = [ctypes.c_char_p] * 2, ctypes.c_void_p
    variable, null = ctypes.c_void_p.in_dll(library, "stderr"), library.fopen(os.devnull.encode(), b"w")
    return (variable, variable.value, null) if variable.value and null else None


_silencing, _inside = threading.Lock(), 0  # threads that are inside


@contextlib.contextmanager
def silenced_c_stderr() -> Iterator[None]:
    """Drop what C code prints to stderr while any thread is inside; Python's own messages and child processes are as before.

    It exchanges the C library's stream, for a redirected file descriptor would swallow all messages of the process. Without
    glibc it does nothing.
    """
    global _inside
    with _silencing:  # a thread that looked while another was inside would take the null stream for stderr
        found = _c_stderr()
    if found is None:
        yield
        return
    variable, stream, null = found
    with _silencing:
        _inside += 1
        variable.value = null
    try:
        yield
    finally:
        with _silencing:
            _inside -= 1
            if not _inside:
                variable.value = stream


def set_parent_death_signal(parent: int, sent: signal.Signals) -> None:
    """Have this process signalled when its parent ends, and exit if the parent has ended already; not on Windows.

    On Linux the system does it at once; on macOS a thread looks once a second.
    """
    if sys.platform == "win32":
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sent)
    else:
        threading.Thread(target=_signal_orphan, args=(parent, sent), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _signal_orphan(parent: int, sent: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), sent)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait for the end of what must not be left half done; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    came: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        handler = handlers[signal.Signals(number)]
        if came and callable(handler):
            handler(number, frame)
        came.append(number)

    heard = [number for number, handler in handlers.items() if callable(handler)]
    for number in heard:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, handlers[number])
        if came:
            signal.raise_signal(came[0])


def start_worker(parent: int) -> None:
    """Set up a worker process: it ends with its parent, and leaves to it what a terminal or a scheduler signals to all."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        set_parent_death_signal(parent, signal.SIGKILL)


def parallel_map(work: Callable[[int], T], count: int, workers: int, span: int = SPAN) -> Generator[T, None, None]:
    """Compute ``work(0) ... work(count - 1)`` in threads and yield the results in order.

    Threads serve for work that OpenCV, numpy or the disk does, which release the interpreter. At most two spans for
    each worker are computed ahead of the caller, which bounds the memory.

    Args:
        work: Computes one item; called from several threads at once.
        count: Number of items.
        workers: Number of threads; below 2, or if one span holds all items, the caller's thread does the work.
        span: Items that a worker computes at a time.
    """
    spans = (range(first, min(first + span, count)) for first in range(0, count, span))
    if workers < 2 or count <= span:
        yield from map(work, range(count))
        return
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[list[T]]] = deque()
    try:
        for items in spans:
            pending.append(pool.submit(lambda items: list(map(work, items)), items))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def split_device(name: str) -> tuple[str, int | None]:
    """Split the name of a device, ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``, into its kind and its number.

    Raises:
        UserError: It is none of these.
    """
    kind, _, number = name.partition(":")
    if not re.fullmatch("auto|(cpu|cuda|mps)(:[0-9]{1,4})?", name):
        raise UserError(f"device={name}: set auto, cpu, cuda, cuda:1 or mps")
    return kind, int(number) if number else None
