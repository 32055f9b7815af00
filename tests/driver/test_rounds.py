from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import pytest

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.priced_menu import PricedMenu
from autocompress.driver import rounds
from autocompress.driver.prices import Priced, Slope
from autocompress.driver.proposing.knobs import Knobs
from autocompress.driver.proposing.proposer import PREDICTED, Proposer
from autocompress.driver.rounds import price_menu
from autocompress.evaluation.evaluator import PricingTexts, ScoredText
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Notes, Silent
from autocompress.units import Limits
from tests.driver.fake_search import DENSE_BYTES, INVENTORY, MENU, SPECS

NAMES = [spec.name for spec in SPECS]
WRONG = (30.0, 3.0, 0.5, 0.2)  # the layer predicted to be the most sensitive hardly is
LOSS_INCREASE = {
    (layer.spec.name, option.method): option.loss_increase
    for layer in MENU.layers
    for option in layer.options
}


class World:
    """Damages are the predicted ones times a factor for each layer; plans are priced exactly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...]) -> None:
        self.factors = dict(zip(NAMES, factors, strict=True))
        self.priced: list[Plan] = []
        monkeypatch.setattr(rounds, "price_options", self.price)
        monkeypatch.setattr(rounds, "divergence_of", lambda plan, *_: self.divergence(plan))

    def divergence(self, plan: Plan) -> float:
        return sum(
            0.0 if method == Keep() else self.factors[name] * LOSS_INCREASE[name, method]
            for name, method in plan.items()
        )

    def price(self, plan: Plan, *_rest: object) -> Priced:
        self.priced.append(plan)
        return Priced(plan, slopes_of(self.factors), self.divergence(plan))


def slopes_of(factors: Mapping[str, float]) -> dict[str, list[Slope]]:
    """Slopes that multiply loss increases by a factor for each layer, without chance."""
    return {
        layer.spec.name: [
            Slope(more, more, option.loss_increase)
            for option in layer.undominated
            if option.loss_increase > 0
            for more in [(factors[layer.spec.name] - 1) * option.loss_increase]
        ]
        for layer in MENU.layers
    }


def run(
    notes: Silent = SILENT, deadline: float = math.inf, passes: int = rounds.ROUNDS
) -> tuple[Plan, Proposer]:
    proposer = Proposer(MENU, INVENTORY, Limits(int(DENSE_BYTES / 6), None))
    text = ScoredText("calibration", cast(Windows, None), cast(Teacher, None))
    texts = PricingTexts(text, text)
    best = price_menu(proposer, cast(LayerBuilder, None), texts, notes, deadline, rounds=passes)
    return best, proposer


def test_predictions_that_are_right_take_two_rounds_at_most(monkeypatch):
    world = World(monkeypatch, (1.0,) * 4)
    best, proposer = run()
    assert best == proposer.background(PREDICTED) == proposer.background(Knobs())
    assert len(world.priced) <= 2


def test_where_prices_pay_the_plan_that_they_lead_to_is_taken(monkeypatch):
    world = World(monkeypatch, WRONG)
    best, proposer = run()
    first, *later = world.priced
    assert first == proposer.background(PREDICTED)
    assert later
    assert world.divergence(best) <= min(map(world.divergence, world.priced))
    assert world.divergence(best) < 0.9 * world.divergence(first)
    assert proposer.priced.by_layer.keys() == set(NAMES)


def test_there_are_so_many_rounds_at_most(monkeypatch):
    world = World(monkeypatch, WRONG)
    seen = (2.0**-number for number in range(9))  # each plan is better than the last
    monkeypatch.setattr(world, "divergence", lambda _plan: next(seen))
    run()
    assert len(world.priced) == rounds.ROUNDS


def test_predictions_are_kept_where_prices_mislead(monkeypatch):
    world = World(monkeypatch, (1.0,) * 4)
    misleading = slopes_of({n: 8.0 if i % 2 else 0.2 for i, n in enumerate(NAMES)})
    tried: list[Plan] = []

    def divergence(plan: Plan, *_rest: object) -> float:
        tried.append(plan)
        return world.divergence(plan)

    monkeypatch.setattr(rounds, "price_options", lambda p, *_: Priced(p, misleading, 0.1))
    monkeypatch.setattr(rounds, "divergence_of", divergence)
    best, proposer = run()
    assert best == proposer.background(PREDICTED) == tried[0]
    assert len(tried) > 1
    assert proposer.priced == PricedMenu()


def test_a_part_of_the_slopes_is_taken_where_all_of_them_mislead(monkeypatch):
    """The plan by whole prices is said to be bad; that by a part of them counts as it is."""
    world = World(monkeypatch, WRONG)
    whole = Priced(Plan(()), slopes_of(world.factors), 0.0).menu()
    proposer = Proposer(MENU, INVENTORY, Limits(int(DENSE_BYTES / 6), None))
    proposer.priced = whole
    bad = proposer.background(Knobs())
    honest = world.divergence
    monkeypatch.setattr(world, "divergence", lambda p: 9e9 if p == bad else honest(p))
    best, after = run(passes=1)
    assert after.priced == Priced(Plan(()), slopes_of(world.factors), 0.0).menu(rounds.STEPS[1])
    assert honest(best) < honest(world.priced[0])


def test_a_better_plan_of_the_last_round_is_taken(monkeypatch):
    world = World(monkeypatch, WRONG)
    best, proposer = run(passes=1)
    (first,) = world.priced
    assert best == proposer.background(Knobs()) != first
    assert world.divergence(best) < world.divergence(first)


def test_a_plan_without_numbers_is_the_worst(monkeypatch):
    """No gain is seen over it, and predictions stay."""
    monkeypatch.setattr(rounds, "price_options", lambda plan, *_: Priced(plan, {}, math.inf))
    best, proposer = run()
    assert best == proposer.background(PREDICTED)
    assert not proposer.priced.by_layer


def test_a_plan_that_loses_nothing_is_the_best(monkeypatch):
    World(monkeypatch, (0.0,) * 4)
    best, proposer = run()
    assert best == proposer.background(PREDICTED)


@pytest.mark.parametrize("passes", [0, 1])
def test_no_round_is_begun_after_the_deadline(monkeypatch, passes):
    world, notes = World(monkeypatch, WRONG), Notes()
    monkeypatch.setattr(rounds.time, "monotonic", lambda: float(len(world.priced)))
    best, proposer = run(notes, deadline=passes)
    assert len(world.priced) == passes
    assert ["time" in note for note in notes.said] == [True]
    assert bool(proposer.priced.by_layer) == bool(passes)
    assert set(best) == set(NAMES)
