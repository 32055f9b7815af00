"""How far chance in the choice of the text moves a result: bootstrap over its windows.

Every plan is scored on the same windows, so a window that is hard for one is hard for all. Two
plans, or a plan and the dense model, are therefore compared window by window, and windows are drawn
again in pairs: what both lose on a hard window cancels. The intervals speak of another text of the
same kind, not of another kind of text, nor of a plan that was chosen on the text it is scored on.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile
interval). Deviation: with few windows its ends are moved outwards to the width of Student's
interval (Hesterberg 2015, arXiv 1411.5279, section 5.3, "expanded percentile"), for the plain one
is too narrow then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from autocompress.judging.against_dense import dense_on
from autocompress.records import WindowScores
from autocompress.studies.study import StudyRecord, TrialRecord

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_WINDOWS = 5  # below, resampling says next to nothing


class Interval(NamedTuple):
    """Where a figure lies at ``LEVEL``, in the figure's own unit."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


def difference_interval(
    one: WindowScores,
    other: WindowScores,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Interval of the loss of ``one`` above that of ``other``.

    Args:
        one: scores of the one, on the same windows as those of the other.
        other: scores of the other.
        level: how often such an interval holds what the whole source of the text would give.
        resamples: how often the windows are drawn.
        seed: of the draws.

    Returns:
        ``None`` with fewer than ``FEWEST_WINDOWS`` windows, or a score that is no finite number.

    Raises:
        ValueError: the windows differ.
    """
    if one.tokens != other.tokens:
        raise ValueError("the scores are of different windows")
    tokens = np.asarray(one.tokens, float)
    differences = np.asarray(one.loss) - np.asarray(other.loss)
    count = len(tokens)
    if count < FEWEST_WINDOWS or not np.isfinite(differences).all():
        return None
    # How often each draw of as many windows holds each window: [resamples, windows].
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    means = draws @ (tokens * differences) / (draws @ tokens)
    tail = _expanded_tail((1 - level) / 2, count)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _expanded_tail(tail: float, count: int) -> float:
    """The share to cut off each end, so that the width is Student's for so few windows."""
    widened = stdtrit(count - 1, tail) * (count / (count - 1)) ** 0.5
    return float(ndtr(widened))


def increase_interval(study: StudyRecord, trial: TrialRecord) -> Interval | None:
    """Interval of a trial's increase of the loss over the dense model, on the report text.

    ``None`` where the trial was not measured on it, without scores of the windows, and as in
    ``difference_interval``. There is none on the selection text: trials are chosen by it.
    """
    if trial.report is None:
        return None
    return _interval(trial.report.windows, dense_on(study, trial.report).windows)


def loss_interval(one: TrialRecord, other: TrialRecord) -> Interval | None:
    """Interval of the loss of one trial above another's, where ``increase_interval`` has one.

    Narrower than those of the two increases suggest, for it is made in pairs.
    """
    if one.report is None or other.report is None:
        return None
    return _interval(one.report.windows, other.report.windows)


def _interval(one: WindowScores | None, other: WindowScores | None) -> Interval | None:
    known = one is not None and other is not None and one.tokens == other.tokens
    return difference_interval(one, other) if known and one and other else None
