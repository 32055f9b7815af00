from __future__ import annotations

import json
import math

import pytest
import torch

from autocompress.errors import StorageError
from autocompress.evaluation import evaluator as measuring
from autocompress.evaluation.evaluator import (
    LATENCY_ROUNDS,
    MOST_SECONDS,
    PREFILL_ROUNDS,
    Evaluator,
    ScoredText,
)
from autocompress.evaluation.jobs import Job
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.records import Measurement
from autocompress.surgery.workbench import Workbench
from tests.mixed_plans import builder

VALUES = Plan.of({f"model.layers.{depth}.self_attn.v_proj": Svd(6) for depth in (0, 1)})
DENSE_CACHE = 2 * 2 * 16 * 4  # layers, keys and values, numbers a token, bytes


@pytest.fixture
def evaluator(tiny_llama):
    workbench = Workbench(tiny_llama)
    return Evaluator(workbench, builder(workbench))


@pytest.fixture
def text(tiny_llama):
    ids = torch.randint(3, 96, (48,), generator=torch.Generator().manual_seed(0))
    windows = Windows(ids, 16)
    return ScoredText("selection", windows, Teacher.of(tiny_llama, windows))


def test_the_bytes_of_the_cache_are_measured_with_the_latency(evaluator, text):
    assert evaluator.dense(text).cache_bytes_per_token == DENSE_CACHE
    measured = evaluator.measure(VALUES, text)
    assert measured.cache_bytes_per_token == DENSE_CACHE - 2 * (16 - 6) * 4
    assert measured.bytes == evaluator.workbench.inventory.plan_bytes(VALUES)
    assert evaluator.measure(VALUES, text, latency=False).cache_bytes_per_token is None


def test_a_measurement_that_knows_nothing_of_caches_is_read(evaluator, text):
    measured = evaluator.measure(VALUES, text)
    assert Measurement.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    old = {name: value for name, value in measured.to_dict().items() if "cache" not in name}
    assert Measurement.from_dict(old).cache_bytes_per_token is None


WINDOWS, STAGES = 16, (4, 12)
FLAT = Plan.of({"model.embed_tokens": Svd(1)})


@pytest.fixture
def long_text(tiny_llama):
    ids = torch.randint(3, 96, (16 * WINDOWS,), generator=torch.Generator().manual_seed(1))
    windows = Windows(ids, 16)
    return ScoredText("selection", windows, Teacher.of(tiny_llama, windows))


@pytest.mark.parametrize("rivals", [(), ((1e9,) * WINDOWS,)])
def test_a_job_that_no_rival_beats_goes_the_whole_way(evaluator, long_text, rivals):
    outcome = evaluator.run(Job(7, FLAT, STAGES, rivals), long_text)
    assert (outcome.number, outcome.stopped_at, outcome.error) == (7, None, "")
    measured = outcome.measurement
    assert len(measured.windows.divergence) == WINDOWS
    whole = evaluator.score(FLAT, long_text)
    assert measured.figure == pytest.approx(whole.figure, rel=1e-6)
    assert measured.divergence == pytest.approx(whole.divergence, rel=1e-6)
    assert measured.latency_ms > 0
    assert outcome.seconds > 0


@pytest.mark.parametrize(
    ("rival", "stopped_at"), [((0.0,) * WINDOWS, 4), ((*(1e9,) * 2, *(0.0,) * 14), None)]
)
def test_a_job_that_a_rival_beats_is_given_up(evaluator, long_text, rival, stopped_at):
    """Against no divergence at all; and against one whose first windows say nothing sure."""
    outcome = evaluator.run(Job(0, FLAT, STAGES, (rival,)), long_text)
    assert outcome.stopped_at == stopped_at
    if stopped_at is not None:
        assert len(outcome.measurement.windows.divergence) == stopped_at
        assert outcome.measurement.latency_ms is None
        assert outcome.measurement.tokens == stopped_at * 15
        assert outcome.measurement.plan_hash == FLAT.hash


def test_the_second_stage_may_decide(evaluator, long_text):
    ours = evaluator.score(FLAT, long_text).windows.divergence
    rival = (*ours[:4], *(0.0,) * (WINDOWS - 4))
    assert evaluator.run(Job(0, FLAT, STAGES, (rival,)), long_text).stopped_at == STAGES[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("not enough memory"), "not enough memory"),
        (MemoryError(), "MemoryError"),
        (StorageError("the disk is full"), "the disk is full"),
    ],
)
def test_an_error_is_an_outcome(evaluator, long_text, error, words):
    def build(_name, _method):
        raise error

    evaluator.build = build
    outcome = evaluator.run(Job(3, FLAT, STAGES), long_text)
    assert (outcome.number, outcome.measurement) == (3, None)
    assert words in outcome.error


def test_an_interrupt_is_none(evaluator, long_text):
    def build(_name, _method):
        raise KeyboardInterrupt

    evaluator.build = build
    with pytest.raises(KeyboardInterrupt):
        evaluator.run(Job(3, FLAT), long_text)


@pytest.mark.parametrize("stages", [(), STAGES])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_perplexity_that_is_no_number_is_an_error(evaluator, long_text, stages, number):
    weight = evaluator.workbench.model.model.norm.weight
    kept = weight.data.clone()
    weight.data.fill_(number)
    try:
        outcome = evaluator.run(Job(0, VALUES, stages), long_text)
    finally:
        weight.data.copy_(kept)
    assert outcome.measurement is None
    assert "not a finite number" in outcome.error


def test_a_plan_is_compared_with_the_dense_model_next_to_it(evaluator, text, monkeypatch):
    """The machine changes its speed all the time, and once in the middle of a comparison."""
    speeds = (1, 1, 7, 7, 2, 2, 0.5, 0.5, 3, 3, 1, 40)
    calls = iter(speeds)

    class Timer:
        def times(self):
            plan = isinstance(
                evaluator.workbench.model.model.layers[0].self_attn.v_proj, CompressedMatrix
            )
            return [next(calls) * (0.6 if plan else 1.0)] * 3

    monkeypatch.setattr(measuring, "LATENCY_ROUNDS", LATENCY_ROUNDS)
    assert len(speeds) == 2 * LATENCY_ROUNDS
    evaluator.timer = Timer()
    measured = evaluator.measure(VALUES, text)
    assert measured.latency_ms == pytest.approx(0.6 * evaluator.dense_latency.median_ms)


class Stopwatch:
    """In place of the module ``time``: it moves on only while something is timed.

    It is a timer as well, each of whose rounds takes so many seconds.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.rounds = seconds, 1e6, 0

    def monotonic(self) -> float:
        return self.now

    def times(self) -> list[float]:
        self.now += self.seconds
        self.rounds += 1
        return [1.0]


@pytest.mark.parametrize(
    ("share", "rounds"),
    [
        (0.0, LATENCY_ROUNDS),
        (0.99 / (LATENCY_ROUNDS - 1), LATENCY_ROUNDS),
        (1.01 / (LATENCY_ROUNDS - 1), LATENCY_ROUNDS - 1),
        (1.01 / PREFILL_ROUNDS, PREFILL_ROUNDS),
        (100.0, PREFILL_ROUNDS),
    ],
)
def test_no_round_is_begun_when_timing_has_taken_long(evaluator, text, monkeypatch, share, rounds):
    """Where a round of a plan and of the dense model takes a share of the time there is."""
    watch, prompts = Stopwatch(share * MOST_SECONDS / 2), Stopwatch(0.0)
    monkeypatch.setattr(measuring, "LATENCY_ROUNDS", LATENCY_ROUNDS)
    monkeypatch.setattr(measuring, "PREFILL_ROUNDS", PREFILL_ROUNDS)
    monkeypatch.setattr(measuring, "time", watch)
    evaluator.timer, evaluator.prefill_timer = watch, prompts
    measured = evaluator.measure(VALUES, text)
    assert watch.rounds == 2 * rounds
    assert prompts.rounds == PREFILL_ROUNDS
    assert measured.latency_ms == pytest.approx(evaluator.dense_latency.median_ms)


def test_a_plan_is_built_once_for_all_rounds(evaluator, text):
    built = []
    build = evaluator.build
    evaluator.build = lambda name, method: built.append(name) or build(name, method)
    evaluator._times(VALUES)
    assert built == list(VALUES)
