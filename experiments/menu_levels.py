"""What the baselines share: a plan as one level of each matrix's menu, and what plans cost."""

from __future__ import annotations

import argparse
import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from own_search import request_of
from search_curves import Point

from autocompress.calibration.menu import Menu
from autocompress.driver.proposing.allocator import allocate, choices_of
from autocompress.errors import BudgetUnreachable
from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.methods.plan import Plan
from autocompress.session.session import Session, open_session
from autocompress.space.space_file import load_space
from autocompress.store import content_key
from autocompress.surgery.inventory import Inventory
from autocompress.units import Budget, format_bytes

Levels = tuple[int, ...]
"""For each matrix the number of an option: 0 is the smallest, higher ones loss increase less."""


class LevelMenu:
    """The undominated options of every matrix as levels, by rising bytes and falling loss increase.

    Args:
        menu: the options of all matrices.
        inventory: the matrices, and what else the model stores.
    """

    def __init__(self, menu: Menu, inventory: Inventory) -> None:
        self.menu, self.inventory = menu, inventory
        self.options = tuple(layer.undominated for layer in menu.layers)
        self.names = tuple(layer.spec.name for layer in menu.layers)

    @cached_property
    def key(self) -> str:
        """Hash of all options and of their loss increases, rounded to what is alike everywhere."""
        options = [
            [(o.method.to_dict(), f"{o.loss_increase:.2g}") for o in os] for os in self.options
        ]
        return content_key(self.names, options)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of levels of each matrix."""
        return tuple(len(options) for options in self.options)

    def bytes(self, levels: Levels) -> int:
        """Stored bytes of the whole model, as the project counts them."""
        chosen = zip(self.options, levels, strict=True)
        return self.inventory.rest_bytes + sum(options[level].bytes for options, level in chosen)

    def plan(self, levels: Levels) -> Plan:
        """The plan that the levels stand for."""
        chosen = zip(self.names, self.options, levels, strict=True)
        return Plan.of({name: options[level].method for name, options, level in chosen})

    def within(self, caps: Sequence[float]) -> Levels:
        """For each matrix the highest level of at most so many bytes, or the lowest there is."""
        return tuple(
            max((i for i, option in enumerate(options) if option.bytes <= cap), default=0)
            for options, cap in zip(self.options, caps, strict=True)
        )

    def matching(self, plan: Plan) -> Levels:
        """A plan on this menu: for each matrix the best option that takes no more bytes."""
        return self.within([plan[spec.name].cost(spec) for spec in self.inventory.layers])

    def uniform(self, limit: int) -> Levels:
        """The same share of its dense bytes for every matrix, as large as the limit allows.

        Raises:
            BudgetUnreachable: even the lowest levels take more.
        """
        dense = [options[-1].bytes for options in self.options]
        shares = sorted(
            {o.bytes / whole for os, whole in zip(self.options, dense, strict=True) for o in os}
        )

        def at(share: float) -> Levels:
            return self.within([share * whole * (1 + 1e-12) for whole in dense])

        fitting = bisect_right(shares, limit, key=lambda share: self.bytes(at(share)))
        if not fitting:
            raise BudgetUnreachable("no uniform plan is that small", got=format_bytes(limit))
        return at(shares[fitting - 1])

    def allocated(self, limit: int) -> Levels:
        """The additive allocation: least sum of predicted loss increases within the limit.

        Raises:
            BudgetUnreachable: even the lowest levels take more.
        """
        choices = choices_of(self.menu, lambda _layer, option: option.loss_increase)
        plan = allocate(choices, limit - self.inventory.rest_bytes)
        return tuple(
            next(i for i, option in enumerate(options) if option.method == plan[name])
            for name, options in zip(self.names, self.options, strict=True)
        )


class Meter:
    """Measures levels on a text, without latency."""

    def __init__(self, session: Session, menu: LevelMenu, text: ScoredText) -> None:
        self.menu, self.text = menu, text
        self.evaluator = Evaluator(session.workbench, session.builder.build)

    def __call__(self, levels: Levels) -> Point:
        """Measure."""
        measured = self.evaluator.measure(self.menu.plan(levels), self.text, latency=False)
        dense = self.text.teacher.score.figure
        return Point(measured.bytes, math.log(measured.figure / dense), measured.divergence)


def open_menu(
    args: argparse.Namespace, selection_tokens: int | None = None
) -> tuple[Session, LevelMenu]:
    """The model that the arguments name, with the options of the space."""
    session = open_session(request_of(args, selection_tokens=selection_tokens or args.tokens))
    print("Fitting the options of every matrix, or reading them from the cache ...", flush=True)
    menu = session.menu(load_space(args.space), fit_all=True)
    return session, LevelMenu(menu, session.workbench.inventory)


def limit_of(budget: str | None, menu: LevelMenu) -> int | None:
    """Most bytes that a budget allows."""
    return Budget.parse(budget).limits(menu.inventory.dense_bytes, 1.0).memory_bytes
