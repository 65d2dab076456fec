"""Work over all cores, results in order."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import cv2

T = TypeVar("T")
SPAN = 32  # items a task: enough to outweigh its round trip

_work: Callable[[int], Any] | None = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(span: range) -> list[Any]:
    assert _work is not None
    return [_work(i) for i in span]


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
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            pending = []
            for first in range(0, count, SPAN):
                pending.append(pool.submit(_run, range(first, min(first + SPAN, count))))
                if len(pending) > 2 * workers:
                    yield from pending.pop(0).result()
            for future in pending:
                yield from future.result()
    finally:
        _work = None
        cv2.setNumThreads(threads)
