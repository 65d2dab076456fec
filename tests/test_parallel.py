"""Work in forked processes: results in order, faults told, nothing left behind."""

import itertools
import os
import signal
import time
from collections.abc import Iterator

import cv2
import numpy as np
import psutil
import pytest

from flr.data.crops import reserve
from flr.errors import UserError
from flr.system import cores, in_order, undisturbed


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    threads = cv2.getNumThreads()
    yield
    assert set(psutil.Process().children()) == before
    assert cv2.getNumThreads() == threads


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize(("count", "span"), [(0, 4), (4, 4), (5, 4), (41, 4), (41, 1), (100, 32)])
def test_results_come_in_order(count, span, workers):
    done = list(in_order(lambda i: (i * i, os.getpid()), count, workers, span))
    assert [value for value, _ in done] == [i * i for i in range(count)]
    used = {pid for _, pid in done}
    if workers > 1 and count > span:
        assert len(used) == min(workers, -(-count // span)) and os.getpid() not in used
    else:
        assert used <= {os.getpid()}


def fails(i: int) -> int:
    if i == 23:
        raise ValueError("not this one")
    return i


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_keeps_its_kind_and_tells_its_place(workers):
    seen = []
    with pytest.raises(ValueError, match="not this one") as told:
        seen.extend(in_order(fails, 100, workers, 4))
    assert seen == list(range(len(seen)))
    if workers:
        assert "in fails" in told.value.__notes__[0]


@pytest.mark.parametrize("size", [10_000, 50_000_000])
def test_a_killed_worker_is_told_even_in_the_middle_of_a_message(size):
    others = set(psutil.Process().children())
    results = in_order(lambda i: np.zeros(size, np.uint8), 100, 2, 1)
    next(results)
    # The second worker waits for room in its pipe, with a part of a result in it or between two results.
    victim = [child for child in psutil.Process().children() if child not in others][1]
    victim.kill()
    with pytest.raises(UserError, match=r"killed.*data\.workers"):
        list(results)


def test_who_stops_early_ends_the_workers():
    results = in_order(lambda i: i, 1000, 3, 2)
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    results.close()


def test_two_can_work_at_once():
    first, second = in_order(lambda i: i, 90, 2, 3), in_order(lambda i: -i, 90, 2, 3)
    assert [next(first) for _ in range(10)] == list(range(10))
    assert [-x for x in second] == list(range(90))
    assert list(first) == list(range(10, 90))


def test_signals_wait_for_what_must_not_be_left_half_done():
    done = []

    def work(*sent: signal.Signals) -> None:
        with undisturbed():
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


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has none of what Linux alone has."""
    for name in ("fork", "sched_getaffinity", "sched_setaffinity", "posix_fallocate"):
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("no_fork")
def test_without_fork_threads_do_the_work_in_order_and_not_far_ahead():
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        return i * i

    results = in_order(work, 400, 2, 4)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(begun) <= 5 * 4  # two spans a worker, and the one that was taken
    assert list(results) == [i * i for i in range(1, 400)]
    with pytest.raises(ValueError, match="not this one"):
        list(in_order(fails, 100, 2, 4))


@pytest.mark.usefixtures("no_fork")
def test_without_fallocate_the_space_is_still_taken(tmp_path):
    path = tmp_path / "images.u8"
    with path.open("wb") as file:
        file.truncate(3 * 2**20 + 5)
    reserve(path)
    assert path.read_bytes() == bytes(3 * 2**20 + 5)
    assert cores() >= 1
