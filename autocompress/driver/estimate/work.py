"""What a search has to do, in numbers that its stages predict their time and memory from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from autocompress.calibration.builder import MOST_BUILT_BYTES
from autocompress.evaluation.windows import LOGIT_BYTES
from autocompress.records import LayerSpec

LEAST_FINALISTS = 2  # beside a share of the trials: of few nearly all are on the front
FINALISTS_SHARE = 0.5  # of the measured trials; how many are on the front is not known before

Fits = Counter[tuple[tuple[int, int], str]]  # how many options, by shape and name of the method


@dataclass(frozen=True)
class Work:
    """What a search has to do.

    Attributes:
        specs: the matrices.
        vocabulary: of the model.
        context: tokens of a window.
        row_bytes: kept of what the dense model says of a token.
        calibration_tokens: to collect statistics on; 0 when they are in the cache.
        fits: options to fit for the menu.
        timed: options to time by themselves, once for equal layers; ``None`` where latency does not
            count.
        pricings: passes through a compressed model that price every option.
        pricing_tokens: that each of them takes.
        selection_tokens: that each trial is scored on.
        report_tokens: that each finalist is scored on.
        new: whether the dense model is measured as well.
        trials: plans to measure.
        workers: that measure them at a time, in processes of their own if more than one.
        built: layers that uniform baselines need and the menu does not keep.
        plan_bytes: of a compressed model.
        held_bytes: memory of this process with the dense model in it.
        threads: that fit small matrices side by side.
        healed: plans to heal afterwards, about.
        refit_tokens: that the matrices of each of them are refitted on.
        healing_tokens: that each of them is trained on, repeats counted.
    """

    specs: tuple[LayerSpec, ...]
    vocabulary: int
    context: int
    row_bytes: int
    calibration_tokens: int
    fits: Fits = field(hash=False)
    timed: int | None
    pricings: int
    pricing_tokens: int
    selection_tokens: int
    report_tokens: int
    new: bool
    trials: int
    workers: int
    built: Fits = field(hash=False)
    plan_bytes: int
    held_bytes: int
    threads: int
    healed: int = 0
    refit_tokens: int = 0
    healing_tokens: int = 0

    @property
    def at_once(self) -> int:
        """Small matrices that are fitted side by side: each worker has its share of the threads."""
        return min(self.threads, max(self.threads // self.workers, 1) * self.workers)

    @property
    def finalists(self) -> int:
        """About how many plans are measured on the report text."""
        return finalists_of(self.trials)

    @property
    def teacher_bytes(self) -> int:
        """What is kept of the dense model's predictions on both texts."""
        return self.row_bytes * (self.selection_tokens + self.report_tokens)

    @property
    def scoring_bytes(self) -> int:
        """What the process holds while it scores: logits of a batch with what is made of them."""
        logits = 3 * max(LOGIT_BYTES, 4 * self.vocabulary * self.context)
        return self.held_bytes + self.teacher_bytes + logits

    @property
    def built_bytes(self) -> int:
        """Layers of plans that are kept while others are measured."""
        return min(MOST_BUILT_BYTES, self.trials * self.plan_bytes)


def finalists_of(trials: int) -> int:
    """About how many of so many trials are measured on the report text."""
    return min(trials, math.ceil(FINALISTS_SHARE * trials) + LEAST_FINALISTS)


@dataclass(frozen=True)
class Forecast:
    """One stage of a search, as predicted.

    Attributes:
        name: what is done.
        work: how much of it.
        seconds: about how long.
        memory_bytes: about how much the whole process holds at most.
    """

    name: str
    work: str
    seconds: float
    memory_bytes: int
