from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autocompress.calibration.cache import Cache
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Silent
from autocompress.search import rounds
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.knobs import Knobs
from autocompress.search.measured_menu import MeasuredMenu, Swap, measure_swaps, most_telling
from autocompress.search.proposer import PREDICTED, Proposer
from autocompress.search.rounds import measure_menu
from autocompress.units import Limits
from tests.notes import Notes
from tests.search.fake_search import DENSE_BYTES, INVENTORY, MENU, METHODS, SPECS
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


def run(
    world: World, tmp_path, ratio: float = 6.0, notes: Silent = SILENT, deadline: float = math.inf
) -> tuple[Plan, Proposer]:
    proposer = Proposer(MENU, INVENTORY, Limits(int(DENSE_BYTES / ratio), None))
    evaluator = cast(Evaluator, world)
    cache = Cache(tmp_path / "cache")
    best = measure_menu(proposer, evaluator, scored_text(), cache, address, notes, deadline)
    return best, proposer


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


def test_of_very_many_matrices_some_are_measured_and_that_is_said(tmp_path, monkeypatch):
    notes = Notes()
    run(World((1.0,) * 4), tmp_path / "all", notes=notes)
    assert notes.said == []
    monkeypatch.setattr(rounds, "most_telling", partial(most_telling, most=2))
    _, proposer = run(World((1.0,) * 4), tmp_path / "some", notes=notes)
    assert len(proposer.measured.swaps) == 2
    (note,) = notes.said
    assert "2 matrices of 4" in note


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.9])
def test_time_that_is_up_keeps_what_was_measured(tmp_path, monkeypatch, share):
    """In the first round that is some of it; in a later one, all of the round before."""
    factors = (30.0, 3.0, 0.5, 0.2)
    whole, first = World(factors), World(factors)
    run(whole, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "ROUNDS", 1)
        _, after_one = run(first, tmp_path / "first")
    assert len(first.scored) < 0.6 * len(whole.scored)

    world, notes = World(factors), Notes()
    monkeypatch.setattr(rounds.time, "monotonic", lambda: float(len(world.scored)))
    deadline = share * len(whole.scored)
    best, proposer = run(world, tmp_path / "cut", notes=notes, deadline=deadline)
    assert len(world.scored) <= deadline + len(METHODS)  # the layer that was begun is finished
    assert ["time" in note for note in notes.said] == [True]
    found = proposer.measured.swaps
    if deadline > len(first.scored):
        assert found == after_one.measured.swaps
    else:
        assert len(found) < len(NAMES)
        assert bool(found) == bool(share)
    assert set(best) == set(NAMES)
