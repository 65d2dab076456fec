"""Work in threads: results in order, errors with their item, memory bounded, signals deferred."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from flr.data.crops import reserve
from flr.system import cores, defer_signals, parallel_map


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize(("count", "span"), [(0, 4), (4, 4), (5, 4), (41, 4), (41, 1), (100, 32)])
def test_results_come_in_order(count, span, workers):
    done = list(parallel_map(lambda i: (i * i, threading.get_ident()), count, workers, span))
    assert [value for value, _ in done] == [i * i for i in range(count)]
    here = threading.get_ident() in {thread for _, thread in done}
    assert here == (count > 0 and (workers < 2 or count <= span))


def fails(i: int) -> int:
    if i == 23:
        raise ValueError("not this one")
    return i


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_type(workers):
    seen = []
    with pytest.raises(ValueError, match="not this one"):
        seen.extend(parallel_map(fails, 100, workers, 4))
    assert seen == list(range(len(seen))) and len(seen) in (20, 23)


def test_work_is_not_done_far_ahead_and_stops_with_its_caller():
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        return i

    results = parallel_map(work, 400, 2, 4)
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    time.sleep(0.2)
    assert len(begun) <= 6 * 4  # two spans a worker, and those that were taken
    results.close()
    assert len(begun) <= 6 * 4 and threading.active_count() == len(threading.enumerate())
    assert not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_two_can_work_at_once():
    first, second = parallel_map(lambda i: i, 90, 2, 3), parallel_map(lambda i: -i, 90, 2, 3)
    assert [next(first) for _ in range(10)] == list(range(10))
    assert [-x for x in second] == list(range(90))
    assert list(first) == list(range(10, 90))


def test_signals_wait_for_what_must_not_be_left_half_done():
    done = []

    def work(*sent: signal.Signals) -> None:
        with defer_signals():
            for number in sent:
                signal.raise_signal(number)
            done.append(sent)

    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    try:
        for sent, raised in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
            with pytest.raises(raised):
                work(sent)
            assert done.pop() == (sent,)
        with pytest.raises(KeyboardInterrupt):  # who asks twice means it
            work(signal.SIGINT, signal.SIGINT)
        assert not done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


def test_what_linux_alone_has_is_not_needed(tmp_path, monkeypatch):
    for name in ("sched_getaffinity", "posix_fallocate"):
        monkeypatch.delattr(os, name)
    path = tmp_path / "images.u8"
    with path.open("wb") as file:
        file.truncate(3 * 2**20 + 5)
    reserve(path)
    assert path.read_bytes() == bytes(3 * 2**20 + 5)
    assert cores() >= 1


ORPHAN = """
import os, signal, sys, time
from flr.system import set_parent_death_signal
sys.platform = "darwin"  # where the system has no such signal
set_parent_death_signal(os.getppid(), signal.SIGTERM)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_process_ends_with_its_parent_where_the_system_does_not_see_to_it():
    command = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ORPHAN!r}]); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([orphan], timeout=30)
    assert not alive
