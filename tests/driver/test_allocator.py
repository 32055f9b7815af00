from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.driver.proposing import allocator
from autocompress.driver.proposing.allocator import (
    RELATIVE_GAP,
    SOLVER_TOLERANCE,
    allocate,
    choices_of,
    in_layer_order,
    smallest_bytes,
)
from autocompress.errors import BudgetUnreachable
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from tests.calibration.menus import layer_spec, menu_of, total


def loss_increase_of(_layer: LayerMenu, option: Option) -> float:
    return option.loss_increase


def cheapest_by_brute_force(menu: Menu, limit: float) -> float:
    """Least loss increase of all combinations that fit."""
    combinations = itertools.product(*(layer.options for layer in menu.layers))
    return min(
        sum(o.loss_increase for o in chosen)
        for chosen in combinations
        if sum(o.file_bytes for o in chosen) <= limit
    )


OPTION = st.tuples(st.integers(1, 2_000_000), st.floats(-8, 1).map(lambda power: 10.0**power))
LAYER = st.lists(OPTION, min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(st.lists(LAYER, min_size=1, max_size=4), st.floats(0, 1))
def test_the_allocation_is_as_good_as_brute_force(layers, position):
    menu = menu_of(*layers)
    choices = choices_of(menu, loss_increase_of)
    least = smallest_bytes(choices)
    most = sum(max(size for size, _ in layer) for layer in layers)
    limit = round(least + position * (most - least))
    size, loss_increase = total(menu, dict(allocate(choices, limit)))
    assert size <= limit
    # The solver's tolerance may leave a few bytes in a million unused.
    best = cheapest_by_brute_force(menu, max(limit * (1 - 2 * SOLVER_TOLERANCE), least))
    assert loss_increase <= best * (1 + RELATIVE_GAP) + 1e-12


@settings(deadline=None, max_examples=20)
@given(st.lists(LAYER, min_size=2, max_size=4))
def test_at_the_smallest_size_there_is_a_plan_and_below_there_is_none(layers):
    menu = menu_of(*layers)
    choices = choices_of(menu, loss_increase_of)
    least = smallest_bytes(choices)
    assert least == sum(min(size for size, _ in layer) for layer in layers)
    size, _ = total(menu, dict(allocate(choices, least)))
    assert size == least
    with pytest.raises(BudgetUnreachable, match="at least"):
        allocate(choices, least - 1)


def test_more_room_never_does_more_loss_increase():
    menu = menu_of(
        *[[(100 + 7 * i, 1.0 / (i + 1)), (250 + 11 * i, 0.1 * i), (900, 0.0)] for i in range(4)]
    )
    choices = choices_of(menu, loss_increase_of)
    loss_increases = [
        total(menu, dict(allocate(choices, limit)))[1]
        for limit in range(smallest_bytes(choices), 3700, 50)
    ]
    assert loss_increases == sorted(loss_increases, reverse=True)
    assert loss_increases[0] > loss_increases[-1] == 0.0


def test_an_allocation_without_any_loss_increase_is_possible():
    menu = menu_of([(10, 0.0), (20, 0.0)], [(10, 0.0)])
    assert total(menu, dict(allocate(choices_of(menu, loss_increase_of), 1000))) == (20, 0.0)


def test_the_score_decides_not_the_loss_increase():
    menu = menu_of([(10, 5.0), (20, 1.0)], [(10, 5.0), (20, 1.0)])
    prefers_first = choices_of(
        menu, lambda layer, o: o.loss_increase * (100 if layer.spec.depth == 0 else 1)
    )
    assert allocate(prefers_first, 30)["layers.0"] == Quantize(3)
    assert allocate(prefers_first, 30)["layers.1"] == Quantize(2)


def test_groups_take_one_method_that_all_members_offer():
    # Apart, the first would take 3 bits and the second 2; tied they agree on 2 or 4 bits.
    first = LayerMenu(
        layer_spec(0), tuple(_option(bits, 10 * bits, 1.0 / bits) for bits in (2, 3, 4))
    )
    second = LayerMenu(
        layer_spec(1), tuple(_option(bits, 10 * bits, 0.1 / bits) for bits in (2, 4))
    )
    third = LayerMenu(layer_spec(2), (Option(Keep(), 100, 100, 0.0, 1.0), _option(2, 20, 9.0)))
    menu = Menu((first, third, second))
    free = allocate(choices_of(menu, loss_increase_of), 150)
    tied = choices_of(menu, loss_increase_of, [("layers.0", "layers.1")])
    assert (free["layers.0"], free["layers.1"]) == (Quantize(3), Quantize(2))
    assert [choice.layers for choice in tied] == [("layers.0", "layers.1"), ("layers.2",)]
    for limit, method in ((150, Quantize(2)), (180, Quantize(4))):
        plan = allocate(tied, limit)
        assert plan["layers.0"] == plan["layers.1"] == method
        assert plan["layers.2"] == Keep()
    assert set(tied[0].methods) == {Quantize(2), Quantize(4)}
    assert tied[0].sizes == (40, 80)


def test_a_group_is_found_from_any_of_its_members():
    menu = menu_of(*[[(10, 1.0), (20, 0.5)]] * 4)
    choices = choices_of(menu, loss_increase_of, [("layers.3", "layers.1")])
    assert sorted(name for choice in choices for name in choice.layers) == [
        f"layers.{i}" for i in range(4)
    ]
    assert sum(len(choice.layers) == 2 for choice in choices) == 1


def test_dominated_options_are_not_offered_to_the_solver():
    menu = menu_of([(10, 1.0), (20, 1.0), (30, 2.0), (40, 0.5), (40, 0.4)])
    (choice,) = choices_of(menu, loss_increase_of)
    assert (choice.sizes, choice.scores) == ((10, 40), (1.0, 0.4))


def test_layers_are_put_in_the_order_of_the_model():
    plan = Plan.of({"b": Keep(), "a": Quantize(4)})
    assert list(in_layer_order(plan, ["a", "missing", "b"])) == ["a", "b"]


def _option(bits: int, size: int, loss_increase: float) -> Option:
    return Option(Quantize(bits), size, size, loss_increase, 1.0)


def test_what_the_solver_prints_does_not_reach_stdout(monkeypatch, capfd):
    """HiGHS prints a line from C on about one problem in a hundred, amid what may be JSON."""
    solve = allocator.milp

    def chatty(*args, **kwargs):
        os.write(1, b"HighsMipSolverData")
        return solve(*args, **kwargs)

    monkeypatch.setattr(allocator, "milp", chatty)
    print("before")  # noqa: T201
    allocate(choices_of(menu_of([(10, 1.0), (20, 0.5)]), loss_increase_of), 30)
    print("after")  # noqa: T201
    assert capfd.readouterr().out == "before\nafter\n"


def test_stdout_is_back_after_an_error_of_the_solver(monkeypatch, capfd):
    def broken(*_args, **_kwargs):
        raise RuntimeError

    monkeypatch.setattr(allocator, "milp", broken)
    with pytest.raises(RuntimeError):
        allocate(choices_of(menu_of([(10, 1.0), (20, 0.5)]), loss_increase_of), 30)
    print("after")  # noqa: T201
    assert capfd.readouterr().out == "after\n"
