"""Learning rates over a training, as torch schedulers stepped once an optimiser step."""

import math
from typing import Annotated

from annotated_types import Ge, Le
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

Share = Annotated[float, Ge(0), Le(1)]


def constant(optimizer: Optimizer, steps: int, warmup: Share = 0.0) -> LRScheduler:
    """Keep the optimiser's rate, after a linear rise.

    Args:
        optimizer: Its ``lr`` is the full rate.
        steps: Steps of the whole training.
        warmup: Share of `steps` in which the rate rises linearly.
    """
    return LambdaLR(optimizer, lambda step: _rise(step, steps, warmup))


def step(
    optimizer: Optimizer, steps: int, at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1, warmup: Share = 0.0
) -> LRScheduler:
    """Multiply the rate by a factor at given steps.

    Args:
        optimizer: Its ``lr`` is the full rate.
        steps: Steps of the whole training.
        at: Shares of `steps` after which the rate is multiplied.
        factor: Factor each time.
        warmup: Share of `steps` in which the rate rises linearly.
    """
    return LambdaLR(optimizer, lambda s: _rise(s, steps, warmup) * factor ** sum(s >= a * steps for a in at))


def cosine(optimizer: Optimizer, steps: int, warmup: Share = 0.0, final: float = 0.0) -> LRScheduler:
    """Lower the rate along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        optimizer: Its ``lr`` is the full rate.
        steps: Steps of the whole training.
        warmup: Share of `steps` in which the rate rises linearly.
        final: Last rate, as a share of the full rate.
    """

    def factor(s: int) -> float:
        first = warmup * steps
        done = min(max(s - first, 0) / max(steps - first, 1), 1)
        return _rise(s, steps, warmup) * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)

    return LambdaLR(optimizer, factor)


def onecycle(
    optimizer: Optimizer, steps: int, warmup: Share = 0.3, start: float = 0.04, final: float = 1e-4
) -> LRScheduler:
    """Raise the rate to the optimiser's and lower it again, momentum the other way (Smith and Topin 2018, arXiv:1708.07120).

    Args:
        optimizer: Its ``lr`` is the peak.
        steps: Steps of the whole training.
        warmup: Share of `steps` in which the rate rises.
        start: First rate, as a share of the peak.
        final: Last rate, as a share of the first.
    """
    peak = [group["lr"] for group in optimizer.param_groups]
    cycle = bool(optimizer.defaults.get("momentum")) or "betas" in optimizer.defaults
    # A rise of exactly one step is a division by zero in torch.
    share = warmup + 1e-9 * (warmup * (steps + 1) == 1)
    return OneCycleLR(
        optimizer, peak, total_steps=steps + 1, pct_start=share, div_factor=1 / start, final_div_factor=1 / final,
        cycle_momentum=cycle,
    )  # fmt: skip


def _rise(step: int, steps: int, warmup: float) -> float:
    first = warmup * steps
    return min(1.0, (step + 1) / (first + 1)) if first else 1.0
