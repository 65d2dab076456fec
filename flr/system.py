"""Work over all cores, results in order."""

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn, TypeVar

import cv2

from flr.errors import UserError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
SPAN = 32  # items a message: enough to outweigh its trip


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Have glibc keep what it was given back, for later: a batch's big tensors come and go with every step, and fresh
    pages cost more than the work on them (a depthwise net trains 1.5 times faster on a CPU). Elsewhere it does nothing.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def end_with(parent: int, sent: signal.Signals) -> None:
    """Have this process get a signal when its parent ends, by whatever; end now where it has. Only Linux can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sent)
        if os.getppid() != parent:
            os._exit(1)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
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


def _serve(work: Callable[[int], T], spans: list[range], results: Connection, parent: int) -> NoReturn:
    """A worker's life: the results of each span, or the fault that ends it. It ends with its parent."""
    try:
        # A terminal and a scheduler signal all processes; the answer is the parent's, whose handlers were copied too.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        end_with(parent, signal.SIGKILL)
        for span in spans:
            try:
                done: list[T] | Exception = [work(i) for i in span]
            except Exception as error:
                error.add_note(traceback.format_exc())
                done = error
            results.send(done)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # at once: what the parent has registered for its exit is not the worker's


def _in_threads(work: Callable[[int], T], spans: list[range], workers: int) -> Generator[T, None, None]:
    """The results of spans in order. At most two spans a worker are computed ahead of the caller, which bounds memory."""
    pool, todo = ThreadPoolExecutor(workers), iter(spans)
    running: deque[Future[list[T]]] = deque()

    def start(count: int) -> None:
        running.extend(
            pool.submit(lambda span: [work(i) for i in span], span) for span in itertools.islice(todo, count)
        )

    try:
        start(2 * workers)
        while running:
            done = running.popleft().result()
            start(1)
            yield from done
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(work: Callable[[int], T], count: int, workers: int, span: int = SPAN) -> Generator[T, None, None]:
    """Compute ``work(0) ... work(count - 1)`` in forked processes on Linux and in threads elsewhere; yield the results in order.

    Threads serve where fork is missing (Windows) or unsafe next to system libraries (macOS). Fork shares whatever `work` refers to without sending it; only results travel. Each worker has a pipe of its own,
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
    if sys.platform != "linux" or not hasattr(os, "fork"):
        yield from _in_threads(work, spans, workers)
        return
    # A fork copies the lock of OpenCV's thread pool but not its threads: a child that meets it waits for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pipes: list[Connection] = []
    processes: list[int] = []
    parent = os.getpid()
    try:
        for i in range(min(workers, len(spans))):
            receiver, sender = Pipe(duplex=False)
            process = os.fork()
            if process == 0:
                _serve(work, spans[i::workers], sender, parent)
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
            with contextlib.suppress(ChildProcessError, ProcessLookupError):  # somebody else has seen it end
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        cv2.setNumThreads(threads)
