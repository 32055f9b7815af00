"""Where the smallest plan is that keeps a quality: bytes to try, from what other sizes lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from autocompress.judging.against_dense import latency_within, loss_on
from autocompress.methods.plan import Plan
from autocompress.studies.study import StudyRecord

USUAL_POWER = 4.0  # of the bytes, by which the loss falls where one size alone is known
LEAST_POWER, MOST_POWER = 0.5, 20.0
MOST_STEP, LEAST_STEP = 2.0, 1.03  # of the bytes, where one side of the limit is not known
EDGE = 0.1  # of the room between two sizes that an aim keeps from either, in logarithms
CROWDED = 0.75  # of the room above that is left for each further plan of the same size
LEAST_USED = 1e-3  # of the loss that is allowed; less says nothing of where the limit is


class Sighting(NamedTuple):
    """What a plan of some size was seen to lose.

    Attributes:
        bytes: of the stored model.
        used: share of the loss that is allowed: more than 1 misses the quality.
        plan: the plan.
    """

    bytes: int
    used: float
    plan: Plan


def sightings_of(study: StudyRecord) -> list[Sighting]:
    """What the trials of a study lost on the selection text, of those that are fast enough."""
    return [
        Sighting(trial.bytes, loss_on(study, trial.selection).used(study.limits), trial.plan)
        for trial in study.unhealed.complete
        if trial.selection is not None and latency_within(study.limits, trial)
    ]


def bracket(seen: Iterable[Sighting]) -> tuple[Sighting | None, Sighting | None]:
    """The largest plan that misses the quality, and the smallest that keeps it.

    Only plans count that no other beats in both bytes and loss: a bad plan says nothing of its
    size. ``None`` where there is none.
    """
    below = None
    least = math.inf
    for one in sorted(seen, key=lambda each: (each.bytes, each.used)):
        if one.used <= 1:
            return below, one
        if one.used < least:
            below, least = one, one.used
    return below, None


def aim(seen: Iterable[Sighting], least: float, most: float) -> float:
    """Bytes at which the quality is likely just kept.

    Between a plan that misses it and one that keeps it the loss is taken as a power of the bytes;
    beyond either, steps are bounded.

    Args:
        seen: in any order.
        least: fewest bytes to aim at.
        most: most bytes to aim at.
    """
    seen = list(seen)
    below, above = bracket(seen)
    if below is None and above is None:
        return math.sqrt(least * most)
    if below is None or above is None:
        outermost = min if below is None else max
        edge = outermost(seen, key=lambda one: one.bytes)
        step: float = _bounded(edge.used) ** (1 / _power(seen, edge))
        step = max(step, LEAST_STEP) if below else min(step, 1 / LEAST_STEP)
        step = min(max(step, 1 / MOST_STEP), MOST_STEP)
        return min(max(edge.bytes * step, least), most)
    width = math.log(above.bytes / below.bytes)
    lost = math.log(_bounded(below.used))
    fall = max(lost - math.log(_bounded(above.used)), LEAST_POWER * width)
    share = min(max(lost / fall, EDGE), 1 - EDGE) if fall > 0 else 0.5
    # Forms have few sizes: where what was aimed at gives the same size again, aim higher.
    again = sum(one.used > 1 and one.bytes == below.bytes for one in seen) - 1
    share = 1 - (1 - share) * CROWDED**again
    return min(max(below.bytes * math.exp(share * width), least), most)


def _bounded(used: float) -> float:
    return min(max(used, LEAST_USED), 1 / LEAST_USED)


def _power(seen: Iterable[Sighting], edge: Sighting) -> float:
    """Power of the bytes by which the loss falls between a plan and the nearest in size."""
    others = [one for one in seen if one.bytes != edge.bytes]
    if not others:
        return USUAL_POWER
    near = min(others, key=lambda one: abs(math.log(one.bytes / edge.bytes)))
    fall = math.log(_bounded(edge.used) / _bounded(near.used))
    power = fall / math.log(near.bytes / edge.bytes)
    return min(max(power, LEAST_POWER), MOST_POWER)


def approach(
    try_size: Callable[[float], Sighting],
    least: float,
    most: float,
    *,
    steps: int,
    tolerance: float,
    seen: Iterable[Sighting] = (),
) -> list[Sighting]:
    """Try sizes nearer and nearer to the smallest that keeps a quality.

    Args:
        try_size: makes the best plan of at most so many bytes, and measures it.
        least: fewest bytes to try.
        most: most bytes to try.
        steps: sizes to try at most.
        tolerance: ratio of two sizes, one that misses and one that keeps, that is near enough.
        seen: what was measured before.

    Returns:
        All that was seen, in the order in which it was.
    """
    found = list(seen)
    for _ in range(steps):
        below, above = bracket(found)
        if below and above and above.bytes <= tolerance * below.bytes:
            break
        if above and above.bytes <= least:
            break
        if not above and max((one.bytes for one in found), default=0) >= most:
            break
        one = try_size(aim(found, least, most))
        if any(one.plan == other.plan for other in found):
            break  # there is no plan between
        found.append(one)
    return found
