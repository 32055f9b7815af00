"""The pieces of the baselines, on menus and measurements that are formulas."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import flat_search
import optuna
import pytest
from flat_search import Variant, first_at
from level_evolution import MOST_CHANGES, Evolution, switched
from menu_levels import LevelMenu, Levels
from own_search import OwnSearch
from search_curves import Point, hypervolumes, kept_points, lowest_increases

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.errors import BudgetUnreachable
from autocompress.judging.front import hypervolume
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.native import NATIVE
from tests.calibration.menus import layer_spec
from tests.studies.study_fixtures import realistic_study

SPECS = tuple(layer_spec(place) for place in range(5))
REST_BYTES = 1000
DENSE_BYTES = REST_BYTES + sum(4 * spec.parameters for spec in SPECS)
INVENTORY = Inventory(SPECS, (), REST_BYTES, DENSE_BYTES, DENSE_BYTES // 4)
METHODS = (*(Quantize(bits, group) for bits in (2, 3, 4, 8) for group in (16, 64)), Keep())
MENU = LevelMenu(
    Menu(
        tuple(
            LayerMenu(
                spec,
                tuple(
                    Option(
                        m,
                        m.cost(spec),
                        NATIVE.matrix_bytes(m, spec),
                        (1 + place) / m.cost(spec),
                        1.0,
                    )
                    for m in METHODS
                ),
            )
            for place, spec in enumerate(SPECS)
        )
    ),
    INVENTORY,
)
LIMIT = DENSE_BYTES // 6


def loss_increase(levels: Levels) -> float:
    chosen = zip(MENU.options, levels, strict=True)
    return sum(options[level].loss_increase for options, level in chosen)


def measure(levels: Levels) -> Point:
    return Point(MENU.bytes(levels), loss_increase(levels), 0.0)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_levels_increase_in_bytes_and_are_counted_as_the_project_counts() -> None:
    for options in MENU.options:
        sizes = [option.bytes for option in options]
        assert sizes == sorted(sizes)
    levels = tuple(range(len(SPECS)))
    assert MENU.bytes(levels) == INVENTORY.plan_bytes(MENU.plan(levels))


def test_a_uniform_start_uses_the_limit_and_no_more() -> None:
    start = MENU.uniform(LIMIT)
    assert len(set(start)) == 1  # all matrices are alike here
    assert MENU.bytes(start) <= LIMIT < MENU.bytes(tuple(level + 1 for level in start))
    with pytest.raises(BudgetUnreachable):
        MENU.uniform(REST_BYTES)


def test_a_baseline_plan_on_the_menu_takes_no_more_bytes() -> None:
    plan = Plan.of({spec.name: Quantize(3, 64) for spec in SPECS})
    levels = MENU.matching(plan)
    assert MENU.bytes(levels) <= INVENTORY.plan_bytes(plan)
    above = tuple(level + 1 for level in levels)
    assert MENU.bytes(above) > INVENTORY.plan_bytes(plan)


def test_a_switch_keeps_the_budget_and_gives_to_one_what_it_takes_from_others() -> None:
    rng, parent = random.Random(0), MENU.uniform(LIMIT)
    children = [switched(MENU, parent, LIMIT, rng) for _ in range(300)]
    made = [child for child in children if child is not None and child != parent]
    assert len(made) > 100
    for child in made:
        assert MENU.bytes(child) <= LIMIT
        steps = [new - old for new, old in zip(child, parent, strict=True)]
        assert max(steps) > 0
        assert sum(map(abs, steps)) <= MOST_CHANGES


def test_the_evolution_finds_the_best_additive_plan() -> None:
    best = min(
        loss_increase(levels)
        for levels in itertools.product(*map(range, MENU.counts))
        if MENU.bytes(levels) <= LIMIT
    )
    asked: list[tuple[int, int]] = []

    def fitness(candidates: Sequence[Levels], tokens: int) -> list[float]:
        asked.append((len(candidates), tokens))
        return [loss_increase(levels) for levels in candidates]

    evolution = Evolution(MENU, LIMIT, fitness, 16, [(10, 4), (100, 1)], random.Random(1))
    parent = MENU.uniform(LIMIT)
    assert loss_increase(parent) > 1.01 * best
    for _ in range(40):
        child = evolution.next_parent(parent)
        assert loss_increase(child) <= loss_increase(
            parent
        )  # the parent is among those to choose from
        parent = child
    assert loss_increase(parent) == pytest.approx(best)
    assert asked[:2] == [(16, 10), (5, 100)]  # four survive, and the parent joins them


def test_hypervolume_of_known_points() -> None:
    points = [Point(8, 0.5, 0), Point(2, 0.75, 0), Point(4, 2.0, 0), Point(2, 0.25, 0)]
    # log2 ratios 1 and 3: half of 1, then a quarter of 3 below; an increase of 2 is worth nothing.
    assert hypervolumes(points, 16) == pytest.approx([0.5, 1.0, 1.0, 3 * 0.75])
    assert lowest_increases(points, 4) == [math.inf, 0.75, 0.75, 0.25]


def test_the_projects_curve_is_that_of_its_study() -> None:
    study = realistic_study()
    own = OwnSearch(study, priced_tokens=1000)
    curve = hypervolumes(own.points, study.dense_bytes)
    assert any(trial.report for trial in study.complete)  # which must not be mixed in
    assert curve[-1] == pytest.approx(hypervolume(study))
    assert len(curve) == len(study.complete)
    assert own.tokens == 1000 + sum(trial.selection.tokens for trial in study.complete)


def test_evaluations_that_a_curve_needs() -> None:
    assert first_at([0.1, 0.2, 0.3], 0.2, rising=True) == 2
    assert first_at([0.1, 0.2, 0.3], 0.4, rising=True) is None
    assert first_at([3.0, 2.0], 2.5, rising=False) == 2


@pytest.mark.parametrize("name", ["random", "tpe", "tpe-multivariate-ordinal", "nsga2"])
def test_flat_searches_evaluate_only_what_fits_and_first_what_they_are_given(name: str) -> None:
    variant = Variant.parse(f"{name}+uniform")
    assert variant.name == f"{name}+uniform"
    starts = [levels for levels in variant.starts(MENU) if MENU.bytes(levels) <= LIMIT]
    asked: list[Levels] = []

    def noted(levels: Levels) -> Point:
        asked.append(levels)
        return measure(levels)

    points = flat_search.flat_search(variant, MENU, noted, 25, limit=LIMIT)
    assert len(points) == len(asked) == 25
    assert asked[: len(starts)] == starts
    assert all(point.bytes <= LIMIT for point in points)
    assert len(set(asked)) > len(starts)


def test_what_is_kept_is_read_for_the_same_settings_only(tmp_path: Path) -> None:
    path, point = tmp_path / "curves" / "tpe.json", Point(3, 0.5, 0.25)
    assert kept_points(path, {"seed": 0}, lambda: [point]) == [point]
    assert kept_points(path, {"seed": 0}, lambda: pytest.fail("made again")) == [point]
    assert kept_points(path, {"seed": 1}, lambda: [], ignoring=["seed"]) == [point]
    assert kept_points(path, {"seed": 1}, lambda: [], ignoring=["menu"]) == []
