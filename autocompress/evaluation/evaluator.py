"""Scores a plan, never "the current model": quality, bytes and measured latency."""

from __future__ import annotations

import math
import statistics as stats
import time
from dataclasses import dataclass
from typing import NamedTuple

from autocompress.errors import AutocompressError
from autocompress.evaluation.jobs import Job, Outcome
from autocompress.evaluation.latency import (
    DecodeTimer,
    Latency,
    PrefillTimer,
    describe_device,
    prompt_of,
    summarise,
)
from autocompress.evaluation.scoring import Score, Teacher, score, scores
from autocompress.evaluation.stages import clearly_worse
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
from autocompress.runtime.kv_cache import cache_bytes_per_token
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.workbench import Build, Workbench

DENSE, KEEP = Plan(()), Keep()
# Of the plan and of the dense model in turn: short ones, so that what disturbs the machine for
# a moment meets both or one ratio of many.
LATENCY_ROUNDS = 6
LATENCY_TOKENS = 4  # timed in a round
PREFILL_ROUNDS = 2  # of these also read a prompt
MOST_SECONDS = 8.0  # of timing a plan, after which no round is begun but those that read a prompt


@dataclass(frozen=True)
class ScoredText:
    """A text to score on, with what the dense model says about it.

    Attributes:
        name: ``selection``, ``report`` or ``calibration``.
        windows: its tokens.
        teacher: predictions of the dense model on it.
        seconds: that the dense model took for them.
    """

    name: str
    windows: Windows
    teacher: Teacher
    seconds: float = 0.0


@dataclass(frozen=True)
class PricingTexts:
    """What prices are found on, and what the plans that they lead to are judged by.

    Attributes:
        slopes: text that the divergence is differentiated on; not the report text.
        check: another, so that what fits the first by chance is not taken.
    """

    slopes: ScoredText
    check: ScoredText


class _Times(NamedTuple):
    """Of one model: a decoded token, a prompt in milliseconds, bytes of the cache a token."""

    decode: Latency
    prefill_ms: float
    cache_bytes: int | None


class Evaluator:
    """Measures plans on one model.

    Latency drifts with whatever else the machine does, so each round of a plan is timed next to one
    of the dense model. Reported is the median of the rounds' ratios times the dense model's latency
    at the start.

    Args:
        workbench: holds the dense model.
        build: makes the layers of a plan.
        dense_latency: of the dense model when the study began; measured when left out.
        begin: tokens that every prompt starts with.
    """

    def __init__(
        self,
        workbench: Workbench,
        build: Build,
        dense_latency: Latency | None = None,
        begin: tuple[int, ...] = (),
    ) -> None:
        self.workbench, self.build = workbench, build
        self.device = describe_device(workbench.model)
        prompt = prompt_of(workbench.model, begin=begin)
        self.timer = DecodeTimer(workbench.model, prompt, LATENCY_TOKENS)
        self.prefill_timer = PrefillTimer(workbench.model, begin=begin)
        self.dense_latency = dense_latency or DecodeTimer(workbench.model, prompt).measure()

    def dense(self, text: ScoredText) -> Measurement:
        """Measure the dense model; its predictions have been scored when they were kept."""
        scored = text.teacher.own_score
        prefill_ms = stats.median(self.prefill_timer.times())
        timed = _Times(self.dense_latency, prefill_ms, cache_bytes_per_token(self.workbench.model))
        return self._measurement(DENSE, text, scored, timed)

    def score(self, plan: Plan | Compressed, text: ScoredText) -> Score:
        """Apply a plan and score it, without its latency."""
        with self.workbench.applied(plan, self.build) as model, dense_copies(model):
            return score(model, text.windows, text.teacher)

    def measure(
        self, plan: Plan | Compressed, text: ScoredText, *, latency: bool = True
    ) -> Measurement:
        """Apply a plan, score it on all of a text, and put the model back.

        Args:
            plan: what to measure.
            text: what to score on.
            latency: also measure the times of a decoded token and of a prompt.
        """
        alone = Compressed.of(plan).plan
        timed = self._times(alone) if latency else None
        return self._measurement(alone, text, self.score(plan, text), timed)

    def run(self, job: Job, text: ScoredText) -> Outcome:
        """Do a job of a search: score its plan in stages, and give it up where it is beaten.

        What goes the whole way is timed as well. Errors that the next plan need not have become the
        outcome's ``error``.
        """
        started = time.monotonic()
        measurement, stopped_at, error = None, None, ""
        try:
            with self.workbench.applied(job.plan, self.build) as model, dense_copies(model):
                # More and more windows, until there are no more or the plan is clearly beaten.
                for scored in scores(model, text.windows, text.teacher, job.stages):
                    if clearly_worse(scored.windows.divergence, job.rivals):
                        break
            unfinished = len(scored.windows.tokens) < len(text.windows)
            stopped_at = len(scored.windows.tokens) if unfinished else None
            timed = None if unfinished else self._times(job.plan)
            measurement = self._measurement(job.plan, text, scored, timed)
            if not math.isfinite(measurement.figure):
                name = text.teacher.objective.gauge.figure
                measurement, error = None, f"the {name} is not a finite number"
        except (AutocompressError, RuntimeError, MemoryError) as failure:
            error = str(failure) or type(failure).__name__
        return Outcome(job.number, measurement, stopped_at, error, time.monotonic() - started)

    def _times(self, plan: Plan) -> _Times:
        """Time a plan and the dense model in turn, on the scale of the dense model at the start."""
        layers = {}
        for name, method in plan.items():
            if method != KEEP:
                layers[name] = self.build(name, method)
        decode: list[float] = []
        prefill: list[float] = []
        started = time.monotonic()
        for number in range(LATENCY_ROUNDS):
            if number >= PREFILL_ROUNDS and time.monotonic() - started > MOST_SECONDS:
                break
            drift = self.dense_latency.median_ms / stats.median(self.timer.times())
            with self.workbench.applied(plan, lambda name, _method: layers[name]) as model:
                decode.append(drift * stats.median(self.timer.times()))
                if number < PREFILL_ROUNDS:
                    prefill += [drift * time for time in self.prefill_timer.times()]
                    cache_bytes = cache_bytes_per_token(model)
        return _Times(summarise(decode), stats.median(prefill), cache_bytes)

    def _measurement(
        self, plan: Plan, text: ScoredText, scored: Score, timed: _Times | None
    ) -> Measurement:
        return Measurement(
            scored.figure,
            scored.loss,
            scored.divergence,
            scored.tokens,
            self.workbench.inventory.plan_bytes(plan),
            timed and timed.decode.median_ms,
            timed and timed.decode.spread_ms,
            text.name,
            self.device,
            plan.hash,
            timed and timed.cache_bytes,
            timed and timed.prefill_ms,
            scored.windows,
            scored.cosine if math.isfinite(scored.cosine) else None,
        )
