"""How long each stage of a search may take and how much memory, from its work and probed speeds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from autocompress.calibration.builder import MOST_BUILT_BYTES
from autocompress.calibration.fitting import LEAST_PARAMETERS_TO_SHARE, WORK_BYTES
from autocompress.calibration.latency_table import BYTES_AT_ONCE, MOST_STREAMED
from autocompress.calibration.layer_timing import ENOUGH_SECONDS
from autocompress.driver.estimate.probes import PerElement, Speed
from autocompress.evaluation.divergence import TOP_K
from autocompress.evaluation.evaluator import LATENCY_ROUNDS, LATENCY_TOKENS
from autocompress.evaluation.latency import PROMPT_TOKENS, ROUND_TOKENS, ROUNDS, WARM_UP_TOKENS
from autocompress.evaluation.scoring import EXACT_VOCABULARY
from autocompress.evaluation.windows import LOGIT_BYTES
from autocompress.numerics.metric import FULL_GRAM_LIMIT
from autocompress.records import Kind, LayerSpec

SCORING_SLOWDOWN = 1.5  # of a compressed plan, whose layers are unpacked first
DECODING_SLOWDOWN = 4.0  # of codes on a CPU, which unpacks them for each token
# Of training on a token, in passes of the scoring: the dense model, and the other there and back.
TRAINING_PASSES = 6
# Of fitting matrices anew: the dense model through each block, the compressed one up to each of its
# matrices and on, and the fits.
REFIT_PASSES = 12
TRAINED_BYTES = 24  # of each number: its latent, gradient, two moments, and what it was before
# Of pricing on a token: forth through the model, forth and back through each block, and what the
# options of the matrices take.
PRICING_PASSES = 10
LEAST_FINALISTS = 2  # beside a share of the trials: of few nearly all are on the front
FINALISTS_SHARE = 0.5  # of the measured trials; how many are on the front is not known before
TIMING_SECONDS = 4 * ENOUGH_SECONDS  # of an option, one like it, and dense ones; large: more

Fits = Counter[tuple[tuple[int, int], str]]  # how many options, by shape and name of the method


@dataclass(frozen=True)
class Work:
    """What a search has to do.

    Attributes:
        specs: the matrices.
        vocabulary: of the model.
        context: tokens of a window.
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
        built: layers that hand-written plans need and the menu does not keep.
        plan_bytes: of a compressed model.
        held_bytes: memory of this process with the dense model in it.
        threads: that fit small matrices side by side.
        healed: plans to heal afterwards, about.
        refit_tokens: that the matrices of each of them are fitted anew on.
        healing_tokens: that each of them is trained on, repeats counted.
    """

    specs: tuple[LayerSpec, ...]
    vocabulary: int
    context: int
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


def finalists_of(trials: int) -> int:
    """About how many of so many trials are measured on the report text."""
    return min(trials, math.ceil(FINALISTS_SHARE * trials) + LEAST_FINALISTS)


@dataclass(frozen=True)
class Stage:
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


def predict_stages(work: Work, speed: Speed) -> tuple[Stage, ...]:
    """Predict every stage, in order; a stage without work takes no time.

    Args:
        work: what there is to do.
        speed: what the probes measured.
    """
    scored = work.held_bytes + _teacher_bytes(work) + _logit_bytes(work)
    built = min(MOST_BUILT_BYTES, work.trials * work.plan_bytes)
    return (
        _dense(work, speed, scored),
        Stage(
            "calibrating",
            f"{work.calibration_tokens:,} tokens" if work.calibration_tokens else "in the cache",
            speed.calibrating.seconds(work.calibration_tokens) if work.calibration_tokens else 0.0,
            work.held_bytes + _teacher_bytes(work) + _logit_bytes(work) + _gram_bytes(work.specs),
        ),
        Stage(
            "fitting",
            f"{work.fits.total():,} options" if work.fits else "in the cache",
            _fit_seconds(work.fits, speed, work.at_once),
            work.held_bytes + _teacher_bytes(work) + _fit_bytes(work),
        ),
        *_timing_layers(work),
        Stage(
            "pricing options",
            f"about {work.pricings} passes of {work.pricing_tokens:,} tokens",
            work.pricings * PRICING_PASSES * speed.scoring.seconds(work.pricing_tokens),
            scored + min(built, work.plan_bytes),
        ),
        _trials(work, speed, scored + built),
        Stage(
            "final measurements",
            f"about {work.finalists} plans on {work.report_tokens:,} tokens",
            _scoring(speed, work.report_tokens) * work.finalists / work.workers,
            (scored + built) * work.workers,
        ),
        *_healing(work, speed, scored),
    )


def _healing(work: Work, speed: Speed, memory: int) -> tuple[Stage, ...]:
    if not work.healed:
        return ()
    at_once = min(work.workers, work.healed)
    parameters = sum(spec.parameters for spec in work.specs)
    training = memory + TRAINED_BYTES * parameters
    stages = (
        ("fitting anew", work.refit_tokens, REFIT_PASSES, memory),
        ("healing", work.healing_tokens, TRAINING_PASSES, training),
    )
    return tuple(
        Stage(
            name,
            f"about {work.healed} plans on {tokens:,} tokens",
            work.healed * passes * speed.scoring.seconds(tokens) / at_once,
            held * at_once,
        )
        for name, tokens, passes, held in stages
        if tokens
    )


def _dense(work: Work, speed: Speed, memory: int) -> Stage:
    """The dense model predicts both texts once to be compared with."""
    tokens = work.selection_tokens + work.report_tokens
    rounds = ROUNDS + 1 if work.new else 0
    decoding = rounds * (WARM_UP_TOKENS + ROUND_TOKENS) * speed.decoding_ms / 1000
    return Stage(
        "dense model", f"{tokens:,} tokens", speed.scoring.seconds(tokens) + decoding, memory
    )


def _timing_layers(work: Work) -> tuple[Stage, ...]:
    if work.timed is None:
        return ()
    what = f"{work.timed:,} options, {1000 * TIMING_SECONDS:.0f} ms or more each"
    largest = max(spec.parameters for spec in work.specs)
    layers = min(BYTES_AT_ONCE, 8 * largest * work.timed)
    streamed = min(MOST_STREAMED, 4 * sum(spec.parameters for spec in work.specs))
    return (
        Stage(
            "timing layers",
            what if work.timed else "in the cache",
            TIMING_SECONDS * work.timed,
            work.held_bytes + _teacher_bytes(work) + layers + streamed,
        ),
    )


def _trials(work: Work, speed: Speed, memory: int) -> Stage:
    each = _scoring(speed, work.selection_tokens) + _timing(speed)
    seconds = work.trials * each + _fit_seconds(work.built, speed, 1)
    what = f"{work.trials} plans on {work.selection_tokens:,} tokens"
    if work.workers > 1:
        what += f", {work.workers} at a time"
    return Stage("trials", what, seconds / work.workers, memory * work.workers)


def _scoring(speed: Speed, tokens: int) -> float:
    """Seconds that scoring one compressed plan on a text takes."""
    return SCORING_SLOWDOWN * speed.scoring.seconds(tokens)


def _timing(speed: Speed) -> float:
    """Seconds that the latency of one plan takes, measured in turn with the dense model's."""
    tokens = LATENCY_ROUNDS * (WARM_UP_TOKENS + LATENCY_TOKENS)
    prompts = 2 * LATENCY_ROUNDS * speed.scoring.each * PROMPT_TOKENS
    return prompts + tokens * (1 + DECODING_SLOWDOWN) * speed.decoding_ms / 1000


def _fit_seconds(fits: Fits, speed: Speed, threads: int) -> float:
    """Small matrices are fitted side by side; of large ones a thread has its share."""
    return sum(
        count * _law_of(name, speed).seconds(shape) for (shape, name), count in fits.items()
    ) / max(threads, 1)


def _law_of(name: str, speed: Speed) -> PerElement:
    """The law of a method, or the mean of all where it had no option in the probes."""
    laws = list(speed.fits.values())
    if name in speed.fits or not laws:
        return speed.fits.get(name, PerElement(0.0, 0.0))
    return PerElement(*(statistics.fmean(constants) for constants in zip(*laws, strict=True)))


def _teacher_bytes(work: Work) -> int:
    """What is kept of the dense model's predictions on both texts."""
    exact = work.vocabulary <= EXACT_VOCABULARY
    row = 2 * work.vocabulary + 8 if exact else 8 * min(TOP_K, work.vocabulary)
    return row * (work.selection_tokens + work.report_tokens)


def _logit_bytes(work: Work) -> int:
    """Logits of a batch with what is made of them."""
    return 3 * max(LOGIT_BYTES, 4 * work.vocabulary * work.context)


def _gram_bytes(specs: Sequence[LayerSpec]) -> int:
    """The most Gram matrices at a time: those of one block, or of one matrix outside the blocks."""
    sums: Counter[object] = Counter()
    for spec in specs:
        rows = spec.out_features
        wide = spec.kind is Kind.EMBEDDING or rows > FULL_GRAM_LIMIT
        columns = spec.in_features
        flat = columns > FULL_GRAM_LIMIT
        place = spec.name if spec.depth is None else spec.depth
        sums[place] += 4 * ((rows if wide else rows**2) + (columns if flat else columns**2))
    return max(sums.values(), default=0)


def _fit_bytes(work: Work) -> int:
    """The matrices that are worked on at a time."""
    if not work.fits:
        return 0
    sizes = sorted((spec.parameters for spec in work.specs), reverse=True)
    small = [size for size in sizes if size < LEAST_PARAMETERS_TO_SHARE][: work.threads]
    return WORK_BYTES * max(sizes[0], sum(small))
