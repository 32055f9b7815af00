from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.driver.stopping import LEAST_GROWTH, searched_series, stopped_growing
from autocompress.judging.hypervolume import (
    REFERENCE_SETTING,
    hypervolume,
    hypervolume_series,
    reference_increase,
)
from tests.studies.study_fixtures import DENSE_BYTES, realistic_study, study_of, trial


def test_stops_only_after_as_many_idle_trials_as_there_is_patience():
    series = [1.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    assert [stopped_growing(series[:count], 3) for count in range(len(series) + 1)] == [
        *[False] * 6,
        True,
    ]
    assert stopped_growing(series, 1)


def test_growth_counts_over_the_whole_stretch_and_against_the_whole_volume():
    steady = [2.0 * (1 + LEAST_GROWTH / 4) ** step for step in range(30)]
    assert stopped_growing(steady, 3)
    assert not stopped_growing(steady, 8)
    assert not stopped_growing([*[2.0] * 9, 2.1], 9)  # the last trial alone is enough
    assert stopped_growing([0.0] * 5, 4)  # nothing better than worthless, again and again


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 29), st.integers(1, 29))
def test_more_patience_never_stops_earlier(steps, one, other):
    series = [sum(steps[: count + 1]) for count in range(len(steps))]
    if stopped_growing(series, max(one, other)):
        assert stopped_growing(series, min(one, other))


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        stopped_growing([1.0], 0)


def test_planned_failed_and_ruled_out_trials_are_no_steps_of_the_series():
    study = study_of(
        trial(0, 0.3, 2_000_000, phase="allocation"),
        trial(1, 0.2, 1_900_000),
        trial(2, 0.1, 1_800_000, phase="baseline"),
        trial(3, 0.0, 2_900_000, state="infeasible"),
        trial(4, 0.0, 1_500_000, state="failed"),
        trial(5, 0.05, 1_000_000),
    )
    planned = hypervolume(replace(study, trials=(study.trials[0], study.trials[2])))
    assert searched_series(study) == pytest.approx((planned, planned, hypervolume(study)))
    assert searched_series(study_of()) == (0.0,)


def test_series_is_the_volume_after_each_complete_trial():
    study = realistic_study()
    series = hypervolume_series(study)
    assert [step.trial for step in series] == [each.number for each in study.complete]
    assert [step.hypervolume for step in series] == sorted(step.hypervolume for step in series)
    assert series[-1].hypervolume == hypervolume(study)


def test_a_study_keeps_the_reference_it_began_with():
    study = study_of(trial(0, 0.5, DENSE_BYTES // 4))  # 2 octaves wide, half a nat below the corner
    assert reference_increase(study) == 1.0
    assert hypervolume(study) == pytest.approx(2 * 0.5)
    old = replace(study, settings=study.settings | {REFERENCE_SETTING: 2.0})
    assert hypervolume(old) == pytest.approx(2 * 1.5)
