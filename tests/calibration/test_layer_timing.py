from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from autocompress.calibration.layer_timing import (
    LEAST_REPEATS,
    MOST_REPEATS,
    TOO_MANY_SECONDS,
    WARM_UP,
    Timed,
    relative_times,
)


class Machine:
    """A clock that stands still but for the runs, whose speed may change."""

    def __init__(self, speed: Callable[[int], float] = lambda _calls: 1.0) -> None:
        self.now, self.speed = 0.0, speed
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def run(self, name: str, seconds: float, first: float | None = None) -> Timed:
        return Timed(self.call(name, seconds, first))

    def call(self, name: str, seconds: float, first: float | None = None) -> Callable[[], None]:
        def call() -> None:
            slow = first is not None and self.calls[name] == 0
            self.calls[name] += 1
            self.order.append(name)
            self.now += (first if slow and first else seconds) * self.speed(self.calls.total())

        return call


def test_options_are_multiples_of_the_dense_layer() -> None:
    machine = Machine()
    dense_ms, ratios = relative_times(
        machine.run("dense", 2e-5),
        {"half": machine.run("half", 1e-5), "slow": machine.run("slow", 6e-5, first=0.1)},
        clock=machine.clock,
    )
    assert dense_ms == pytest.approx(0.02)
    assert ratios == pytest.approx({"half": 0.5, "slow": 3.0})


@pytest.mark.parametrize("later", [0.2, 5.0])
def test_a_machine_that_changes_its_speed_does_not_change_the_ratios(later: float) -> None:
    machine = Machine(lambda calls: 1.0 if calls < 60 else later)
    names = [f"option{i}" for i in range(9)]
    _, ratios = relative_times(
        machine.run("dense", 1e-4),
        {name: machine.run(name, 1e-4 * (i + 1)) for i, name in enumerate(names)},
        clock=machine.clock,
    )
    assert ratios == pytest.approx({name: i + 1 for i, name in enumerate(names)}, rel=0.01)


def test_everything_takes_turns() -> None:
    machine = Machine()
    runs = {name: machine.run(name, 1e-5) for name in "ab"}
    relative_times(machine.run("dense", 1e-5), runs, clock=machine.clock)
    counted = machine.order[WARM_UP * 3 :]
    assert counted == ["dense", "a", "b"] * MOST_REPEATS


def test_slow_options_are_run_seldom_and_very_slow_ones_once() -> None:
    machine = Machine()
    runs = {
        "slow": machine.run("slow", 0.01),
        "very slow": machine.run("very slow", TOO_MANY_SECONDS),
    }
    relative_times(machine.run("dense", 1e-5), runs, clock=machine.clock)
    assert machine.calls["slow"] == WARM_UP + LEAST_REPEATS
    assert machine.calls["very slow"] == WARM_UP + 1


def test_the_dense_layer_alone() -> None:
    machine = Machine()
    assert relative_times(machine.run("dense", 0.5), {}, clock=machine.clock) == (500.0, {})
    assert machine.calls["dense"] == WARM_UP + LEAST_REPEATS


def test_each_round_finds_the_caches_as_the_rest_of_a_token_leaves_them() -> None:
    machine = Machine()
    rest = machine.call("rest", 1e-3)
    pairs = {
        name: Timed(machine.call(name, 1e-5), machine.call(f"like {name}", 3e-5))
        for name in ("dense", "a", "b")
    }
    dense = pairs.pop("dense")
    dense_ms, ratios = relative_times(dense, pairs, rest, clock=machine.clock)
    assert dense_ms == pytest.approx(0.01)  # neither the rest nor what is alike counts
    assert ratios == pytest.approx({"a": 1.0, "b": 1.0})
    counted = machine.order[2 * WARM_UP * 3 :]
    each_round = ["rest", "like dense", "dense", "like a", "a", "like b", "b"]
    assert counted == each_round * MOST_REPEATS
