from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from autocompress.calibration.cache import Cache
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.search import rounds
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.knobs import Knobs
from autocompress.search.measured_menu import MeasuredMenu, Swap, measure_swaps
from autocompress.search.proposer import PREDICTED, Proposer
from autocompress.search.rounds import measure_menu
from autocompress.units import Limits
from tests.search.fake_search import DENSE_BYTES, INVENTORY, MENU, SPECS
from tests.search.test_measured_menu import address, scored_text

NAMES = [spec.name for spec in SPECS]
DAMAGE = {
    (layer.spec.name, option.method): option.damage
    for layer in MENU.layers
    for option in layer.options
}


class World:
    """Damages are the predicted ones times a factor for each layer."""

    def __init__(self, factors: tuple[float, ...]) -> None:
        self.factors = factors
        self.scored: list[Plan] = []

    def score(self, plan: Plan, text: ScoredText) -> Any:
        self.scored.append(plan)
        costs = [
            0.0 if method == Keep() else factor * DAMAGE[name, method]
            for factor, (name, method) in zip(self.factors, plan.items(), strict=True)
        ]
        return SimpleNamespace(kl=sum(costs))


@pytest.fixture
def backgrounds(monkeypatch):
    """The plans that the menu is measured in, one for each round."""
    seen: list[Plan] = []

    def remembered(background, *rest):
        seen.append(background.plan)
        return measure_swaps(background, *rest)

    monkeypatch.setattr(rounds, "measure_swaps", remembered)
    return seen


def run(world: World, tmp_path, ratio: float = 6.0) -> tuple[Plan, Proposer]:
    proposer = Proposer(MENU, INVENTORY, Limits(int(DENSE_BYTES / ratio), None))
    evaluator = cast(Evaluator, world)
    cache = Cache(tmp_path / "cache")
    return measure_menu(proposer, evaluator, scored_text(), cache, address), proposer


def test_predictions_that_are_right_are_measured_in_one_round(tmp_path, backgrounds):
    best, proposer = run(World((1.0,) * 4), tmp_path)
    assert backgrounds == [proposer.background(PREDICTED)]
    assert best == proposer.background(PREDICTED) == proposer.background(Knobs())


def test_where_the_first_round_pays_there_is_another_around_its_plan(tmp_path, backgrounds):
    """The layer that is predicted to be the most sensitive hardly is, and the other way round."""
    world = World((30.0, 3.0, 0.5, 0.2))
    best, proposer = run(world, tmp_path)
    assert len(backgrounds) > 1
    assert backgrounds[0] == proposer.background(PREDICTED)
    assert len(set(backgrounds)) == len(backgrounds)
    divergences = [world.score(plan, scored_text()).kl for plan in backgrounds]
    assert divergences[1] < 0.9 * divergences[0]
    assert world.score(best, scored_text()).kl <= min(divergences)
    assert proposer.measured.swaps.keys() == set(NAMES)


def test_there_are_so_many_rounds_at_most(tmp_path, backgrounds, monkeypatch):
    monkeypatch.setattr(rounds, "LEAST_GAIN", -1.0)  # whatever comes of them
    run(World((30.0, 3.0, 0.5, 0.2)), tmp_path)
    assert len(backgrounds) == rounds.ROUNDS


def test_the_best_plan_is_kept_where_measuring_misleads(tmp_path, monkeypatch):
    wrong = MeasuredMenu({n: (Swap(1.0, 8.0 if i % 2 else 0.2),) for i, n in enumerate(NAMES)})
    monkeypatch.setattr(rounds, "measure_swaps", lambda *_: wrong)
    best, proposer = run(World((1.0,) * 4), tmp_path)
    assert proposer.background(Knobs()) != proposer.background(PREDICTED)
    assert best == proposer.background(PREDICTED)
