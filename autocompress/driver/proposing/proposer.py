"""What may be tried: the allocations, the uniform baselines, what knobs give, neighbours."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Self

from autocompress.calibration.latency_table import LatencyTable
from autocompress.calibration.menu import Menu
from autocompress.calibration.priced_menu import PricedMenu
from autocompress.driver.proposing.aiming import aim, bracket, sightings_of
from autocompress.driver.proposing.allocation import allocated_plan, bent_choices, scorer_of
from autocompress.driver.proposing.allocator import LayerChoice, smallest_bytes
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.end_to_end import TimedPlan, relate
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.shares import ALL, Planned, share_out
from autocompress.driver.proposing.swaps import neighbours
from autocompress.errors import BudgetUnreachable
from autocompress.judging.against_dense import within_costs
from autocompress.judging.dominance import ranking_loss
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.studies.relation import Relation
from autocompress.studies.stored_menu import StoredMenu
from autocompress.studies.study import (
    ALLOCATION,
    BASELINE,
    KNOBS,
    SWAPS,
    StudyRecord,
    TrialRecord,
)
from autocompress.surgery.inventory import Inventory
from autocompress.units import Limits

PREDICTED = Knobs(measured=0.0)
SWEEP = (1.0, 0.85, 0.7, 0.5, 1.25, 1.6, 2.2, 3.0)  # of the limit
# Of the dense model, most where the front bends.
SWEEP_WITHOUT_LIMIT = (0.5, 0.25, 0.16, 0.125, 0.1, 0.085, 0.07, 0.06, 0.05)
MOST_NEIGHBOURS = 4_000  # of a plan that are looked at; of 30 matrices there are fewer

MOST_SETTLINGS = 4  # allocations in a row that take options which are only predicted
# Of the score: a plan of fitted options is taken where no other is predicted to be better by more.
# What is chosen for a low prediction mostly turns out worse, so there is less to gain than it says.
NOT_WORTH_FITTING = 0.02
SLOWEST_TO_LEARN = 1.5  # times the dense model: how much slower a plan is, is of no interest
TRUST_IN_THE_TABLE = 0.7  # a token may be faster than it says by up to so much
NEARLY = 0.1  # of the way from the fastest plan to the dense model
STRIDE = 0.99  # of the smallest plan that keeps a quality: what is tried next
PRICE_OF_THE_FASTEST = 1e6  # nats for a millisecond: whatever loss increase it takes


def sweep(
    limits: Limits, dense_bytes: int, least_bytes: int, sought: float | None = None
) -> list[float]:
    """Bytes to allocate at, those of the budget first.

    Args:
        limits: of the search; under one of latency alone, as many bytes as it takes come first.
        dense_bytes: of the dense model.
        least_bytes: of the smallest plan.
        sought: bytes of the plan that is sought, where they are known otherwise.
    """
    if sought is None and limits.memory_bytes is not None:
        sought = min(limits.memory_bytes, dense_bytes)
    if sought is not None:
        sizes = [share * sought for share in SWEEP]
    else:
        whole = [] if limits.latency_ms is None else [1.0]
        sizes = [share * dense_bytes for share in (*whole, *SWEEP_WITHOUT_LIMIT)]
    return [size for size in sizes if least_bytes <= size <= dense_bytes] or [float(dense_bytes)]


# Fits some options of a menu, by layer name, until a time, and returns the menu with them.
Fit = Callable[[Menu, Mapping[str, Iterable[Method]], float], Menu]


@dataclass(frozen=True)
class Proposal:
    """A plan that is to become a trial."""

    phase: str
    label: str
    plan: Plan
    knobs: Knobs | None = None


class Proposer:
    """Makes plans out of a menu.

    Args:
        menu: options of every layer.
        inventory: the model's matrices.
        limits: what plans may cost.
        groups: layers that must take the same method.
        latencies: what each option takes of a token; unknown when left out.
        methods: those that the uniform baselines may use; any when empty.
        held: layers that take one method in every plan, uniform baselines too.
        fit: fits what plans take and is only predicted yet; without it predictions count.
    """

    def __init__(
        self,
        menu: Menu,
        inventory: Inventory,
        limits: Limits,
        groups: tuple[tuple[str, ...], ...] = (),
        latencies: LatencyTable | None = None,
        *,
        methods: tuple[str, ...] = (),
        held: Mapping[str, Method] | None = None,
        fit: Fit | None = None,
    ) -> None:
        self.held, self._fit = held, fit
        self.fit_until = math.inf  # of ``time.monotonic``; then predictions count
        self.menu, self.inventory, self.limits = menu, inventory, limits
        self.groups, self.latencies, self.methods = groups, latencies, methods
        self.priced = PricedMenu()
        self.relation: Relation | None = None
        self._proven_ms = -math.inf
        memory = limits.memory_bytes
        self.sought = None if memory is None else float(min(memory, inventory.dense_bytes))
        self.targets = sweep(limits, inventory.dense_bytes, self.least_bytes())

    @classmethod
    def of_stored(cls, stored: StoredMenu, limits: Limits) -> Self:
        """Make one from the menu of a study, without a table of latencies."""
        made = cls(stored.menu, stored.inventory, limits, stored.groups)
        made.priced = stored.priced
        return made

    @property
    def stored(self) -> StoredMenu:
        """What a study keeps of it."""
        return StoredMenu(self.menu, self.inventory, self.groups, self.priced)

    @property
    def most_bytes(self) -> float:
        """Bytes that the plan sought may take at most."""
        dense, limit = self.inventory.dense_bytes, self.limits.memory_bytes
        return float(dense if limit is None else min(limit, dense))

    def seek(self, size: float) -> None:
        """Make plans around so many bytes: where the smallest plan that keeps a quality may be."""
        self.sought = size
        least = self.least_bytes()
        self.targets = sweep(self.limits, self.inventory.dense_bytes, least, size)

    def learn_quality(self, study: StudyRecord) -> None:
        """Learn from trials how small a plan may be that keeps the quality, if that is a target.

        Plans with knobs are made a little smaller than the smallest that has kept it.
        """
        if not self.limits.asks_quality:
            return
        seen = sightings_of(study)
        if not seen:
            return
        self.sought = aim(seen, float(self.least_bytes()), self.most_bytes)
        _, kept = bracket(seen)
        if kept is not None:
            self.sought = max(min(self.sought, STRIDE * kept.bytes), float(self.least_bytes()))

    def learn_latency(self, trials: Iterable[TrialRecord], dense_ms: float) -> None:
        """Learn from trials how the table relates to what is measured end to end.

        What the best trial takes in the table that surely met the limit is allowed from then on,
        whatever the relation says. Much slower plans are left out of the relation: their spread
        says nothing of plans that are to be fast.

        Args:
            trials: each compared with the dense model next to it.
            dense_ms: end to end, of the dense model.
        """
        if self.latencies is None:
            return
        trials = list(trials)
        fast = [trial for trial in trials if self._surely_meets(trial)]
        best = min(fast, key=ranking_loss(fast), default=None)
        self._proven_ms = -math.inf if best is None else self.latencies.total(best.plan)
        timed = [
            TimedPlan(self.latencies.total(trial.plan), trial.selection.latency_ms, dense_ms)
            for trial in trials
            if trial.selection is not None
            and trial.selection.latency_ms is not None
            and trial.selection.latency_ms <= SLOWEST_TO_LEARN * dense_ms
        ]
        self.relation = relate(timed, self.latencies.dense_ms, dense_ms)

    def _surely_meets(self, trial: TrialRecord) -> bool:
        """Whether a trial meets the limits by more than the spread of its latency: not by luck."""
        measured, limit = trial.selection, self.limits.latency_ms
        if measured is None or limit is None or not within_costs(self.limits, trial):
            return False
        if measured.latency_ms is None or measured.latency_spread_ms is None:
            return False
        return measured.latency_ms + measured.latency_spread_ms <= limit

    def check_latency(self, dense_ms: float) -> None:
        """Make sure that the limit of latency is not out of reach, whatever trials may show.

        What is not in the matrices stays, so no plan takes a smaller share of the dense model's
        time than the matrices do by the table.

        Args:
            dense_ms: end to end, of the dense model.

        Raises:
            BudgetUnreachable: no plan within the limits can be as fast, by a wide margin.
        """
        if self.latencies is None or self.limits.latency_ms is None:
            return
        wanted = self.limits.latency_ms / dense_ms
        share = self.latencies.total(self.fastest(self.targets[0])) / self.latencies.dense_ms
        if wanted < TRUST_IN_THE_TABLE * share:
            raise BudgetUnreachable(
                "no plan within the limits is as fast as the latency limit",
                got=f"{self.limits.latency_ms:.4g} ms a token ({wanted:.2g}x)",
                wanted=f"at least {share:.2f}x, which the fastest forms take in the matrices alone",
                hint="Ask for a higher --latency, a larger --budget, or allow faster forms "
                "with --space.",
            )

    @property
    def room_ms(self) -> float | None:
        """Milliseconds that the matrices may take by the table; no limit when ``None``."""
        if self.relation is None or self.limits.latency_ms is None:
            return None
        return max(self.relation.table_limit(self.limits.latency_ms), self._proven_ms)

    def background(self, knobs: Knobs) -> Plan:
        """The plan to price options in: near the budget, or in the middle of the front."""
        middle = len(self.targets) // 2 if self.sought is None else 0
        return self.settled(knobs, self.targets[middle])

    def settled(self, knobs: Knobs, *sizes: float) -> Plan:
        """The plan of least score at the first of some sizes, when all that it takes is fitted.

        What plans take at the other sizes is fitted with it, so that all of it can be priced. Where
        plans of what is fitted are nearly as good at all sizes, nothing more is fitted.
        """
        for turn in range(MOST_SETTLINGS):
            plans = [self.allocated(knobs, size) for size in sizes]
            fitted = self._fitted_plans(knobs, sizes, plans) if turn else None
            if fitted is not None:
                return fitted[0]
            if not self.fit_plans(plans):
                return plans[0]
        return self.allocated(knobs, sizes[0])

    def _fitted_plans(
        self, knobs: Knobs, sizes: Sequence[float], plans: Sequence[Plan]
    ) -> list[Plan] | None:
        """Plans of fitted options alone, where they are nearly as good as some plans."""
        known, found = self.menu.fitted_alone(), []
        for size, plan in zip(sizes, plans, strict=True):
            try:
                fitted = self.allocated(knobs, size, known)
            except BudgetUnreachable:
                return None
            if self.score(fitted, knobs) > (1 + NOT_WORTH_FITTING) * self.score(plan, knobs):
                return None
            found.append(fitted)
        return None if self.menu.unfitted(_taken(found)) else found  # tied ones may be, in part

    def score(self, plan: Plan, knobs: Knobs) -> float:
        """Sum of the scores of a plan's options under knobs; not of those not on the menu."""
        scorer = scorer_of(self.menu, knobs, self.priced)
        return sum(
            scorer(layer, option)
            for layer in self.menu.layers
            if (option := layer.option(plan.get(layer.spec.name))) is not None
        )

    def fit_plans(self, plans: Iterable[Plan]) -> bool:
        """Fit what plans take and is only predicted yet; whether there was anything."""
        taken = _taken(plans)
        if self._fit is None or time.monotonic() >= self.fit_until:
            return False
        if not self.menu.unfitted(taken):
            return False
        self.menu = self._fit(self.menu, taken, self.fit_until)
        return True

    def planned(self, trials: int, planned: Planned = ALL) -> list[Callable[[], Proposal]]:
        """What makes the proposals that need no sampler, the allocations at the budget first.

        They are made one by one, as what trials have shown may change the later ones.

        Args:
            trials: of the study in all; see ``share_out``.
            planned: how many plans at most.
        """
        share = None if self.sought is None else self.sought / self.inventory.dense_bytes
        left = [m.spec.name for m in self.menu.layers if all(o.method == Keep() for o in m.options)]
        baselines = baseline_plans(
            self.inventory.layers,
            share,
            methods=self.methods,
            kept=left,
            held=self.held,
            target=self.inventory.target,
        )
        plans, sizes = share_out(
            trials, baselines, self.targets[1:], self.inventory, self.sought, planned
        )
        baseline = [partial(Proposal, BASELINE, label, plan) for label, plan in plans]
        first = partial(self.allocation, self.targets[0], PREDICTED)
        at_budget, *others = [
            partial(self.allocation, target, Knobs()) for target in (self.targets[0], *sizes)
        ]
        return [first, at_budget, *baseline, *others]

    def allocation(self, target: float, knobs: Knobs) -> Proposal:
        """The exact allocation at so many bytes."""
        ratio = f"{self.inventory.dense_bytes / target:.3g}x"
        label = f"allocated {ratio}" + (" on predictions" if knobs == PREDICTED else "")
        # Only what spends the whole budget teaches the sampler, which spends it too.
        at_limit = target == self.targets[0]
        return Proposal(ALLOCATION, label, self.settled(knobs, target), knobs if at_limit else None)

    def from_knobs(self, knobs: Knobs, target: float) -> Proposal:
        """What knobs make of so many bytes."""
        return Proposal(KNOBS, "searched", self.allocated(knobs, target), knobs)

    def target(self, front: Sequence[TrialRecord]) -> float:
        """Bytes to search at: the budget, or without one where the front has its widest step.

        Under a target of quality, where the smallest plan may be that keeps it.

        That is where one more member has most to add: between the two neighbours on the front that
        leave most room between them, halfway in the logarithm of the bytes.

        Args:
            front: the members that meet the limits, by bytes.
        """
        if self.limits.asks_quality and self.sought is not None:
            return self.sought
        if self.limits.memory_bytes is not None or len(front) < 2:
            return self.targets[0]
        loss = ranking_loss(front)
        steps = [
            (
                math.log(large.bytes / small.bytes) * (loss(small) - loss(large)),
                math.sqrt(small.bytes * large.bytes),
            )
            for small, large in pairwise(front)
        ]
        return max(max(steps)[1], float(self.least_bytes()))

    def swapped(self, trial: TrialRecord, known: Collection[str]) -> Proposal | None:
        """The best neighbour of a trial's plan that is not known yet, by hash."""
        limit = self.limits.memory_bytes
        spent = limit is not None and trial.bytes <= limit and not self.limits.asks_quality
        within = limit if limit is not None and spent else trial.bytes
        room = within - self.inventory.plan_bytes(trial.plan)
        # The knobs that led to a good plan are what the trials have shown of the scores.
        knobs = Knobs(**trial.params) if trial.params else Knobs()
        around = islice(neighbours(trial.plan, self._choices(knobs), room), MOST_NEIGHBOURS)
        new = (plan for plan in around if plan.hash not in known)
        plan = next((plan for plan in new if self._as_fast(plan, trial.plan)), None)
        return None if plan is None else Proposal(SWAPS, f"trial {trial.number} swapped", plan)

    def _as_fast(self, plan: Plan, other: Plan) -> bool:
        """Whether a plan is within the limit of latency by the table, or as fast as another."""
        if self.latencies is None or self.room_ms is None:
            return True
        return self.latencies.total(plan) <= max(self.room_ms, self.latencies.total(other))

    def allocated(self, knobs: Knobs, target_bytes: float, menu: Menu | None = None) -> Plan:
        """The plan of least score under knobs, within so many bytes and the limit of latency.

        Where the two cannot be met together by the table, which may be off, it is nearly the
        fastest: to be the very fastest costs any amount of loss increase.

        Args:
            knobs: how loss increases are bent.
            target_bytes: of the whole model.
            menu: options of every layer, in place of the proposer's.
        """
        menu = self.menu if menu is None else menu
        choices = bent_choices(menu, knobs, self.groups, self.priced, self.latencies)
        room = int(target_bytes) - self.inventory.rest_bytes
        price = self._price_ms(knobs, choices, room)
        room_ms = self.room_ms
        if room_ms is not None and self.latencies is not None:
            least = self.latencies.total(self.fastest(target_bytes))
            room_ms = max(room_ms, least + NEARLY * abs(self.latencies.dense_ms - least))
        return allocated_plan(menu, choices, room, room_ms, price_ms=price)

    def fastest(self, target_bytes: float) -> Plan:
        """The plan that takes least time by the table, within so many bytes."""
        room = int(target_bytes) - self.inventory.rest_bytes
        choices = self._choices(PREDICTED)
        return allocated_plan(self.menu, choices, room, price_ms=PRICE_OF_THE_FASTEST)

    def _price_ms(self, knobs: Knobs, choices: list[LayerChoice], room: int) -> float:
        """Score that a millisecond is worth, from what the whole model's latency is worth."""
        if not knobs.price or self.latencies is None:
            return 0.0
        plan = allocated_plan(self.menu, choices, room)
        score = sum(c.scores[c.methods.index(plan[c.layers[0]])] for c in choices)
        return knobs.price * score / self.latencies.dense_ms

    def _choices(self, knobs: Knobs) -> list[LayerChoice]:
        return bent_choices(self.menu, knobs, self.groups, self.priced, self.latencies)

    def least_bytes(self) -> int:
        """Bytes of the smallest model that the menu allows."""
        return self.inventory.rest_bytes + smallest_bytes(self._choices(PREDICTED))


def _taken(plans: Iterable[Plan]) -> dict[str, list[Method]]:
    """What some plans take, by layer name."""
    taken: dict[str, list[Method]] = defaultdict(list)
    for plan in plans:
        for name, method in plan.items():
            taken[name].append(method)
    return taken
