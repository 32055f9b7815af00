"""Prices the menu inside a plan, allocates by the prices, and again inside what came of it."""

from __future__ import annotations

import math
import time

from autocompress.calibration.builder import LayerBuilder
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import ScoredText
from autocompress.search.knobs import Knobs
from autocompress.search.prices import Priced, divergence_of, price_options
from autocompress.search.proposer import PREDICTED, Proposer

ROUNDS = 4
LEAST_GAIN = 0.01  # of the divergence, for another round to be worth its time


def price_menu(
    proposer: Proposer,
    builder: LayerBuilder,
    text: ScoredText,
    progress: Progress = SILENT,
    deadline: float = math.inf,
    rounds: int = ROUNDS,
) -> Plan:
    """Give a proposer a priced menu, and return the best plan that was met on the way.

    Where damage is light the first round changes little; where it is heavy the plan that it prices
    in is a bad one, and further rounds inside better plans pay. Prices whose plan is no better than
    the one they were found in are dropped.

    Args:
        proposer: gets the prices inside the best plan, or those that led to it.
        builder: makes layers.
        text: what to differentiate the divergence on; not the report text.
        progress: told how far things are, and what is left out.
        deadline: of ``time.monotonic``; no round is begun after it.
        rounds: at most.
    """
    plan = proposer.background(PREDICTED)
    best: Priced | None = None
    led_to_best = proposer.priced
    for _ in range(rounds):
        if time.monotonic() >= deadline:
            progress.note("The time for pricing options is up; what has been priced counts.")
            break
        priced = price_options(plan, proposer.menu, builder, text, progress)
        if best is not None and not priced.divergence < best.divergence:
            proposer.priced = led_to_best  # the prices inside the best plan have misled
            return best.plan
        before = math.inf if best is None else best.divergence
        best, led_to_best = priced, proposer.priced
        proposer.priced = priced.menu
        if not priced.divergence < (1 - LEAST_GAIN) * before:
            return best.plan
        plan = proposer.background(Knobs())
    if best is None or plan == best.plan:
        return plan
    if divergence_of(plan, builder, text) < best.divergence:
        return plan
    proposer.priced = led_to_best
    return best.plan
