"""Work over all cores, results in order."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import cv2

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SPAN = 32  # items a task: enough to outweigh its round trip

_work: Callable[[int], Any] | None = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(span: range) -> list[Any]:
    assert _work is not None
    return [_work(i) for i in span]


def _die_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever: ask Linux to end it too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def in_order(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """``work(0) ... work(count - 1)``, computed in forked processes.

    Fork shares whatever `work` refers to without sending it; only results travel, and only a few wait at a time.
    """
    global _work
    if workers < 2 or count <= SPAN:
        yield from (work(i) for i in range(count))
        return
    _work = work
    # A fork copies the lock of OpenCV's thread pool but not its threads: a child that meets it waits for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_die_with, initargs=(os.getpid(),))
    try:
        pending = []
        for first in range(0, count, SPAN):
            pending.append(pool.submit(_run, range(first, min(first + SPAN, count))))
            if len(pending) > 2 * workers:
                yield from pending.pop(0).result()
        for future in pending:
            yield from future.result()
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt must not wait for what nobody will read
        raise
    finally:
        _work = None
        cv2.setNumThreads(threads)
