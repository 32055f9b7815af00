"""Measures the menu around a plan, allocates by what was seen, and again around what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from autocompress.calibration.cache import Cache
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.knobs import Knobs
from autocompress.search.measured_menu import (
    Background,
    coarse_grid,
    measure_swaps,
    most_telling,
)
from autocompress.search.proposer import PREDICTED, Proposer

ROUNDS = 3
LEAST_GAIN = 0.1  # of the divergence, for another round to be worth its time


def measure_menu(
    proposer: Proposer,
    evaluator: Evaluator,
    text: ScoredText,
    cache: Cache,
    address: Callable[[str, Method], str],
    progress: Progress = SILENT,
    deadline: float = math.inf,
) -> Plan:
    """Give a proposer a measured menu, and return the best plan that was met on the way.

    Where damage is light the first round changes little; where it is heavy the plan that it is
    measured in is a bad one, and a second round around a better plan pays.

    Args:
        proposer: gets the measured menu of the last round.
        evaluator: measures plans.
        text: what to score on; not the report text.
        cache: keeps each measurement, so that an interrupted run goes on.
        address: hash of all that a built layer depends on.
        progress: told how far things are, and what is left out.
        deadline: of ``time.monotonic``; what was measured by then is used, and kept for a run with
            more time.
    """

    def around(plan: Plan) -> Background:
        return Background(plan, evaluator, text, cache, address)

    background, knobs = around(proposer.background(PREDICTED)), PREDICTED
    best = background
    for number in range(ROUNDS):
        grid = coarse_grid(proposer.menu, [background.plan, *proposer.worth_measuring(knobs)])
        chosen = most_telling(proposer.menu, grid)
        if not number and len(chosen) < len(grid):
            progress.note(_some_of(len(chosen), len(grid)))
        measured = measure_swaps(background, proposer.menu, chosen, progress, deadline)
        cut = time.monotonic() >= deadline
        if not (cut and proposer.measured.swaps):  # all of one round is worth more than some
            proposer.measured = measured
        if cut:
            progress.note("The time for measuring options is up; what has been measured counts.")
            break
        background, knobs = around(proposer.background(Knobs())), Knobs()
        before = best.divergence
        best = min(best, background, key=lambda each: each.divergence)
        if background.divergence > (1 - LEAST_GAIN) * before:
            break
    return best.plan


def _some_of(chosen: int, matrices: int) -> str:
    return (
        f"Options are measured of the {chosen:,} matrices of {matrices:,} that most is predicted "
        "to depend on; the others count as predicted, times the mean of what these turn out to be."
    )
