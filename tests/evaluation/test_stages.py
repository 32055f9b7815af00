from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.evaluation.stages import (
    LEAST_WINDOWS,
    MARGIN,
    RIVALS,
    clearly_worse,
    rivals_of,
    stages_of,
)
from autocompress.records import WindowScores
from tests.studies.study_fixtures import trial

KLS = st.lists(st.floats(1e-3, 10.0), min_size=LEAST_WINDOWS, max_size=24)


@pytest.mark.parametrize(
    ("windows", "stages"),
    [(0, ()), (4, ()), (7, (4,)), (8, (4,)), (32, (4, 8, 16)), (33, (4, 8, 16, 32))],
)
def test_each_stage_is_twice_the_last(windows, stages):
    assert stages_of(windows) == stages


@given(st.integers(0, 5000))
def test_stages_increase_and_leave_something_to_score(windows):
    stages = stages_of(windows)
    assert list(stages) == sorted(set(stages))
    assert all(LEAST_WINDOWS <= stage < windows for stage in stages)


def measured(kls: tuple[float, ...] | None):
    scores = None if kls is None else WindowScores((10,) * len(kls), kls, kls)
    kl = 0.09 if kls is None else sum(kls) / len(kls)
    return replace(trial(0, 0.1, 100).selection, divergence=kl, windows=scores)


def test_rivals_are_the_best_plans():
    kls = [(1.0 / (n + 1),) * 4 for n in range(RIVALS + 3)]
    assert rivals_of(map(measured, kls)) == tuple(reversed(kls[3:]))
    assert rivals_of(map(measured, kls[:2])) == (kls[1], kls[0])


def test_plans_that_were_not_measured_window_by_window_are_no_rivals():
    assert rivals_of([measured(None)]) == ()


def test_more_than_the_margin_on_every_window_is_clearly_worse():
    rival = (0.1, 0.3, 0.2, 0.4)
    worse = [kl * (1 + MARGIN) + 0.05 for kl in rival]  # beyond what the spread allows
    assert clearly_worse(worse, [rival])
    assert clearly_worse(worse, [(9.0,) * 4, rival])  # one rival is enough
    assert not clearly_worse([kl * (1 + MARGIN) - 0.001 for kl in rival], [rival])
    assert not clearly_worse(worse, [])


def test_what_one_window_alone_says_is_chance():
    """A mean difference of 0.5 in both; in the second all of it is from one window."""
    rival = (0.1,) * 8
    assert clearly_worse((0.6,) * 8, [rival])
    assert not clearly_worse((*(0.1,) * 7, 4.1), [rival])


def test_few_windows_must_say_more():
    """A difference of two and a half standard errors: by chance over four windows, not over 32."""
    rival = (1e-6,) * 32
    ours = tuple(0.1 + swing for swing in (0.07, -0.07)) * 16
    assert not clearly_worse(ours[:4], [rival])
    assert clearly_worse(ours, [rival])


def test_only_the_windows_that_were_scored_are_compared():
    assert clearly_worse((0.9,) * 4, [(*(0.1,) * 4, *(100.0,) * 28)])


@given(KLS, st.floats(0.0, 0.999))
def test_a_plan_at_most_the_margin_above_each_window_goes_on(ours, share):
    """Theory: the mean difference is then at most the margin of the rival's mean."""
    rival = tuple(kl / (1 + share * MARGIN) for kl in ours)
    assert not clearly_worse(ours, [rival])


@given(KLS, st.integers(0, 23), st.sampled_from([math.nan, math.inf]))
def test_what_is_not_a_number_is_stopped(ours, place, number):
    ours[place % len(ours)] = number
    assert clearly_worse(ours, [])
    assert clearly_worse(ours, [(1.0,) * 24])
