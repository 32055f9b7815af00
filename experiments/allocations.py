"""Compare ways to allocate a budget on one menu: divergence on unseen text, tokens and seconds.

    python experiments/allocations.py
    python experiments/allocations.py --budget 4x 8x --without evolution
    python experiments/allocations.py --model DIR --calibration-data FILE --selection-data FILE

The additive allocation minimises the sum of predicted loss increases. The project's allocation by
prices (``search/rounds.py``) starts from it, and so do its two rivals, which get the same fitted
options:

- an evolution of level switches (EvoPress, see ``evolution.py``), with ten times the tokens that
  the prices took, and once more from a uniform plan; its fitness is the divergence on the
  calibration text;
- a relaxed choice (RCO, see ``relaxed_choice.py``): Frank-Wolfe on mixtures of forms.

Printed is the KL divergence from the dense model on the selection text, which none of them sees.
Tokens are those of forward passes of compressed models; a pass forth, and forth and back block by
block, counts for four. Dense predictions are not counted. Prices are found anew, whatever the cache
holds; the seconds are without those of fitting options that are only predicted.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from evolution import FreshTokens
from level_evolution import Evolution
from menu_levels import LevelMenu, Levels
from own_search import Pricings, add_arguments, request_of
from relaxed_choice import RelaxedChoice

from autocompress.calibration.menu import Menu
from autocompress.cli.output import ConsoleProgress, quieten_libraries
from autocompress.driver.prices import divergence_of
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.rounds import price_menu
from autocompress.errors import BudgetUnreachable
from autocompress.evaluation.evaluator import ScoredText
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.methods.base import Method
from autocompress.methods.plan import Plan
from autocompress.progress import Progress
from autocompress.session.session import Session, open_session
from autocompress.space.space_file import load_space
from autocompress.store import Cache
from autocompress.units import Budget

SIZES = 5  # around the budget that plans are made at, so that there are fitted options to choose
STAGES = ((256, 8), (1024, 2), (4096, 1))  # tokens, and how many offspring survive them
EVOLUTION, RELAXED = "evolution", "relaxed"


class UnkeptPrices(Cache):
    """A cache that holds no prices, so that pricing takes what it takes."""

    def record(self, kind: str, key: str) -> Any:
        """Find nothing of prices."""
        return None if kind == "prices" else super().record(kind, key)

    def keep_record(self, kind: str, key: str, value: object) -> None:
        """Keep nothing of prices."""
        if kind != "prices":
            super().keep_record(kind, key, value)


class TimedFits:
    """Fits what plans take, and says how long that took.

    Attributes:
        seconds: all fits together.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.seconds = session, 0.0

    def __call__(self, menu: Menu, taken: Mapping[str, Iterable[Method]], deadline: float) -> Menu:
        """Fit; see ``Session.fit_taken``."""
        started = time.perf_counter()
        menu = self.session.fit_taken(menu, taken, deadline)
        self.seconds += time.perf_counter() - started
        return menu


@dataclass(frozen=True)
class Allocation:
    """A plan, and what it took to find.

    Attributes:
        plan: within the budget.
        tokens: in forward passes of compressed models.
        seconds: without those of fits.
    """

    plan: Plan
    tokens: int
    seconds: float


class Comparison:
    """The allocations at one budget; each is made from the additive one.

    Args:
        session: the model.
        menu: the options.
        budget: as typed.
        args: settings of the rivals.
        progress: told how far things are.
    """

    def __init__(
        self,
        session: Session,
        menu: Menu,
        budget: str,
        args: argparse.Namespace,
        progress: Progress,
    ) -> None:
        self.session, self.args, self.progress = session, args, progress
        self.inventory = session.workbench.inventory
        limits = Budget.parse(budget).limits(self.inventory.dense_bytes, 1.0)
        self.limit = limits.memory_bytes or self.inventory.dense_bytes
        self.fits = TimedFits(session)
        self.proposer = Proposer(menu, self.inventory, limits, fit=self.fits)
        self.start = self.proposer.settled(PREDICTED, *self.proposer.targets[:SIZES])

    def additive(self) -> Allocation:
        """The allocation of least predicted loss increase."""
        target = self.proposer.targets[0]
        return self._timed(lambda: (self.proposer.allocated(PREDICTED, target), 0))

    def by_prices(self) -> Allocation:
        """The project's allocation by prices."""
        pricings, builder = Pricings(self.progress), self.session.builder
        texts = self.session.pricing_texts  # scores the dense model at the first time

        def price() -> tuple[Plan, int]:
            with pricings.counting_checks():
                return price_menu(self.proposer, builder, texts, pricings), pricings.tokens

        return self._timed(price)

    def relaxed(self) -> Allocation:
        """The relaxed choice."""
        choice = RelaxedChoice(
            self.proposer.menu,
            self.session.builder,
            self.limit - self.inventory.rest_bytes,
            calibration_texts(self.session),
            self.session.pricing_texts.check,
            curvature=not self.args.linear,
        )

        def choose() -> tuple[Plan, int]:
            return choice.choose(self.start, self.args.steps, self.progress), choice.tokens

        return self._timed(choose)

    def evolved(self, tokens: int, *, uniform: bool) -> Allocation:
        """What an evolution comes to with so many tokens.

        Raises:
            BudgetUnreachable: no uniform plan of fitted options is within the budget.
        """
        menu = LevelMenu(self.proposer.menu, self.inventory)
        parent = menu.uniform(self.limit) if uniform else menu.matching(self.start)
        return self._timed(partial(self._evolve, menu, parent, tokens))

    def _evolve(self, menu: LevelMenu, parent: Levels, most: int) -> tuple[Plan, int]:
        rng = random.Random(self.args.seed)
        fresh = FreshTokens(self.session, menu, self.session.calibration_ids, rng)
        evolution = Evolution(menu, self.limit, fresh, self.args.offspring, STAGES, rng)
        with self.progress.task("Evolving (tokens)", most) as advance:
            while fresh.tokens < most:
                before = fresh.tokens
                parent = evolution.next_parent(parent)
                advance(fresh.tokens - before)
        return menu.plan(parent), fresh.tokens

    def _timed(self, find: Callable[[], tuple[Plan, int]]) -> Allocation:
        started, fitting = time.perf_counter(), self.fits.seconds
        plan, tokens = find()
        seconds = time.perf_counter() - started - (self.fits.seconds - fitting)
        return Allocation(plan, tokens, seconds)


def calibration_texts(session: Session) -> list[ScoredText]:
    """Parts of the calibration text to differentiate on: all but the one that plans are judged on.

    They are cut as the text is that options are priced on, and as long as it, where there is as
    much.
    """
    slopes, tokens = session.pricing_texts.slopes, session.settings.pricing_tokens
    parts = [slopes]
    for ids in torch.split(session.calibration_ids[2 * tokens :], tokens):
        if len(ids) == tokens:
            windows = Windows(ids, slopes.windows.context, slopes.windows.begin)
            teacher = Teacher.of(session.loaded.model, windows)
            parts.append(ScoredText("calibration", windows, teacher))
    return parts


def print_row(budget: str, name: str, *cells: str) -> None:
    """Print a line of the table."""
    print(f"{budget:<7} {name:<24}", *(f"{cell:>11}" for cell in cells), flush=True)


def compare(budget: str, comparison: Comparison, selection: ScoredText) -> None:
    """Print a row for each way to allocate a budget."""
    args, builder = comparison.args, comparison.session.builder
    additive = math.nan

    def row(name: str, found: Allocation) -> float:
        kl = divergence_of(found.plan, builder, selection)
        share = kl / (kl if math.isnan(additive) else additive)
        cells = f"{kl:.3g}", f"{share:.3f}", f"{found.tokens:,}", f"{found.seconds:.1f}"
        print_row(budget, name, *cells)
        return kl

    additive = row("additive allocation", comparison.additive())
    priced = comparison.by_prices()
    row("allocation by prices", priced)
    if RELAXED not in args.without:
        row("relaxed choice", comparison.relaxed())
    if EVOLUTION in args.without:
        return
    most = args.times * priced.tokens
    row("evolution from additive", comparison.evolved(most, uniform=False))
    try:
        row("evolution from uniform", comparison.evolved(most, uniform=True))
    except BudgetUnreachable as reason:
        print(f"{budget:<7} evolution from uniform: {reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, tokens=16_384)
    parser.add_argument("--budget", nargs="+", default=["4x", "6x", "8x"], help="budgets to try")
    parser.add_argument(
        "--without", nargs="+", choices=(EVOLUTION, RELAXED), default=(), help="rivals to leave out"
    )
    parser.add_argument(
        "--fit-all", action="store_true", help="fit every option, not only what plans take"
    )
    parser.add_argument(
        "--times", type=int, default=10, help="tokens of the evolution, of the prices' (10)"
    )
    parser.add_argument("--offspring", type=int, default=32, help="in a generation (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of the relaxed choice (%(default)s)")
    parser.add_argument(
        "--linear", action="store_true", help="take no curvature into the relaxed choice"
    )
    args = parser.parse_args()
    quieten_libraries()
    progress = ConsoleProgress()
    parts = ("calibration", "selection")
    session = open_session(request_of(args, progress=progress), parts=parts)
    session.cache = UnkeptPrices(session.cache.root)
    menu = session.menu(load_space(args.space), fit_all=args.fit_all)
    selection = session.scored_text("selection")
    print(
        f"{'budget':<7} {'allocation':<27} {'KL':>10} {'of additive':>12} {'tokens':>10}  seconds"
    )
    for budget in args.budget:
        comparison = Comparison(session, menu, budget, args, progress)
        compare(budget, comparison, selection)
        menu = comparison.proposer.menu


if __name__ == "__main__":
    main()
