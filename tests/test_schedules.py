"""Learning rates at the start, the peak and the end of a training, read off the optimiser step by step."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from flr.training.schedules import constant, cosine, onecycle, step

STEPS = 100


def adam(lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=lr)


def sgd(lr: float = 0.5, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)


def rates(schedule, optimizer, steps: int = STEPS) -> list[float]:
    """The rate that each optimiser step is taken with."""
    scheduler, seen = schedule(optimizer, steps), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant():
    assert rates(constant, adam()) == [0.5] * STEPS


@pytest.mark.parametrize("schedule", [constant, step, cosine])
def test_warmup_rises_in_a_line_to_the_full_rate(schedule):
    seen = rates(partial(schedule, warmup=0.1), adam())
    assert seen[:10] == pytest.approx([0.5 * (i + 1) / 11 for i in range(10)])
    assert seen[10] == pytest.approx(0.5)
    assert max(seen) == pytest.approx(0.5)


def test_step_falls_at_its_shares():
    seen = rates(step, adam())
    assert seen == pytest.approx([0.5] * 50 + [0.05] * 25 + [0.005] * 25)
    seen = rates(partial(step, at=(0.9,), factor=0.5), adam())
    assert seen == pytest.approx([0.5] * 90 + [0.25] * 10)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine(final):
    seen = rates(partial(cosine, final=final), adam())
    expected = [0.5 * (final + (1 - final) * (1 + math.cos(math.pi * i / STEPS)) / 2) for i in range(STEPS)]
    assert seen == pytest.approx(expected)
    assert seen[0] == 0.5
    assert seen[-1] == pytest.approx(0.5 * final, abs=2e-3)


def test_cosine_halves_midway_after_its_warmup():
    seen = rates(partial(cosine, warmup=0.2), adam())
    assert seen[60] == pytest.approx(0.25)
    assert all(a > b for a, b in pairwise(seen[20:]))


@pytest.mark.parametrize("make", [adam, sgd, partial(sgd, momentum=0.0)], ids=["adam", "momentum", "plain sgd"])
def test_onecycle_takes_its_steps(make):
    for steps in (1, 4, 9):
        for warmup in (0.0, 0.1, 0.5):
            seen = rates(partial(onecycle, warmup=warmup), make(), steps)
            assert len(seen) == steps
            assert 0 < min(seen) <= max(seen) <= 0.5 + 1e-12


def test_onecycle_peaks_at_its_warmup_and_ends_low():
    optimizer = adam()
    seen = rates(partial(onecycle, warmup=0.3, start=0.1, final=1e-3), optimizer)
    assert seen[0] == pytest.approx(0.05)
    assert seen.index(max(seen)) in (29, 30)
    assert max(seen) == pytest.approx(0.5, rel=0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 1e-3)  # after the last step


def test_onecycle_turns_momentum_the_other_way():
    optimizer = sgd()
    scheduler, seen = onecycle(optimizer, STEPS), []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert seen[0] == pytest.approx(0.95)
    assert min(seen) == pytest.approx(0.85, abs=1e-3)
    assert seen.index(min(seen)) in (29, 30)
