"""Scoring in stages: a few windows first, and more only for what is not clearly beaten on them.

All plans are scored on the same first windows, so two of them are compared in pairs, window by
window, and what a text is like by chance does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from autocompress.search.study import TrialRecord

STAGES = (1 / 8, 1 / 2)  # of the windows, before each decision to go on
LEAST_WINDOWS = 4  # of a stage; fewer say nothing about their spread
RIVALS = 3
# A plan may still win on the rest of the text while its divergence is this much above a rival's.
MARGIN = 0.2
STANDARD_ERRORS = 2.0


def stages_of(windows: int) -> tuple[int, ...]:
    """Numbers of first windows to decide after, rising; none for a short text."""
    counts = [round(share * windows) for share in STAGES]
    return tuple(count for count in counts if LEAST_WINDOWS <= count < windows)


def rivals_of(size: int, trials: Iterable[TrialRecord]) -> tuple[tuple[float, ...], ...]:
    """Divergences by window of the best plans that take at most ``size`` bytes."""
    smaller = [
        trial.selection
        for trial in trials
        if trial.bytes <= size and trial.selection is not None and trial.selection.windows
    ]
    best = sorted(smaller, key=lambda measured: measured.kl)[:RIVALS]
    return tuple(measured.windows.kl for measured in best if measured.windows)


def clearly_worse(ours: Sequence[float], rivals: Iterable[Sequence[float]]) -> bool:
    """Whether a plan's divergence is above some rival's by more than margin and chance allow.

    Args:
        ours: of the plan, nats per token on each of the first windows.
        rivals: of other plans, on these windows and more.
    """
    mine = np.asarray(ours)
    if not np.isfinite(mine).all():
        return True
    return any(_worse(mine, np.asarray(rival[: len(mine)])) for rival in rivals)


def _worse(ours: np.ndarray, theirs: np.ndarray) -> bool:
    differences = ours - theirs
    chance = differences.std(ddof=1) / math.sqrt(len(differences))
    return bool(differences.mean() > MARGIN * theirs.mean() + STANDARD_ERRORS * chance)
