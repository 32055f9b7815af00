"""When a search may stop by itself: its front has not grown for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autocompress.judging.hypervolume import hypervolume
from autocompress.studies.study import PLANNED, StudyRecord, TrialRecord

LEAST_GROWTH = 1e-3  # of the hypervolume; a tenth of what is still missing at 99 % of a long run's


def stopped_growing(series: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` trials together added less than ``LEAST_GROWTH`` of the whole.

    Args:
        series: the hypervolume before the first trial that searches, then after each of them; see
            ``searched_series``. It never falls.
        patience: how many trials in a row may bring next to nothing, at least 1.

    Raises:
        ValueError: no patience at all.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1, not {patience}")
    if len(series) <= patience:
        return False
    before, now = series[-1 - patience], series[-1]
    return now - before <= LEAST_GROWTH * now


def searched_for(trial: TrialRecord) -> bool:
    """Whether a trial searched: not a planned one, nor one that failed or never ran."""
    return trial.phase not in PLANNED and trial.state not in ("failed", "infeasible")


def searched_series(study: StudyRecord) -> tuple[float, ...]:
    """The hypervolume of the planned trials, then with each trial that searched, for patience.

    The planned ones count as if they had all come first, and say nothing about whether searching
    still pays. A trial that was stopped early searched as well; one that failed, or whose bytes
    alone ruled it out, did not.
    """
    planned = [trial for trial in study.trials if trial.phase in PLANNED]
    searched = [trial for trial in study.trials if searched_for(trial)]
    return tuple(
        hypervolume(replace(study, trials=(*planned, *searched[:count])))
        for count in range(len(searched) + 1)
    )
