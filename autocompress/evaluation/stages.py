"""Scoring in stages: a few windows first, twice as many again while a plan may still win.

All plans are scored on the same first windows, so two of them are compared in pairs, window by
window, and what a text is like by chance does not decide. Scoring ends as soon as the interval of
the difference tells a plan from a better one, whatever share of the text that takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count, takewhile

import numpy as np
from scipy.stats import t as student

from autocompress.records import Measurement

LEAST_WINDOWS = 4  # of a stage; fewer say nothing about their spread
RIVALS = 3
# A plan may still win on the rest of the text while its divergence is this much above a rival's.
MARGIN = 0.2
CONFIDENCE = 0.977  # one-sided, that the difference is no chance: two standard errors of many


def stages_of(windows: int) -> tuple[int, ...]:
    """Numbers of first windows to decide after, each twice the last; none for a short text."""
    doublings = (LEAST_WINDOWS * 2**power for power in count())
    return tuple(takewhile(lambda stage: stage < windows, doublings))


def rivals_of(measured: Iterable[Measurement]) -> tuple[tuple[float, ...], ...]:
    """Divergences by window of the best of some measured plans."""
    known = [measurement for measurement in measured if measurement.windows]
    best = sorted(known, key=lambda measurement: measurement.divergence)[:RIVALS]
    return tuple(measurement.windows.divergence for measurement in best if measurement.windows)


def clearly_worse(ours: Sequence[float], rivals: Iterable[Sequence[float]]) -> bool:
    """Whether a plan's divergence is above some rival's by more than margin and chance allow.

    Args:
        ours: of the plan, on each of the first windows.
        rivals: of other plans, on these windows and more.
    """
    mine = np.asarray(ours)
    if not np.isfinite(mine).all():
        return True
    return any(_worse(mine, np.asarray(rival[: len(mine)])) for rival in rivals)


def _worse(ours: np.ndarray, theirs: np.ndarray) -> bool:
    differences = ours - theirs
    chance = differences.std(ddof=1) / math.sqrt(len(differences))
    errors = _errors(len(differences))
    return bool(differences.mean() > MARGIN * theirs.mean() + errors * chance)


@cache
def _errors(windows: int) -> float:
    """Standard errors of a mean over so many windows within which it may be chance (Student)."""
    return float(student.ppf(CONFIDENCE, windows - 1))
