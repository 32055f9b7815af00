"""Scores a plan, never "the current model": perplexity, divergence, bytes and measured latency."""

from __future__ import annotations

import statistics as stats
from dataclasses import dataclass

from autocompress.evaluation.latency import (
    DecodeTimer,
    Latency,
    describe_device,
    prompt_of,
    summarise,
)
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.methods.plan import Plan
from autocompress.records import Measurement
from autocompress.surgery.kv_cache import cache_bytes_per_token
from autocompress.surgery.workbench import Build, Workbench

DENSE = Plan(())


@dataclass(frozen=True)
class ScoredText:
    """A text to score on, with what the dense model says about it.

    Attributes:
        name: ``selection``, ``report`` or ``calibration``.
        windows: its tokens.
        teacher: predictions of the dense model on it.
    """

    name: str
    windows: Windows
    teacher: Teacher


class Evaluator:
    """Measures plans on one model.

    Latency drifts with whatever else the machine does, so each measurement of a plan is taken next
    to one of the dense model, and reported as their ratio times the dense model's latency at the
    start.

    Args:
        workbench: holds the dense model.
        build: makes the layers of a plan.
        dense_latency: of the dense model when the study began; measured when left out.
    """

    def __init__(
        self, workbench: Workbench, build: Build, dense_latency: Latency | None = None
    ) -> None:
        self.workbench, self.build = workbench, build
        self.device = describe_device(workbench.model)
        self.timer = DecodeTimer(workbench.model, prompt_of(workbench.model))
        self.dense_latency = dense_latency or self.timer.measure()

    def dense(self, text: ScoredText) -> Measurement:
        """Measure the dense model."""
        scored = score(self.workbench.model, text.windows, text.teacher)
        return Measurement(
            scored.perplexity,
            scored.kl,
            scored.tokens,
            self.workbench.inventory.dense_bytes,
            self.dense_latency.median_ms,
            self.dense_latency.spread_ms,
            text.name,
            self.device,
            DENSE.hash,
            cache_bytes_per_token(self.workbench.model),
            windows=scored.windows,
        )

    def divergence(self, plan: Plan, text: ScoredText) -> float:
        """Apply a plan and measure only its KL divergence from the dense model, nats per token."""
        with self.workbench.applied(plan, self.build) as model:
            return score(model, text.windows, text.teacher).kl

    def measure(self, plan: Plan, text: ScoredText, *, latency: bool = True) -> Measurement:
        """Apply a plan, score it, and put the model back.

        Args:
            plan: what to measure.
            text: what to score on.
            latency: also measure the time of a decoded token.
        """
        dense_now = self.timer.times() if latency else []
        with self.workbench.applied(plan, self.build) as model:
            scored = score(model, text.windows, text.teacher)
            times = self.timer.times() if latency else []
            cache_bytes = cache_bytes_per_token(model) if latency else None
        median, spread = None, None
        if latency:
            drift = self.dense_latency.median_ms / stats.median(dense_now)
            summary = summarise([time * drift for time in times])
            median, spread = summary.median_ms, summary.spread_ms
        return Measurement(
            scored.perplexity,
            scored.kl,
            scored.tokens,
            self.workbench.inventory.plan_bytes(plan),
            median,
            spread,
            text.name,
            self.device,
            plan.hash,
            cache_bytes,
            windows=scored.windows,
        )
