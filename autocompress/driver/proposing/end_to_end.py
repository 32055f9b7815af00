"""How the latency that a table adds up relates to the latency that is measured end to end.

A table knows the matrices alone. A token takes more (attention, norms, the interpreter), and layers
in a model find other caches than layers that are timed by themselves. So trials, which are measured
end to end, say what a millisecond of the table is worth, and how far it can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autocompress.studies.relation import Relation

# What the first guess weighs, the share of a token and the spread below; a slope that few trials
# give follows their noise.
PRIOR_TRIALS = 4
PRIOR_SHARE = 2 / 3  # of a token of the dense model that is spent in its matrices
PRIOR_SPREAD = 0.03  # of the dense model's latency
LEAST_SLOPE = 0.1  # of the first guess; below, the table says nothing about the model
LEAST_TRIALS = 3  # for a correlation
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class TimedPlan:
    """One trial's latencies, in milliseconds a token.

    Attributes:
        table_ms: sum over its matrices in the table.
        measured_ms: measured end to end.
        dense_ms: of the dense model, measured next to it.
    """

    table_ms: float
    measured_ms: float
    dense_ms: float


def relate(trials: Sequence[TimedPlan], dense_table_ms: float, dense_ms: float) -> Relation:
    """Learn the relation from trials, the matrices taking ``PRIOR_SHARE`` being the first guess.

    Not a slope of 1: a table may have been taken while the machine was quicker or slower.

    The line goes through the dense model, whose latency is known best. Its slope has the least sum
    of absolute residuals, so that single trials measured while the machine was busy do not bend it:
    that is the median of the slopes of the trials, weighted by how far they are from dense.

    Args:
        trials: in any order. Each is compared with the dense model next to it.
        dense_table_ms: sum of the dense model's matrices in the table.
        dense_ms: end to end, of the dense model.
    """
    saved = np.array([trial.table_ms - dense_table_ms for trial in trials], dtype=float)
    measured = np.array([dense_ms * (t.measured_ms / t.dense_ms - 1) for t in trials], dtype=float)
    guess = PRIOR_SHARE * dense_ms / dense_table_ms
    slope = max(_slope(saved, measured, guess), LEAST_SLOPE * guess)
    residuals = measured - slope * saved
    enough = len(trials) >= LEAST_TRIALS and np.ptp(measured) > 0 and np.ptp(saved) > 0
    return Relation(
        dense_ms,
        dense_table_ms,
        slope,
        _spread(residuals, PRIOR_SPREAD * dense_ms),
        float(1 - np.mean(residuals**2) / np.var(measured)) if enough else None,
        float(spearmanr(saved, measured).statistic) if enough else None,
        len(trials),
    )


def _slope(saved: NDArray[np.float64], measured: NDArray[np.float64], guess: float) -> float:
    """Weighted median of the trials' slopes and of the first guess."""
    useful = saved != 0
    if not useful.any():
        return guess
    weights = np.abs(saved[useful])
    slopes = np.append(measured[useful] / saved[useful], guess)
    weights = np.append(weights, PRIOR_TRIALS * np.median(weights))
    order = np.argsort(slopes)
    reached = np.cumsum(weights[order])
    return float(slopes[order][np.searchsorted(reached, reached[-1] / 2)])


def _spread(residuals: NDArray[np.float64], guess: float) -> float:
    count = len(residuals)
    deviation = MAD_TO_SIGMA * float(np.median(np.abs(residuals))) if count else 0.0
    return math.sqrt((count * deviation**2 + PRIOR_TRIALS * guess**2) / (count + PRIOR_TRIALS))
