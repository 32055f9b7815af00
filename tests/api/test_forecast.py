"""Laws read off a clock that the test turns, and what they predict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from autocompress.driver.estimate import probes
from autocompress.driver.estimate.probes import PerElement, PerToken, Speed, per_element, per_token
from autocompress.driver.estimate.work import Work
from autocompress.driver.stages import PRICING_PASSES, predict_stages
from autocompress.space.space_file import load_space
from autocompress.units import about
from tests.studies.study_fixtures import SPECS

SPEED = Speed(PerToken(0.1, 0.001), PerToken(0.5, 0.002), 5.0, {"svd": PerElement(1e-6, 1e-8)})
WORK = Work(
    specs=SPECS,
    vocabulary=4096,
    row_bytes=2 * 4096 + 8,
    context=256,
    calibration_tokens=1000,
    fits=Counter({((256, 256), "svd"): 10}),
    timed=None,
    pricings=3,
    pricing_tokens=100,
    selection_tokens=2000,
    report_tokens=3000,
    new=True,
    trials=8,
    workers=1,
    built=Counter(),
    plan_bytes=10**6,
    held_bytes=10**9,
    threads=1,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what is added to it."""
    now = [0.0]
    monkeypatch.setattr(probes.time, "perf_counter", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def by_name(work, speed=SPEED):
    return {stage.name: stage for stage in predict_stages(work, speed)}


@pytest.mark.parametrize("law", [PerToken(0.2, 0.003), PerToken(0.0, 0.5), PerToken(2.0, 1e-5)])
def test_the_law_of_tokens_is_read_off_two_passes(clock, law):
    found = per_token(lambda tokens: clock(law.seconds(tokens)), 100_000)
    assert found == pytest.approx(law)


def test_a_short_text_and_a_disturbed_clock_still_give_a_law(clock):
    assert per_token(lambda tokens: clock(0.1 * tokens), 20) == pytest.approx((0.0, 0.1))
    passes = iter([1.0, 5.0, 5.0, 1.0, 1.0])  # the longer pass was the quicker
    found = per_token(lambda _tokens: clock(next(passes)), 1000)
    assert found.fixed == 0
    assert found.each > 0


def test_of_two_passes_the_quicker_counts(clock):
    disturbances = iter([9.0, 0.0, 3.0, 2.0, 0.0])
    law = PerToken(0.2, 0.003)
    found = per_token(lambda tokens: clock(law.seconds(tokens) + next(disturbances)), 1000)
    assert found == pytest.approx(law)


def test_the_law_of_fits_is_read_off_two_sides(clock, monkeypatch):
    law = PerElement(2e-6, 3e-8)

    def fit_times(_space, spec, _device):
        clock(0.01)
        return {"svd": [law.seconds(spec.shape)] * 3}

    monkeypatch.setattr(probes, "_fit_times", fit_times)
    found = per_element(load_space("default"), SPECS, None)
    assert found["svd"] == pytest.approx(law)
    assert found["svd"].seconds((4096, 256)) == pytest.approx(16 * law.seconds((256, 256)))


def test_stages_add_up_what_there_is_to_do():
    stages = by_name(WORK)
    assert stages["calibrating"].seconds == pytest.approx(0.5 + 2.0)
    assert stages["fitting"].seconds == pytest.approx(10 * 256**2 * (1e-6 + 256e-8))
    assert stages["pricing options"].seconds == pytest.approx(3 * PRICING_PASSES * (0.1 + 0.1))
    assert stages["trials"].seconds > 8 * (0.1 + 2.0)
    twice = by_name(replace(WORK, trials=16))
    assert twice["trials"].seconds == pytest.approx(2 * stages["trials"].seconds)


def test_what_is_in_the_cache_takes_no_time():
    stages = by_name(replace(WORK, calibration_tokens=0, fits=Counter()))
    assert stages["calibrating"].seconds == stages["fitting"].seconds == 0
    assert stages["fitting"].work == "in the cache"
    resumed = by_name(replace(WORK, new=False))
    assert resumed["dense model"].seconds < by_name(WORK)["dense model"].seconds


def test_layers_are_timed_where_latency_counts():
    assert "timing layers" not in by_name(WORK)
    names = list(by_name(replace(WORK, timed=300)))
    assert names.index("fitting") < names.index("timing layers") < names.index("pricing options")
    stage = by_name(replace(WORK, timed=300))["timing layers"]
    assert stage.seconds == pytest.approx(6.0)
    assert stage.work == "300 options, 20 ms or more each"
    known = by_name(replace(WORK, timed=0))["timing layers"]
    assert (known.work, known.seconds) == ("in the cache", 0)


def test_threads_share_fits_and_workers_share_trials():
    one, two = by_name(WORK), by_name(replace(WORK, threads=2, workers=2))
    assert two["fitting"].seconds == pytest.approx(one["fitting"].seconds / 2)
    assert two["trials"].seconds == pytest.approx(one["trials"].seconds / 2)
    assert two["trials"].memory_bytes == 2 * one["trials"].memory_bytes


def test_a_method_without_a_probe_takes_the_mean_of_the_others():
    laws = {"svd": PerElement(1e-6, 0.0), "cp": PerElement(3e-6, 0.0)}
    work = replace(WORK, fits=Counter({((100, 100), "tucker"): 1}))
    assert by_name(work, replace(SPEED, fits=laws))["fitting"].seconds == pytest.approx(0.02)
    assert by_name(work, replace(SPEED, fits={}))["fitting"].seconds == 0


def test_memory_holds_the_model_and_what_each_stage_adds():
    stages = by_name(WORK)
    teacher = (2 * 4096 + 8) * 5000
    for stage in stages.values():
        assert stage.memory_bytes >= 10**9 + teacher
    largest = max(spec.parameters for spec in SPECS)
    assert stages["fitting"].memory_bytes >= 10**9 + teacher + 60 * largest


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "no time"),
        (0.2, "less than a second"),
        (7.3, "about 7 s"),
        (42.4, "about 42 s"),
        (250, "about 4 min"),
        (1234, "about 21 min"),
        (12_345, "about 3 h"),
        (1_234_567, "about 340 h"),
    ],
)
def test_times_are_said_with_no_more_digits_than_they_are_worth(seconds, words):
    assert about(seconds) == words


def test_fitting_anew_takes_passes_over_its_text_for_each_plan():
    stages = by_name(replace(WORK, healed=2, refit_tokens=20_000))
    assert stages["refitting"].work == "about 2 plans on 20,000 tokens"
    assert stages["refitting"].seconds == pytest.approx(2 * 12 * SPEED.scoring.seconds(20_000))
    assert "healing" not in stages


def test_healing_takes_passes_over_its_text_for_each_finalist():
    healing = by_name(replace(WORK, healed=4, healing_tokens=10_000))["healing"]
    assert healing.work == "about 4 plans on 10,000 tokens"
    assert healing.seconds == pytest.approx(4 * 6 * SPEED.scoring.seconds(10_000))
    assert "healing" not in by_name(WORK)
