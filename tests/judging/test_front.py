from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import BudgetUnreachable, ConfigurationError, StudyError
from autocompress.judging.against_dense import shown_figure
from autocompress.judging.dominance import (
    LATENCY_TOLERANCE,
    area_below,
    divergence,
    dominates,
    knee_of,
    ranking_loss,
    selection_loss,
)
from autocompress.judging.front import (
    baseline_rival,
    finalists,
    front_of,
    front_to_dict,
    gain_over_baseline,
    hypervolume,
    pick,
)
from autocompress.units import Limits
from tests.studies.study_fixtures import DENSE_BYTES, realistic_study, study_of, trial, with_windows

INCREASES = st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0])
SIZES = st.sampled_from([1_000_000, 1_500_000, 2_000_000, 4_000_000])
LATENCIES = st.one_of(st.none(), st.sampled_from([2.0, 2.1, 3.0, 3.2, 5.0]))
POINTS = st.lists(st.tuples(INCREASES, SIZES, LATENCIES), min_size=1, max_size=9)


def study_with(points):
    return study_of(*(trial(number, *point) for number, point in enumerate(points)))


def beaten(point, others):
    """The rule written out once more, on (increase, bytes, latency, number)."""
    for other in others:
        if other[:2] == point[:2]:
            if (other[2] or math.inf, other[3]) < (point[2] or math.inf, point[3]):
                return True
        elif other[0] <= point[0] and other[1] <= point[1]:
            timed = other[2] is not None and point[2] is not None
            if not timed or other[2] <= point[2] * (1 + LATENCY_TOLERANCE):
                return True
    return False


@given(POINTS)
def test_front_equals_brute_force(points):
    rows = [(*point, number) for number, point in enumerate(points)]
    expected = {
        row[3] for row in rows if not beaten(row, [other for other in rows if other is not row])
    }
    front = front_of(study_with(points))
    assert {each.number for each in front} == expected
    assert front
    assert [each.bytes for each in front] == sorted(each.bytes for each in front)


@given(st.lists(st.tuples(INCREASES, SIZES, st.none()), min_size=1, max_size=9))
def test_without_latency_quality_falls_along_the_front(points):
    front = front_of(study_with(points))
    for smaller, larger in pairwise(front):
        assert smaller.bytes < larger.bytes
        assert smaller.selection.divergence > larger.selection.divergence


def with_divergence(trial, kl):
    return replace(trial, selection=replace(trial.selection, divergence=kl))


LUCKY = with_divergence(trial(0, -0.002, 1_500_000), 0.02)  # perplexity below the dense model's
GOOD = with_divergence(trial(1, 0.001, 1_500_000), 0.003)
SMALL = with_divergence(trial(2, -0.001, 1_000_000), 0.01)


def test_divergence_ranks_where_perplexity_is_luck():
    study = study_of(LUCKY, GOOD, SMALL)
    assert [t.number for t in front_of(study)] == [2, 1]
    assert pick(study).number == 1
    with pytest.raises(BudgetUnreachable, match="nearest is trial 1"):
        pick(study_of(LUCKY, GOOD), max_bytes=1_400_000)
    point = front_to_dict(study)["best"]
    assert (point["trial"], point["selection_kl"]) == (1, 0.003)


def test_divergence_ranks_the_plans_written_baselines():
    baselines = [replace(each, phase="baseline") for each in (LUCKY, GOOD)]
    assert baseline_rival(study_of(*baselines, GOOD), GOOD).number == 1


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_where_one_divergence_is_unknown_perplexity_ranks_them_all(unknown):
    trials = [LUCKY, with_divergence(GOOD, unknown), SMALL]
    assert ranking_loss(trials) is selection_loss
    assert [t.number for t in front_of(study_of(*trials))] == [2, 0]
    assert pick(study_of(*trials)).number == 0
    # What is not measured, or not a number, does not take the divergence from the others.
    broken = replace(GOOD, selection=replace(GOOD.selection, figure=math.nan, divergence=math.nan))
    failed = trial(3, 0.1, 1_000_000, state="failed")
    assert ranking_loss([LUCKY, broken, failed]) is divergence
    assert [t.number for t in front_of(study_of(LUCKY, broken))] == [0]


@given(st.lists(st.tuples(INCREASES, SIZES, st.sampled_from([0.1, 0.2, math.nan])), max_size=6))
def test_nothing_beats_what_beats_it_even_where_divergences_are_unknown(points):
    trials = [
        with_divergence(trial(n, increase, size), kl)
        for n, (increase, size, kl) in enumerate(points)
    ]
    loss = ranking_loss(trials)
    for one, other, third in product(trials, repeat=3):
        first, second = dominates(one, other, loss), dominates(other, third, loss)
        assert not (first and second) or dominates(one, third, loss)
    assert bool(front_of(study_of(*trials))) == bool(trials)


def test_brute_force_checker_can_fail():
    assert beaten((0.5, 2, None, 0), [(0.1, 1, None, 1)])
    assert not beaten((0.5, 2, 1.0, 0), [(0.1, 1, 2.0, 1)])


def test_slower_within_the_tolerance_still_dominates_and_beyond_it_does_not():
    worse, bound = trial(0, 0.2, 2_000_000, 3.0), 3.0 * (1 + LATENCY_TOLERANCE)
    within, beyond = (trial(1, 0.1, 1_900_000, bound + late) for late in (-0.01, 0.01))
    assert [t.number for t in front_of(study_of(worse, within))] == [1]
    assert [t.number for t in front_of(study_of(worse, beyond))] == [1, 0]


def test_a_plan_measured_twice_appears_once_with_its_report():
    first = trial(0, 0.1, 1_000_000)
    again = trial(1, 0.1, 1_000_000, plan=first.plan, report=True)
    assert [t.number for t in front_of(study_of(first, again))] == [1]


def test_report_measurements_do_not_change_the_front():
    study = realistic_study(finished=False)
    swapped = tuple(
        replace(t, report=replace(t.selection, figure=1.0, loss=0.0, text="report"))
        if t.number == 5
        else t
        for t in study.trials
    )
    numbers = [each.number for each in front_of(study)]
    assert [each.number for each in front_of(replace(study, trials=swapped))] == numbers


def test_trials_without_a_finite_perplexity_are_left_out():
    broken = trial(1, 0.1, 500_000)
    broken = replace(broken, selection=replace(broken.selection, figure=math.nan))
    study = study_of(trial(0, 0.1, 1_000_000), broken, trial(2, 0.1, 400_000, state="failed"))
    assert [t.number for t in front_of(study)] == [0]


def test_best_is_the_least_divergence_within_the_budget():
    assert pick(realistic_study()).label == "allocated 10x"


def test_a_given_limit_replaces_the_limit_of_the_study():
    study = realistic_study()
    assert pick(study, max_bytes=2_400_000).label == "allocated 7x"
    assert pick(study, max_bytes=1_000_000).label == "allocated 16x"


def test_best_under_a_latency_limit_may_lie_off_the_front():
    study = study_of(trial(0, 0.1, 1_000_000, 3.05), trial(1, 0.2, 1_100_000, 2.95))
    assert [t.number for t in front_of(study)] == [0]
    assert pick(study, max_latency_ms=3.0).number == 1
    limited = replace(study, limits=Limits(None, 3.0))
    assert [t.number for t in finalists(limited)] == [0, 1]


def test_other_ways_to_pick():
    study = realistic_study()
    assert pick(study, "smallest").label == "allocated 20x"
    assert (
        pick(study, "fastest").label == "uniform svd 10x"
        or pick(study, "fastest").label == "allocated 20x"
    )
    assert pick(study, "3").number == pick(study, "#3").number == 3
    knee = pick(study, "knee")
    assert 1_300_000 <= knee.bytes <= 3_400_000


def test_knee_is_the_corner_of_a_corner():
    corner = [trial(0, 2.0, 1_000_000), trial(1, 0.01, 1_100_000), trial(2, 0.0, 8_000_000)]
    assert knee_of(corner).number == 1
    assert knee_of(corner[:1]).number == 0
    assert knee_of([corner[0], corner[2]]).number == 2
    # By divergence the bend is elsewhere.
    straight = [
        with_divergence(each, kl) for each, kl in zip(corner, (2.0, 1.95, 0.0), strict=True)
    ]
    assert knee_of(straight).number == 2


def test_perplexity_limit_means_what_the_table_shows():
    study = realistic_study()
    for each in front_of(study):
        assert shown_figure(study, each) == pytest.approx(each.report.figure, rel=1e-12)
    wanted = front_of(study)[3]
    found = pick(study, "smallest", worst_figure=wanted.report.figure * 1.000001)
    assert found.report.figure <= wanted.report.figure


@pytest.mark.parametrize("how", ["best", "knee", "smallest", "fastest"])
def test_nothing_within_the_limits_names_the_nearest(how):
    with pytest.raises(
        BudgetUnreachable, match=r"at most 100 kB.*nearest is trial 13 \(allocated 20x\): 796 kB"
    ):
        pick(realistic_study(), how, max_bytes=100_000)


def test_unknown_trials_and_words():
    study = realistic_study()
    with pytest.raises(StudyError, match=r"has no trial 99.*one of 0, 1, 2"):
        pick(study, "99")
    with pytest.raises(
        StudyError, match=r"trial 23 of study llama-10x was not measured: got failed.*out of memory"
    ):
        pick(study, "23")
    with pytest.raises(ConfigurationError, match="got 'nicest', wanted best, knee"):
        pick(study, "nicest")
    with pytest.raises(StudyError, match="no measured trial"):
        pick(study_of())
    with pytest.raises(StudyError, match="latency"):
        pick(study_of(trial(0, 0.1, 1_000_000)), "fastest")
    with pytest.raises(BudgetUnreachable, match="trial 0"):
        pick(study, "0", max_bytes=1_000_000)


def test_gain_is_measured_on_the_report_text_when_both_have_it():
    finished, running = (
        gain_over_baseline(realistic_study()),
        gain_over_baseline(realistic_study(finished=False)),
    )
    assert finished is not None
    assert running is not None
    assert (finished.text, running.text) == ("report", "selection")
    assert finished.baseline.label == "uniform 3 bit"
    assert running.share == pytest.approx(0.064 / 0.096)
    assert gain_over_baseline(study_of(trial(0, 0.1, 1_000_000))) is None


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_hypervolume_equals_counting_cells(points):
    cells = {(x, y) for px, py in points for x in range(px, 10) for y in range(py, 10)}
    assert area_below(points, (10, 10)) == len(cells)


def test_hypervolume_grows_with_the_trials():
    study = realistic_study()
    volumes = [hypervolume(study, until=number) for number in range(len(study.trials))]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] < volumes[-1] == hypervolume(study)


def test_front_as_json():
    study = realistic_study(Path("runs/here"))
    data = json.loads(json.dumps(front_to_dict(study), allow_nan=False))
    assert data["study"] == "here"
    assert data["dense"]["perplexity"] == study.dense_report.figure
    assert data["dense"]["bytes"] == DENSE_BYTES
    assert data["best"]["label"] == "allocated 10x"
    assert data["best"]["meets_budget"] is True
    assert data["gain"]["baseline"] == 2
    assert len(data["front"]) == len(front_of(study))
    keys = {
        "trial",
        "label",
        "phase",
        "perplexity",
        "kl",
        "bytes",
        "ratio",
        "ratio_bf16",
        "latency_ms",
        "recipe",
    }
    for point in (*data["front"], data["best"], data["knee"]):
        assert keys | {"meets_budget", "baseline", "text"} <= point.keys()
        assert point["text"] == "report"
        assert point["ratio"] == pytest.approx(DENSE_BYTES / point["bytes"])


def test_intervals_are_in_the_json_and_around_their_figures():
    data = json.loads(json.dumps(front_to_dict(with_windows(realistic_study()))))
    for point in data["front"]:
        low, high = point["increase_interval"]
        assert low < point["increase"] < high
    gain = data["gain"]
    low, high = gain["difference_interval"]
    assert low < gain["difference"] < high
    assert gain["difference"] == pytest.approx(gain["baseline_increase"] - gain["best_increase"])
    assert data["best"]["increase_interval"] == gain["best_increase_interval"]
    bare = front_to_dict(realistic_study())
    assert {point["increase_interval"] for point in bare["front"]} == {None}
    assert bare["gain"]["difference_interval"] is None


def test_growth_of_the_hypervolume_is_in_the_json():
    study = realistic_study()
    data = front_to_dict(study)
    assert [step["trial"] for step in data["hypervolume_series"]] == [
        each.number for each in study.complete
    ]
    assert data["hypervolume_series"][-1]["hypervolume"] == data["hypervolume"]
    assert data["hypervolume_reference"] == {"bytes": DENSE_BYTES, "increase": 1.0}


def test_front_as_json_before_anything_was_measured_or_reported():
    empty = front_to_dict(study_of())
    assert (empty["best"], empty["knee"], empty["front"]) == (None, None, [])
    points = front_to_dict(realistic_study(finished=False))["front"]
    assert {point["text"] for point in points} == {"selection"}
    nan = trial(0, 0.1, 1_000_000)
    nan = replace(nan, report=replace(nan.selection, divergence=math.nan, text="report"))
    assert (
        json.loads(json.dumps(front_to_dict(study_of(nan)), allow_nan=False))["front"][0]["kl"]
        is None
    )
