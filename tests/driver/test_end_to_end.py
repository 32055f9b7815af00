from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.driver.proposing.end_to_end import (
    LEAST_SLOPE,
    PRIOR_SPREAD,
    PRIOR_TRIALS,
    TimedPlan,
    relate,
)
from autocompress.studies.relation import Relation

DENSE, TABLE = 3.0, 2.0  # ms end to end, and in the table


def on_a_line(slope: float, *tables: float) -> list[TimedPlan]:
    return [TimedPlan(table, DENSE + slope * (table - TABLE), DENSE) for table in tables]


def test_without_trials_two_thirds_of_a_token_are_spent_in_the_matrices() -> None:
    relation = relate([], TABLE, DENSE)
    assert (relation.slope, relation.trials) == (1.0, 0)
    assert relation.predict(1.5) == 2.5
    assert relation.outside_ms == 1.0
    assert relation.spread_ms == pytest.approx(PRIOR_SPREAD * DENSE)
    assert relation.r_squared is relation.rank_correlation is None


@settings(deadline=None)
@given(
    st.floats(0.2, 3),
    st.lists(
        st.floats(0.1, 6).map(lambda t: round(t, 3)).filter(lambda t: t != TABLE),
        min_size=6,
        max_size=20,
    ),
)
def test_trials_on_a_line_give_the_line(slope: float, tables: list[float]) -> None:
    # The first guess may win only while it weighs half of all.
    weights = [abs(table - TABLE) for table in tables]
    if PRIOR_TRIALS * np.median(weights) > 0.49 * (
        sum(weights) + PRIOR_TRIALS * np.median(weights)
    ):
        return
    relation = relate(on_a_line(slope, *tables), TABLE, DENSE)
    assert relation.slope == pytest.approx(slope)
    assert relation.predict(0.7) == pytest.approx(DENSE + slope * (0.7 - TABLE))
    if relation.r_squared is not None:
        assert relation.r_squared == pytest.approx(1.0)
        assert relation.rank_correlation == pytest.approx(1.0)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 6).filter(lambda t: abs(t - TABLE) > 0.01), st.floats(0.5, 9)),
        min_size=1,
        max_size=12,
    )
)
def test_the_slope_has_the_least_sum_of_absolute_residuals(
    pairs: list[tuple[float, float]],
) -> None:
    trials = [TimedPlan(table, measured, DENSE) for table, measured in pairs]
    slope = relate(trials, TABLE, DENSE).slope
    guess = PRIOR_TRIALS * float(np.median([abs(table - TABLE) for table, _ in pairs]))

    def loss(candidate: float) -> float:
        residuals = [abs(m - DENSE - candidate * (table - TABLE)) for table, m in pairs]
        return sum(residuals) + guess * abs(candidate - 1)

    candidates = [1.0, *((m - DENSE) / (table - TABLE) for table, m in pairs)]
    best = min(loss(max(candidate, LEAST_SLOPE)) for candidate in candidates)
    assert loss(slope) <= best + 1e-9


def test_few_trials_do_not_overthrow_the_first_guess() -> None:
    tables = (1.0, 1.1, 0.9, 1.05, 0.95)
    assert relate(on_a_line(0.3, *tables[:3]), TABLE, DENSE).slope == 1.0
    assert relate(on_a_line(0.3, *tables), TABLE, DENSE).slope == pytest.approx(0.3)


def test_a_trial_of_a_busy_moment_does_not_bend_the_line() -> None:
    busy = TimedPlan(1.2, 40.0, DENSE)
    relation = relate([*on_a_line(0.8, 0.5, 0.8, 1.0, 1.5, 2.5, 3.0), busy], TABLE, DENSE)
    assert relation.slope == pytest.approx(0.8)
    assert relation.spread_ms < PRIOR_SPREAD * DENSE


def test_a_slower_machine_is_measured_against_its_own_dense_model() -> None:
    tables = (0.5, 0.8, 1.0, 1.5, 3.0)
    slower = [
        TimedPlan(t.table_ms, 5 * t.measured_ms, 5 * t.dense_ms) for t in on_a_line(0.8, *tables)
    ]
    assert relate(slower, TABLE, DENSE).slope == pytest.approx(0.8)


def test_a_table_that_says_nothing_is_seen_to() -> None:
    contrary = relate(on_a_line(-1.0, 0.5, 0.8, 1.0, 1.5, 3.0, 3.5), TABLE, DENSE)
    assert contrary.slope == LEAST_SLOPE
    assert contrary.rank_correlation == pytest.approx(-1.0)
    assert contrary.r_squared is not None
    assert contrary.r_squared < 0


def test_the_spread_is_that_of_the_residuals() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.2, 3000)
    tables = generator.uniform(0.5, 4.0, 3000)
    trials = [
        TimedPlan(t, DENSE + 0.9 * (t - TABLE) + e, DENSE)
        for t, e in zip(tables, noise, strict=True)
    ]
    relation = relate(trials, TABLE, DENSE)
    assert relation.slope == pytest.approx(0.9, abs=0.02)
    assert relation.spread_ms == pytest.approx(0.2, rel=0.1)
    # A plan that is allocated to the table's limit meets the limit about five times of six.
    limit = relation.table_limit(2.5, margin=1.0)
    assert np.mean(DENSE + 0.9 * (limit - TABLE) + noise <= 2.5) == pytest.approx(0.84, abs=0.04)
    limit = relation.table_limit(2.5)
    assert np.mean(DENSE + 0.9 * (limit - TABLE) + noise <= 2.5) == pytest.approx(0.5, abs=0.04)


def test_a_limit_in_the_table_is_predicted_to_meet_the_limit_end_to_end() -> None:
    relation = Relation(DENSE, TABLE, 0.8, 0.1, None, None, 0)
    assert relation.predict(relation.table_limit(2.1, margin=0.0)) == pytest.approx(2.1)
    assert relation.predict(relation.table_limit(2.1, margin=2.0)) == pytest.approx(1.9)


def test_it_is_kept_as_json_and_said_in_a_line() -> None:
    relation = relate(on_a_line(0.8, 0.5, 0.8, 1.0, 1.5, 3.0), TABLE, DENSE)
    assert Relation.from_dict(json.loads(json.dumps(relation.to_dict()))) == relation
    assert "0.80 ms end to end" in str(relation)
    assert "R2 1.00" in str(relation)
    assert "R2" not in str(relate([], TABLE, DENSE))
    assert math.isfinite(relate(on_a_line(0.8, TABLE), TABLE, DENSE).spread_ms)
