from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.driver.proposing import swaps
from autocompress.driver.proposing.allocator import LayerChoice
from autocompress.driver.proposing.swaps import REACH, neighbours
from autocompress.methods.plan import Plan
from autocompress.methods.tensor_train import TensorTrain
from tests.calibration.menus import METHODS

OTHER = TensorTrain((2,), (8, 8), (8, 8))


@st.composite
def deciding(draw):
    """Four choices of up to five options, by rising bytes and falling scores, and a plan."""
    choices, plan = [], {}
    for index in range(4):
        count = draw(st.integers(1, 5))
        sizes = sorted(draw(st.sets(st.integers(1, 99), min_size=count, max_size=count)))
        scores = draw(st.sets(st.integers(0, 999), min_size=count, max_size=count))
        choices.append(
            LayerChoice(
                (f"layers.{index}",),
                METHODS[:count],
                tuple(sizes),
                tuple(float(score) for score in sorted(scores, reverse=True)),
            )
        )
        plan[f"layers.{index}"] = METHODS[draw(st.integers(0, count - 1))]
    return Plan.of(plan), choices, draw(st.integers(4, 400))


def levels(plan: Plan, choices: list[LayerChoice]) -> list[int]:
    return [choice.methods.index(plan[choice.layers[0]]) for choice in choices]


def totals(plan: Plan, choices: list[LayerChoice]) -> tuple[int, float]:
    places = levels(plan, choices)
    size = sum(choice.sizes[level] for choice, level in zip(choices, places, strict=True))
    return size, sum(choice.scores[level] for choice, level in zip(choices, places, strict=True))


@settings(deadline=None)
@given(deciding())
def test_every_plan_one_up_and_one_down_within_the_room_by_rising_score(case):
    plan, choices, room = case
    start = levels(plan, choices)
    wanted = []
    for places in itertools.product(*(range(len(choice.methods)) for choice in choices)):
        moves = [new - old for new, old in zip(places, start, strict=True) if new != old]
        other = {c.layers[0]: c.methods[level] for c, level in zip(choices, places, strict=True)}
        if len(moves) == 2 and min(moves) < 0 < max(moves) and max(map(abs, moves)) <= REACH:
            size, score = totals(Plan.of(other), choices)
            wanted += [(score, Plan.of(other))] if size <= room else []
    found = list(neighbours(plan, choices, room - totals(plan, choices)[0]))
    assert len(found) == len(set(found)) == len(wanted)
    assert set(found) == {other for _, other in wanted}
    scores = [totals(other, choices)[1] for other in found]
    assert scores == pytest.approx(sorted(scores))


def test_only_what_is_asked_for_is_ranked(monkeypatch):
    """Of thousands of matrices there are too many pairs to sort."""
    ranked = []
    argsort = swaps.np.argsort
    monkeypatch.setattr(
        swaps.np, "argsort", lambda *args, **kind: ranked.append(1) or argsort(*args, **kind)
    )
    choices = [
        LayerChoice((f"layers.{index}",), METHODS[:3], (10, 20, 30), (9.0 + index, 3.0, 0.0))
        for index in range(300)
    ]
    plan = Plan.of({choice.layers[0]: METHODS[1] for choice in choices})
    found = list(itertools.islice(neighbours(plan, choices, 0), 5))
    assert len(set(found)) == 5
    assert len(ranked) <= 6  # the best partner of a move may be of its own layer


def pair_of(first: str, *names: str) -> list[LayerChoice]:
    return [
        LayerChoice((first,), METHODS[:3], (10, 20, 30), (9.0, 3.0, 0.0)),
        LayerChoice(names, METHODS[:3], (20, 40, 60), (8.0, 4.0, 0.0)),
    ]


def test_the_layers_of_a_group_move_together():
    plan = Plan.of(dict.fromkeys("abc", METHODS[1]))
    found = list(neighbours(plan, pair_of("a", "b", "c"), 0))
    assert found == [Plan.of({"a": METHODS[2], "b": METHODS[0], "c": METHODS[0]})]
    assert len(list(neighbours(plan, pair_of("a", "b", "c"), 10))) == 2


def test_layers_without_a_level_stay_as_they_are():
    """One that takes what is not offered, and one that there is nothing to decide about."""
    choices = [*pair_of("a", "b"), LayerChoice(("c",), METHODS[:3], (10, 20, 30), (9.0, 3.0, 0.0))]
    plan = Plan.of({"a": METHODS[1], "b": METHODS[1], "c": OTHER, "d": METHODS[0]})
    found = list(neighbours(plan, choices, 1000))
    assert len(found) == 2
    assert all(other["c"] == OTHER and other["d"] == METHODS[0] for other in found)
    assert len(list(neighbours(plan, choices, 0))) == 1


def test_a_plan_at_the_smallest_of_everything_has_no_neighbours():
    plan = Plan.of(dict.fromkeys("ab", METHODS[0]))
    assert list(neighbours(plan, pair_of("a", "b"), 1000)) == []
