"""Which trials a search will make, as far as that is known before anything is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.driver.driver import REFERENCE_SPAN
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.proposer import sweep
from autocompress.driver.proposing.shares import ALL, Planned, share_out
from autocompress.methods.plan import Plan
from autocompress.space.space import Space
from autocompress.surgery.inventory import Inventory
from autocompress.units import Limits

SEARCHED = "searched"  # by knobs and swaps, in what order and number depends on the trials before


@dataclass(frozen=True)
class ExpectedTrial:
    """A trial to come.

    Attributes:
        phase: ``allocation``, ``baseline`` or ``searched``.
        ruled_out: whether its bytes alone put it too far above the limit to be measured.
        plan: where it is known already.
    """

    phase: str
    ruled_out: bool = False
    plan: Plan | None = None


def expected_trials(
    inventory: Inventory,
    limits: Limits,
    least_bytes: int,
    trials: int,
    space: Space,
    planned: Planned = ALL,
) -> list[ExpectedTrial]:
    """List the trials of a new study in the order in which they are made.

    Args:
        inventory: the model's matrices.
        limits: what plans may cost.
        least_bytes: of the smallest plan in the space.
        trials: how many there are to be.
        space: what may be chosen from.
        planned: how many plans at most need no sampler.
    """
    dense, limit_bytes = inventory.dense_bytes, limits.memory_bytes
    share = None if limit_bytes is None else min(limit_bytes / dense, 1.0)
    most = None if limit_bytes is None else REFERENCE_SPAN * limit_bytes
    plans, sizes = share_out(
        trials,
        baseline_plans(
            inventory.layers,
            share,
            methods=space.selection.methods,
            kept=[spec.name for spec in inventory.layers if space.leaves(spec)],
            held=dict(space.held),
            target=inventory.target,
        ),
        sweep(limits, dense, least_bytes)[1:],
        inventory,
        limit_bytes,
        planned,
    )
    baselines = [
        ExpectedTrial("baseline", most is not None and inventory.plan_bytes(plan) > most, plan)
        for _, plan in plans
    ]
    # At the budget one on predictions and one on measured options, then the sweep.
    allocations = [ExpectedTrial("allocation")] * (2 + len(sizes))
    known = [*allocations[:2], *baselines, *allocations[2:]]
    searched = [ExpectedTrial(SEARCHED)] * max(trials - len(known), 0)
    return [*known, *searched][:trials]
