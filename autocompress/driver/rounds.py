"""Prices the menu inside a plan, allocates by the prices, and again inside what came of it."""

from __future__ import annotations

import math
import time

from autocompress.calibration.builder import LayerBuilder
from autocompress.crew import Crew
from autocompress.driver.prices import Priced, divergence_of, price_options
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.evaluation.evaluator import PricingTexts, ScoredText
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress

ROUNDS = 4
LEAST_GAIN = 0.01  # of the divergence, for a plan to be taken
STEPS = (1.0, 0.3)  # parts of the slopes that are tried, until the plan that they lead to is better


def price_menu(
    proposer: Proposer,
    builder: LayerBuilder,
    texts: PricingTexts,
    progress: Progress = SILENT,
    deadline: float = math.inf,
    rounds: int = ROUNDS,
    crew: Crew | None = None,
) -> Plan:
    """Give a proposer a priced menu, and return the best plan that was met on the way.

    Each round prices the options inside the best plan so far, and allocates by the prices. Slopes
    mislead where many matrices change at once: where the plan is no better, only a part of them is
    taken, and none where that does not help either.

    Args:
        proposer: gets the prices that led to the best plan.
        builder: makes layers.
        texts: what to price and to judge on.
        progress: told how far things are, and what is left out.
        deadline: of ``time.monotonic``; no round is begun after it.
        rounds: at most.
        crew: see ``price_options``.
    """
    best = proposer.background(PREDICTED)
    divergence = math.nan
    for turn in range(rounds):
        if time.monotonic() >= deadline:
            progress.note("The time for pricing options is up; what has been priced counts.")
            break
        priced = price_options(best, proposer.menu, builder, texts.slopes, progress, crew)
        if not priced.slopes:
            break
        if turn == 0:
            divergence = divergence_of(best, builder, texts.check, progress)
        limit = (1 - LEAST_GAIN) * divergence
        better = _better(proposer, priced, builder, texts.check, limit, progress)
        if better is None:
            break
        best, divergence = better
    return best


def _better(
    proposer: Proposer,
    priced: Priced,
    builder: LayerBuilder,
    check: ScoredText,
    limit: float,
    progress: Progress,
) -> tuple[Plan, float] | None:
    """A plan that diverges less than a limit, with its divergence; ``None`` if prices give none.

    The proposer keeps the prices that lead to it, else those that it had.
    """
    before = proposer.priced
    seen = {priced.plan}
    for step in STEPS:
        proposer.priced = priced.menu(step)
        plan = proposer.background(Knobs())
        if plan not in seen:
            seen.add(plan)
            divergence = divergence_of(plan, builder, check, progress)
            if divergence < limit:
                return plan, divergence
    proposer.priced = before
    return None
