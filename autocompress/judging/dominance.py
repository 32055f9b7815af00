"""Which trials no other trial beats, where their curve bends, and how much room they cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from autocompress.studies.study import TrialRecord

LATENCY_TOLERANCE = 0.25
"""A trial may be slower by this share and still dominate.

Medians of decode times scatter between runs, on a busy machine by tens of per cent; with an exact
third axis every plan would sooner or later be the fastest of its neighbours by chance.
"""

Loss = Callable[[TrialRecord], float]
"""What a trial loses."""

HYPERVOLUME_REFERENCE_INCREASE = 1.0
"""Rise of the loss that makes a plan worth nothing: 2.7 times a perplexity."""


def selection_loss(trial: TrialRecord) -> float:
    """The loss on the selection text; infinite if not measured.

    Every complete trial was measured on that text.
    """
    measured = trial.selection
    if measured is None or not math.isfinite(measured.figure):
        return math.inf
    return measured.loss


def divergence(trial: TrialRecord) -> float:
    """Divergence from the dense model on the selection text; NaN if unknown."""
    return math.nan if trial.selection is None else trial.selection.divergence


def ranking_loss(trials: Iterable[TrialRecord]) -> Loss:
    """What some trials are ranked by among one another.

    It is the divergence from the dense model. Under light compression the loss on a short text
    ranks plans by luck: it falls as often as it rises, while the divergence compares whole outputs
    and is never negative. Where one of these trials has no finite divergence, it is the loss of all
    of them: the two are not mixed, and what beats what stays an order.

    Args:
        trials: all that are to be compared; those without a finite figure do not count.

    Returns:
        ``divergence`` or ``selection_loss``; finite for those trials.
    """
    measured = (trial for trial in trials if math.isfinite(selection_loss(trial)))
    return divergence if all(math.isfinite(divergence(t)) for t in measured) else selection_loss


def latency(trial: TrialRecord) -> float | None:
    """Median decode time in milliseconds: the search's if measured there, else the final one.

    In this order a later measurement of some trials cannot change what the front is.
    """
    for measurement in (trial.selection, trial.report):
        if measurement is not None and measurement.latency_ms is not None:
            return measurement.latency_ms
    return None


def dominates(one: TrialRecord, other: TrialRecord, loss: Loss, *, timed: bool = True) -> bool:
    """Whether ``one`` makes ``other`` pointless.

    It is no worse in loss and in bytes, better in at least one of them, and not slower by more
    than ``LATENCY_TOLERANCE``. Without a latency on both sides two axes decide. A tie in loss and
    bytes goes to the faster trial, then to the earlier one; to that at once if not ``timed``, when
    latency counts for nothing.

    Args:
        one: a trial.
        other: another one.
        loss: the ``ranking_loss`` of all trials that are compared.
        timed: whether latency counts.
    """
    ours, theirs = (loss(one), one.bytes), (loss(other), other.bytes)
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


def non_dominated(
    trials: Iterable[TrialRecord], loss: Loss | None = None, *, timed: bool = True
) -> tuple[TrialRecord, ...]:
    """The trials that no other dominates, by bytes. A plan that was measured twice appears once.

    Trials without a finite figure are left out. Not ``timed``, latency counts for nothing.

    Args:
        trials: the candidates.
        loss: the ``ranking_loss`` of more trials than these; theirs when left out.
        timed: whether latency counts.
    """
    unique: dict[str, TrialRecord] = {}
    for trial in trials:
        if math.isfinite(selection_loss(trial)):
            seen = unique.get(trial.key)
            if seen is None or (trial.report is not None and seen.report is None):
                unique[trial.key] = trial
    candidates = list(unique.values())
    ranked_by = loss or ranking_loss(candidates)

    def beaten(one: TrialRecord) -> bool:
        others = (other for other in candidates if other is not one)
        return any(dominates(other, one, ranked_by, timed=timed) for other in others)

    front = [one for one in candidates if not beaten(one)]
    return tuple(sorted(front, key=lambda trial: (trial.bytes, ranked_by(trial))))


def knee_of(front: Sequence[TrialRecord], loss: Loss | None = None) -> TrialRecord:
    """The trial farthest below the chord between a front's ends, in normalised (log bytes, loss).

    Where there are not three different sizes there is no bend, and the lowest loss is returned.

    Args:
        front: the trials.
        loss: the ``ranking_loss`` of more trials than these; theirs when left out.
    """
    loss = loss or ranking_loss(front)
    left, right = min(front, key=lambda trial: trial.bytes), min(front, key=loss)
    width = math.log(right.bytes / left.bytes)
    height = loss(left) - loss(right)
    if width <= 0 or height <= 0:
        return right

    def below_chord(trial: TrialRecord) -> float:
        across = math.log(trial.bytes / left.bytes) / width
        down = (loss(left) - loss(trial)) / height
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
