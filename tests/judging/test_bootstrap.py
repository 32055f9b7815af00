"""Intervals against the normal theory of a weighted mean, and what pairs are for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autocompress.judging.bootstrap import (
    FEWEST_WINDOWS,
    difference_interval,
    increase_interval,
    loss_interval,
)
from autocompress.records import WindowScores
from tests.studies.study_fixtures import study_of, trial, with_windows


def scores(nll, tokens=255):
    sizes = np.broadcast_to(tokens, len(nll))
    return WindowScores(tuple(map(int, sizes)), tuple(map(float, nll)), (0.0,) * len(nll))


def test_many_windows_give_the_normal_interval_of_a_weighted_mean():
    draw = np.random.default_rng(0)
    tokens = draw.integers(50, 500, 400)
    dense, increases = draw.normal(3, 0.3, 400), draw.normal(0.05, 0.02, 400)
    found = difference_interval(scores(dense + increases, tokens), scores(dense, tokens))
    weights = tokens / tokens.sum()
    mean = weights @ increases
    spread = math.sqrt(weights**2 @ (increases - mean) ** 2)  # linearised ratio of two sums
    assert found.low == pytest.approx(mean - 1.96 * spread, abs=0.15 * spread)
    assert found.high == pytest.approx(mean + 1.96 * spread, abs=0.15 * spread)


def test_few_windows_hold_the_truth_as_often_as_promised():
    draw = np.random.default_rng(1)
    texts = draw.normal(0.05, 0.02, (400, 8))
    zero = scores(np.zeros(8))
    found = [difference_interval(scores(text), zero) for text in texts]
    held = np.mean([interval.low <= 0.05 <= interval.high for interval in found])
    assert 0.92 <= held <= 0.98  # the plain percentile interval: about 0.87


def test_identical_plans_differ_by_nothing():
    same = scores(np.random.default_rng(2).normal(3, 0.3, 50))
    assert difference_interval(same, same) == (0.0, 0.0)


def test_pairs_are_narrower_than_windows_drawn_apart():
    draw = np.random.default_rng(3)
    hardness, noise = draw.normal(3, 0.3, 60), draw.normal(0, 0.01, 60)
    one, other = scores(hardness + 0.05 + noise), scores(hardness)
    paired = difference_interval(one, other)
    apart = difference_interval(scores(hardness + 0.05 + noise), scores(hardness[::-1]))
    assert paired.half_width < apart.half_width / 10
    assert paired.low < 0.05 < paired.high


def test_windows_weigh_by_their_tokens():
    tokens = [1000] * 20 + [1] * 20
    one = scores([0.1] * 20 + [9.0] * 20, tokens)
    found = difference_interval(one, scores([0.0] * 40, tokens))
    assert 0.1 < found.low < found.high < 0.12


def test_the_same_seed_gives_the_same_interval():
    one, zero = scores(np.random.default_rng(4).normal(0, 1, 30)), scores(np.zeros(30))
    assert difference_interval(one, zero) == difference_interval(one, zero)
    assert difference_interval(one, zero) != difference_interval(one, zero, seed=1)


def test_no_interval_where_none_can_be_given():
    few = scores(np.arange(FEWEST_WINDOWS - 1.0))
    assert difference_interval(few, few) is None
    broken, fine = scores([math.nan] * 9), scores([1.0] * 9)
    assert difference_interval(broken, fine) is None
    with pytest.raises(ValueError, match="different windows"):
        difference_interval(fine, scores([1.0] * 9, tokens=7))


def test_trials_have_intervals_on_the_report_text_only():
    one, other = (
        trial(n, increase, 1_000_000, report=True) for n, increase in ((0, 0.05), (1, 0.08))
    )
    bare = study_of(one, other)
    assert increase_interval(bare, one) is None
    assert loss_interval(one, other) is None

    study = with_windows(bare)
    one, other = study.trials
    interval = increase_interval(study, one)
    assert interval.low < 0.05 * 1.04 < interval.high
    difference = loss_interval(other, one)
    assert 0 < difference.low < 0.03 * 1.04 < difference.high
    assert increase_interval(study, replace(one, report=None)) is None
