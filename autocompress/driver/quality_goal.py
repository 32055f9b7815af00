"""The smallest plan that keeps a quality, found by some exact allocations and no search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autocompress.driver.proposing.aiming import Sighting, aim, approach, bracket
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.proposing.reach import check_reachable
from autocompress.driver.rounds import price_menu
from autocompress.errors import BudgetUnreachable, ModelError
from autocompress.evaluation.evaluator import Evaluator, ScoredText
from autocompress.evaluation.latency import Latency
from autocompress.evaluation.scoring import Score
from autocompress.judging.targets import (
    LossOnText,
    Verdict,
    describe_limits,
    excess_of,
    judge_targets,
)
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.progress import Progress
from autocompress.records import Skipped
from autocompress.requests.verbs import CompressRequest
from autocompress.session.left_dense import refused_of, within_reach
from autocompress.session.session import Session, grouped_names
from autocompress.space.space import Space
from autocompress.units import Budget, Limits, format_bytes

# Sizes to measure: first to know where options are worth measuring, by predictions alone; then to
# find the smallest plan by what the options were measured at, anew after each that the report text
# does not confirm.
COARSE_STEPS, COARSE_TOLERANCE = 5, 1.2
FINE_STEPS, FINE_TOLERANCE = 6, 1.01
CONFIRMATIONS = 3
_UNTIMED = Latency(math.nan, math.nan)  # nothing here is chosen by latency


@dataclass(frozen=True)
class Chosen:
    """A plan, and the targets it was chosen by.

    Attributes:
        plan: the plan.
        limits: the targets.
        losses: what it lost on the texts that it was chosen on.
        refused: matrices that the target keeps dense, with the reason.
    """

    plan: Plan
    limits: Limits = Limits(None, None)  # noqa: RUF009  # frozen
    losses: tuple[LossOnText, ...] = ()
    refused: tuple[Skipped, ...] = ()


Confirm = Callable[[Plan], LossOnText]
"""Measures a plan on the report text."""


@dataclass(frozen=True)
class QualityGoal:
    """A quality, kept by the smallest of some exact allocations.

    Attributes:
        label: says what it is, for the report.
        budget: the quality, and the most bytes if they are limited as well.
        space: the options to choose from.
        request: how to choose.
        seed: of the calibration's labels, where nobody says another.
    """

    label: str
    budget: Budget
    space: Space
    request: CompressRequest
    seed: int = 0

    def penalties_of(self, plan: Plan, progress: Progress) -> tuple[Penalty, ...]:  # noqa: ARG002 - a quality asks nothing of ranks
        """Nothing."""
        return ()

    def choose(self, session: Session, confirm: Confirm) -> Chosen:
        """Allocate at sizes nearer and nearer to the smallest that keeps the quality.

        Each plan is measured on the selection text. The smallest that keeps the quality there and,
        measured after that, on the report text is taken.

        Raises:
            BudgetUnreachable: none does; the message says what the nearest plan loses.
            ModelError: a cosine is wanted of a model that names no head.
        """
        inventory = session.workbench.inventory
        self.space.check(inventory.layers)
        limits = self.budget.limits(inventory.dense_bytes, 1.0)
        space = within_reach(session, self.space, self.request.unreached)
        check_reachable(space, inventory, limits.memory_bytes)
        level = self.request.level
        menu = session.menu(space, samples=level.samples_for_a_plan, fit_all=self.request.fit_all)
        groups = grouped_names(space, inventory)
        with session.progress.task("Measuring the dense model"):
            text = session.scored_text("selection")
        tries = _Tries(session, text, limits, confirm)
        check_cosine(limits, tries.evaluator, text)
        limit = Limits(inventory.dense_bytes, None)
        proposer = Proposer(menu, inventory, limit, groups, fit=session.fit_taken)
        room = float(proposer.least_bytes()), proposer.most_bytes
        if limits.memory_bytes is not None:
            room = room[0], float(limits.memory_bytes)
        tries.near(proposer, PREDICTED, room, COARSE_STEPS, COARSE_TOLERANCE)
        knobs = PREDICTED
        if session.tokens.pricing:
            at = int(aim(tries.seen, *room))
            limit, knobs = Limits(at, None), Knobs()
            proposer = Proposer(proposer.menu, inventory, limit, groups, fit=session.fit_taken)
            texts = session.pricing_texts
            price_menu(proposer, session.builder, texts, session.progress, rounds=level.rounds)
        for _ in range(CONFIRMATIONS):
            tries.near(proposer, knobs, room, FINE_STEPS, FINE_TOLERANCE)
            _, kept = bracket(tries.seen)
            if kept is None or tries.confirmed(kept.plan):
                break
        return replace(tries.smallest(), refused=refused_of(space, inventory.layers))


class _Tries:
    """Plans that were measured on the selection text, and some of them on the report text.

    Attributes:
        evaluator: measures them.
    """

    def __init__(
        self, session: Session, text: ScoredText, limits: Limits, confirm: Confirm
    ) -> None:
        self.evaluator = Evaluator(session.workbench, session.builder.build, _UNTIMED)
        self._session, self._text, self._limits, self._confirm = session, text, limits, confirm
        self._plans: dict[str, Plan] = {}
        self._selection: dict[str, LossOnText] = {}
        self._report: dict[str, LossOnText] = {}
        self._gauge = session.objective.gauge

    @property
    def seen(self) -> list[Sighting]:
        """All plans, with the larger of what they lost on either text.

        A plan that was not measured on the report text is taken to lose as much more there as the
        one did that did worst.
        """
        harder = max((self._harder(key) for key in self._report), default=1.0)
        found = []
        for key, plan in self._plans.items():
            used = self._selection[key].used(self._limits)
            guess = used * harder if used > 0 else used
            known = self._report[key].used(self._limits) if key in self._report else guess
            found.append(Sighting(self._bytes(plan), max(used, known), plan))
        return found

    def near(
        self,
        proposer: Proposer,
        knobs: Knobs,
        room: tuple[float, float],
        steps: int,
        tolerance: float,
    ) -> None:
        """Try sizes nearer and nearer to where the quality is just kept."""

        def try_size(size: float) -> Sighting:
            plan = proposer.settled(knobs, size)
            self._measure(plan)
            return next(one for one in self.seen if one.plan == plan)

        approach(try_size, *room, steps=steps, tolerance=tolerance, seen=self.seen)

    def confirmed(self, plan: Plan) -> bool:
        """Whether a plan keeps the quality on the report text as well."""
        if plan.hash not in self._report:
            self._report[plan.hash] = self._confirm(plan)
        return self._report[plan.hash].used(self._limits) <= 1

    def smallest(self) -> Chosen:
        """The smallest plan that keeps the quality on both texts.

        Raises:
            BudgetUnreachable: none does.
        """
        by_size = sorted(self._plans.values(), key=self._bytes)
        for plan in by_size:
            kept = self._selection[plan.hash].used(self._limits) <= 1
            if kept and self.confirmed(plan):
                return Chosen(plan, self._limits, (self._selection[plan.hash],))
        near = min(by_size, key=lambda plan: excess_of(self._verdicts(plan)))
        raise self._missed(near)

    def _measure(self, plan: Plan) -> None:
        if plan.hash in self._plans:
            return
        loss = loss_against_dense(self.evaluator.score(plan, self._text), self._text)
        self._plans[plan.hash], self._selection[plan.hash] = plan, loss
        size, dense_bytes = self._bytes(plan), self._session.workbench.inventory.dense_bytes
        cosine = "" if loss.cosine is None else f", cosine {loss.cosine:.4f}"
        self._session.progress.note(
            f"{format_bytes(size):>8} {dense_bytes / size:5.2f}x: "
            f"{self._gauge.loss} {loss.increase:+.4f} {self._gauge.unit}{cosine}"
        )

    def _harder(self, key: str) -> float:
        selection, report = (
            losses[key].used(self._limits) for losses in (self._selection, self._report)
        )
        return report / selection if selection > 0 else 1.0

    def _bytes(self, plan: Plan) -> int:
        return self._session.workbench.inventory.plan_bytes(plan)

    def _verdicts(self, plan: Plan) -> Sequence[Verdict]:
        losses = [self._selection[plan.hash]]
        losses += [self._report[plan.hash]] if plan.hash in self._report else []
        return judge_targets(self._limits, self._bytes(plan), None, losses, self._gauge)

    def _missed(self, near: Plan) -> BudgetUnreachable:
        dense_bytes, size = self._session.workbench.inventory.dense_bytes, self._bytes(near)
        missed = "; ".join(str(each) for each in self._verdicts(near) if not each.met)
        larger = ", or a larger --budget" if self._limits.memory_bytes else ""
        return BudgetUnreachable(
            "no plan keeps the quality",
            wanted=describe_limits(self._limits, dense_bytes, self._gauge),
            hint=f"The nearest takes {format_bytes(size)} ({dense_bytes / size:.3g}x): {missed}. "
            f"Ask for a lower --quality{larger}.",
        )


def check_cosine(limits: Limits, evaluator: Evaluator, text: ScoredText) -> None:
    """Make sure that a cosine can be measured where one is wanted.

    Raises:
        ModelError: the model names no head.
    """
    if limits.cosine is None:
        return
    first = ScoredText(text.name, text.windows.part(0, 1), text.teacher)
    if math.isnan(evaluator.score(Plan(()), first).cosine):
        raise ModelError(
            "the cosine to the dense model's last hidden states cannot be measured",
            got=f"a {type(evaluator.workbench.model).__name__}, which names no head",
            wanted="a quality in per cent (5%) or nats (0.02)",
        )


def loss_against_dense(scored: Score, text: ScoredText) -> LossOnText:
    """What a model lost on a text."""
    cosine = scored.cosine if math.isfinite(scored.cosine) else None
    return LossOnText(text.name, scored.loss - text.teacher.score.loss, cosine)
