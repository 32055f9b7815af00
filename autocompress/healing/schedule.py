"""How large a step is, and which windows it is made on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from autocompress.errors import DataError
from autocompress.evaluation.windows import with_begin

LEAST_WINDOWS = 4  # to train on
WARM_UP = 0.05  # share of the steps in which the rate rises


def rate_at(step: int, steps: int, highest: float) -> float:
    """Learning rate of a step counted from 1: a linear rise, then half a cosine down to zero."""
    rise = min(1.0, step / max(1.0, WARM_UP * steps))
    return highest * rise * 0.5 * (1 + math.cos(math.pi * step / (steps + 1)))


def batches(windows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Draw ``size`` of ``windows [n, length]`` at a time, each once before any comes again.

    The order depends on the seed alone, so that a resumed run can skip what it has seen.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += torch.randperm(len(windows), generator=generator).tolist()
        chosen, waiting = waiting[:size], waiting[size:]
        yield windows[chosen]


def windows_of(ids: Tensor, context: int, begin: tuple[int, ...] = ()) -> Tensor:
    """Cut ``ids [n]`` into whole windows ``[m, context]``, each behind the tokens ``begin``.

    Raises:
        DataError: there are too few.
    """
    stride = context - len(begin)
    count = len(ids) // stride
    if count < LEAST_WINDOWS:
        raise DataError(
            "the text to heal on is too short",
            got=f"{len(ids)} tokens",
            wanted=f"at least {LEAST_WINDOWS * stride}, {LEAST_WINDOWS} windows of {stride}",
            hint="Name a longer text with --data.",
        )
    return with_begin(ids[: count * stride].view(count, stride), begin)
