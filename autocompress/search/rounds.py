"""Prices the menu inside a plan, allocates by the prices, and again inside what came of it."""

from __future__ import annotations

import math
import time

from autocompress.calibration.builder import LayerBuilder
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Progress
from autocompress.search.evaluator import ScoredText
from autocompress.search.knobs import Knobs
from autocompress.search.prices import Priced, price_options
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
    in is a bad one, and further rounds inside better plans pay.

    Args:
        proposer: gets the prices of the best plan.
        builder: makes layers.
        text: what to differentiate the divergence on; not the report text.
        progress: told how far things are, and what is left out.
        deadline: of ``time.monotonic``; no round is begun after it.
        rounds: at most.
    """
    best: Priced | None = None
    plan = proposer.background(PREDICTED)
    for _ in range(rounds):
        if time.monotonic() >= deadline:
            progress.note("The time for pricing options is up; what has been priced counts.")
            break
        priced = price_options(plan, proposer.menu, builder, text, progress)
        before = math.inf if best is None else best.divergence
        if best is None or priced.divergence < before:
            best = priced
        if not priced.divergence < (1 - LEAST_GAIN) * before:
            break
        proposer.priced = best.menu
        plan = proposer.background(Knobs())
    if best is None:
        return plan
    proposer.priced = best.menu
    return best.plan
