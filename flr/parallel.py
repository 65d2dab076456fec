"""Work over all cores, results in order."""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

import cv2

from flr.errors import UserError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SPAN = 32  # items a message: enough to outweigh its trip


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with(parent: int) -> None:
    """A worker whose parent was killed would wait for ever: ask Linux to end it too."""
    # Ctrl-C is the parent's to answer, and a handler of SIGTERM that the parent has set is not the worker's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _serve(work: Callable[[int], T], spans: list[range], results: Connection, parent: int) -> None:
    _die_with(parent)
    for span in spans:
        try:
            done: list[T] | Exception = [work(i) for i in span]
        except Exception as error:
            error.add_note(traceback.format_exc())
            done = error
        results.send(done)


def in_order(work: Callable[[int], T], count: int, workers: int, span: int = SPAN) -> Generator[T, None, None]:
    """``work(0) ... work(count - 1)``, computed in forked processes.

    Fork shares whatever `work` refers to without sending it; only results travel. Each worker has a pipe of its own,
    so that its death is seen at once, even in the middle of a message, and computes its next span while the last one waits
    in the pipe.

    Args:
        work: of an item.
        count: of the items.
        workers: processes; below 2, or where one span holds all items, this process does the work.
        span: items that a worker computes at a time.

    Raises:
        UserError: a worker was killed.
        Exception: whatever `work` raises.
    """
    if workers < 2 or count <= span:
        yield from (work(i) for i in range(count))
        return
    spans = [range(first, min(first + span, count)) for first in range(0, count, span)]
    context = get_context("fork")
    # A fork copies the lock of OpenCV's thread pool but not its threads: a child that meets it waits for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pipes, processes = [], []
    try:
        for i in range(min(workers, len(spans))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(work, spans[i::workers], sender, os.getpid()), daemon=True)
            process.start()
            sender.close()  # the worker's own is the only one: its end then ends the pipe
            pipes.append(receiver)
            processes.append(process)
        for i in range(len(spans)):
            try:
                done = pipes[i % len(pipes)].recv()
            except (EOFError, OSError) as error:
                raise UserError(
                    "a worker process was killed, as happens when memory runs out; lower data.workers"
                ) from error
            if isinstance(done, Exception):
                raise done
            yield from done
    finally:
        for process in processes:
            process.kill()
            process.join()
        cv2.setNumThreads(threads)
