"""Which trials no other trial beats, where their curve bends, and how much room they cover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autocompress.search.study import TrialRecord

LATENCY_TOLERANCE = 0.25
"""A trial may be slower by this share and still dominate.

Medians of decode times scatter between runs, on a busy machine by tens of per cent; with an exact
third axis every plan would sooner or later be the fastest of its neighbours by chance.
"""

HYPERVOLUME_REFERENCE_RISE = 1.0
"""Rise of the loss, nats per token, that makes a plan worth nothing: 2.7 times the perplexity."""


def selection_loss(trial: TrialRecord) -> float:
    """Log-perplexity on the selection text, nats per token; infinite if not measured.

    Every complete trial was measured on that text.
    """
    measured = trial.selection
    if measured is None or not math.isfinite(measured.perplexity):
        return math.inf
    return math.log(measured.perplexity)


def latency(trial: TrialRecord) -> float | None:
    """Median decode time in milliseconds: the search's if measured there, else the final one.

    In this order a later measurement of some trials cannot change what the front is.
    """
    for measurement in (trial.selection, trial.report):
        if measurement is not None and measurement.latency_ms is not None:
            return measurement.latency_ms
    return None


def dominates(one: TrialRecord, other: TrialRecord, *, timed: bool = True) -> bool:
    """Whether ``one`` makes ``other`` pointless.

    It is no worse in loss and in bytes, better in at least one of them, and not slower by more
    than ``LATENCY_TOLERANCE``. Without a latency on both sides two axes decide. A tie in loss and
    bytes goes to the faster trial, then to the earlier one; to that at once if not ``timed``, when
    latency counts for nothing.
    """
    ours = (selection_loss(one), one.bytes)
    theirs = (selection_loss(other), other.bytes)
    if ours == theirs:
        return _tie_break(one) < _tie_break(other) if timed else one.number < other.number
    if ours[0] > theirs[0] or ours[1] > theirs[1]:
        return False
    if not timed:
        return True
    our_latency, their_latency = latency(one), latency(other)
    if our_latency is None or their_latency is None:
        return True
    return our_latency <= their_latency * (1 + LATENCY_TOLERANCE)


def _tie_break(trial: TrialRecord) -> tuple[float, int]:
    time = latency(trial)
    return (math.inf if time is None else time), trial.number


def non_dominated(trials: Iterable[TrialRecord], *, timed: bool = True) -> tuple[TrialRecord, ...]:
    """The trials that no other dominates, by bytes. A plan that was measured twice appears once.

    Trials without a finite loss are left out. Not ``timed``, latency counts for nothing.
    """
    unique: dict[str, TrialRecord] = {}
    for trial in trials:
        if math.isfinite(selection_loss(trial)):
            seen = unique.get(trial.key)
            if seen is None or (trial.report is not None and seen.report is None):
                unique[trial.key] = trial
    candidates = list(unique.values())
    front = [
        one
        for one in candidates
        if not any(dominates(other, one, timed=timed) for other in candidates if other is not one)
    ]
    return tuple(sorted(front, key=lambda trial: (trial.bytes, selection_loss(trial))))


def knee_of(front: Sequence[TrialRecord]) -> TrialRecord:
    """The trial farthest below the chord between a front's ends, in normalised (log bytes, loss).

    Where there are not three different sizes there is no bend, and the lowest loss is returned.
    """
    left, right = min(front, key=lambda trial: trial.bytes), min(front, key=selection_loss)
    width = math.log(right.bytes / left.bytes)
    height = selection_loss(left) - selection_loss(right)
    if width <= 0 or height <= 0:
        return right

    def below_chord(trial: TrialRecord) -> float:
        across = math.log(trial.bytes / left.bytes) / width
        down = (selection_loss(left) - selection_loss(trial)) / height
        return down - across

    bend = max(front, key=below_chord)
    return bend if below_chord(bend) > 1e-9 else right


def area_below(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Exact hypervolume in the plane: the area between minimised ``points`` and ``reference``."""
    area, lowest = 0.0, reference[1]
    inside = sorted(
        point for point in points if point[0] < reference[0] and point[1] < reference[1]
    )
    for x, y in inside:
        if y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area
