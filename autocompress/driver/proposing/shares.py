"""How the trials of a search are shared out between what is planned and what is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.methods.plan import Plan
from autocompress.surgery.inventory import Inventory

PLANNED_SHARE = 3 / 4  # of the trials, at most; all that is planned fits into that of 32
LEAST_TRIALS = 8  # of which each phase gets some
ALLOCATIONS = 2  # at the budget, which come first whatever follows

Labelled = tuple[str, Plan]


@dataclass(frozen=True)
class Planned:
    """How many plans at most need no sampler.

    Attributes:
        baselines: uniform baselines; all when left out.
        sizes: sizes beside the budget that are allocated at; all when left out.
        trials: that are usual with so many; any number when left out.
    """

    baselines: int | None = None
    sizes: int | None = None
    trials: int | None = None


ALL = Planned()


def share_out(
    trials: int,
    baselines: Sequence[Labelled],
    sizes: Sequence[float],
    inventory: Inventory,
    limit_bytes: float | None,
    planned: Planned = ALL,
) -> tuple[list[Labelled], list[float]]:
    """Choose what is planned beside the allocations at the budget, so that trials are left.

    Where not all fits, uniform baselines and sizes take turns: the plans that a person would take
    for the budget, the sizes nearest to it. With fewer than ``LEAST_TRIALS`` nothing is left out.

    Args:
        trials: of the study in all.
        baselines: labelled uniform baselines.
        sizes: bytes to allocate at beside the budget, the most useful first.
        inventory: tells the bytes of a plan.
        limit_bytes: the budget.
        planned: how many of each at most.
    """
    baselines = _most_useful(baselines, inventory, limit_bytes, planned.baselines)
    sizes = sizes[: planned.sizes]
    room = int(PLANNED_SHARE * trials) - ALLOCATIONS
    if trials < LEAST_TRIALS or len(baselines) + len(sizes) <= room:
        return list(baselines), list(sizes)
    distinct = {plan.hash for _, plan in baselines}
    kept_sizes = sizes[: max(room // 2, room - len(distinct))]
    kept = _most_useful(baselines, inventory, limit_bytes, room - len(kept_sizes))
    return kept, list(kept_sizes)


def _most_useful(
    baselines: Sequence[Labelled], inventory: Inventory, limit_bytes: float | None, most: int | None
) -> list[Labelled]:
    """The plans of most use, each once, in the order that they are given in."""
    if most is None:
        return list(baselines)
    distinct = {plan.hash: (label, plan) for label, plan in reversed(baselines)}
    useful = _useful(list(distinct.values()), inventory, limit_bytes)[:most]
    kept = {label for label, _ in useful}
    return [each for each in baselines if each[0] in kept]


def _useful(
    plans: Sequence[Labelled], inventory: Inventory, limit_bytes: float | None
) -> list[Labelled]:
    """Plans in the order of their use: the largest within the budget first; else over all sizes.

    Those that cut ranks come last: rounding to few bits is what there is to beat.
    """
    by_size = sorted(plans, key=lambda each: inventory.plan_bytes(each[1]))
    if limit_bytes is None:
        return sorted(by_size, key=lambda each: _halvings(by_size.index(each), len(by_size)))
    return sorted(
        by_size,
        key=lambda each: (
            any(method.factorised for method in each[1].values()),
            _distance(inventory.plan_bytes(each[1]), limit_bytes),
        ),
    )


def _distance(size: int, limit_bytes: float) -> tuple[bool, float]:
    return size > limit_bytes, abs(math.log(size / limit_bytes))


def _halvings(index: int, count: int) -> int:
    """How often a range must be halved until it is this index that is in the middle."""
    low, high, halvings = 0, count, 0
    while (middle := (low + high) // 2) != index:
        low, high = (middle + 1, high) if index > middle else (low, middle)
        halvings += 1
    return halvings
