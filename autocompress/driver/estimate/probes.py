"""Short measurements on this machine, from which a dry run predicts how long a search will take.

Each gives a law with two measured constants. Machines drift and caches have sizes, so what comes of
them is an estimate, good for telling minutes from hours.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from autocompress.calibration.menu import judge
from autocompress.calibration.statistics import stream_statistics
from autocompress.evaluation.latency import DecodeTimer, prompt_of
from autocompress.evaluation.scoring import Teacher
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.keep import Keep
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec
from autocompress.session.session import Session
from autocompress.space.space import Space

FIRST_TOKENS = 32
SECONDS_OF_TOKENS = 0.5  # that the longer of two passes over tokens should take
REPEATS = 2  # of each pass; the quicker counts, for other programs only ever add to it
LONG = 0.5  # seconds of a pass, from which on it is not repeated: what disturbs it is little
SIDES = (64, 128, 256, 512)  # of the square matrices that options are fitted to; the first warms up
SECONDS_OF_SIDES = 1.5  # spent on them, after which no larger one is begun
FITTED_OF_A_KIND = 5  # options of a method, spread over its sizes
TIMED_TOKENS = 6


class PerToken(NamedTuple):
    """Seconds of a pass over tokens: ``fixed + each * tokens``."""

    fixed: float
    each: float

    def seconds(self, tokens: int) -> float:
        """Predict a pass over so many tokens."""
        return self.fixed + self.each * tokens


class PerElement(NamedTuple):
    """Seconds of one fit: ``elements * (flat + deep * shorter side)``.

    Rounding visits each element so often; factorising takes each as often as there are columns.
    """

    flat: float
    deep: float

    def seconds(self, shape: tuple[int, int]) -> float:
        """Predict the fit of a matrix of a shape."""
        return shape[0] * shape[1] * (self.flat + self.deep * min(shape))


@dataclass(frozen=True)
class Speed:
    """What this machine was seen to take for the model.

    Attributes:
        scoring: a pass that predicts tokens and compares with the dense model.
        calibrating: a pass that collects statistics.
        decoding_ms: one decoded token of the dense model.
        fits: one fit of each method, by the method's name.
    """

    scoring: PerToken
    calibrating: PerToken
    decoding_ms: float
    fits: Mapping[str, PerElement]


def probe(session: Session, space: Space) -> Speed:
    """Measure scoring, calibration, decoding and fits, some seconds in all."""
    model, ids = session.loaded.model, session.calibration_ids

    def score(tokens: int) -> None:
        Teacher.of(model, session.windows(ids[:tokens]))

    def calibrate(tokens: int) -> None:
        batches = [window[None] for window in session.windows(ids[:tokens])]
        specs = session.workbench.inventory.layers
        stream_statistics(model, specs, batches, lambda _metrics: None)

    timer = DecodeTimer(model, prompt_of(model, begin=session.begin), TIMED_TOKENS)
    return Speed(
        per_token(score, len(ids)),
        per_token(calibrate, len(ids)),
        statistics.median(timer.times()),
        per_element(space, session.workbench.inventory.layers, ids.device),
    )


def per_token(run: Callable[[int], None], most: int) -> PerToken:
    """Time a pass over few tokens and over more, and lay a line through both.

    Args:
        run: the pass over so many tokens.
        most: tokens that there are.
    """
    few = min(FIRST_TOKENS, most)
    run(few)  # the first use of everything
    short = _seconds(lambda: run(few))
    repeats = REPEATS if short < LONG else 1
    short = min([short, *(_seconds(lambda: run(few)) for _ in range(repeats - 1))])
    many = min(most, max(4 * few, int(few * SECONDS_OF_TOKENS / short)))
    if many <= few:
        return PerToken(0.0, short / few)
    long = min(_seconds(lambda: run(many)) for _ in range(repeats))
    each = (long - short) / (many - few)
    if each <= 0:  # disturbed
        return PerToken(0.0, long / many)
    return PerToken(max(short - each * few, 0.0), each)


def per_element(
    space: Space, specs: Iterable[LayerSpec], device: torch.device
) -> dict[str, PerElement]:
    """Fit options of square matrices of rising size, and read a law for each method off them.

    The matrices are random, in random metrics: the steps of a fit do not depend on what it fits.
    """
    fitted = [spec for spec in specs if not space.leaves(spec)]
    if not fitted:
        return {}
    largest = max(fitted, key=lambda spec: min(spec.shape))
    times: dict[str, list[tuple[int, float]]] = defaultdict(list)
    spent = 0.0
    for side in (side for side in SIDES if side <= max(min(largest.shape), SIDES[1])):
        if spent > SECONDS_OF_SIDES:
            break
        square = replace(
            largest, kind=Kind.LINEAR, out_features=side, in_features=side, bias=False, tied=()
        )
        for name, each in _fit_times(space, square, device).items():
            if side > SIDES[0]:
                spent += sum(each)
                times[name].append((side, statistics.mean(each)))
    return {name: _law(points[-2:]) for name, points in times.items()}


def _law(points: Sequence[tuple[int, float]]) -> PerElement:
    """Lay the law through the times of one or two sides."""
    densities = [(side, seconds / side**2) for side, seconds in points]
    (small, low), (large, high) = densities[0], densities[-1]
    deep = max((high - low) / (large - small), 0.0) if large > small else 0.0
    deep = min(deep, high / large)
    return PerElement(high - deep * large, deep)


def _fit_times(space: Space, spec: LayerSpec, device: torch.device) -> dict[str, list[float]]:
    """Seconds of some options of a matrix by method; what all of them share is spread over them."""
    by_kind: dict[type[Method], list[Method]] = defaultdict(list)
    for method in space.options(spec):
        if method != Keep():
            by_kind[type(method)].append(method)
    problem = _problem(spec, device)
    times = {}
    for kind, methods in by_kind.items():
        shared = _seconds(partial(kind.prepare, problem, methods))
        spread = methods[:: -(-len(methods) // FITTED_OF_A_KIND)]  # they are in order of bytes
        each = [_seconds(partial(_fit, problem, method)) for method in spread]
        times[kind.name] = [seconds + shared / len(methods) for seconds in each]
    return times


def _fit(problem: MatrixProblem, method: Method) -> None:
    judge(problem, method.build(problem))


def _problem(spec: LayerSpec, device: torch.device) -> MatrixProblem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    grams = [
        vectors.T @ vectors / len(vectors) for vectors in (normal(4 * n, n) for n in spec.shape)
    ]
    weight = normal(*spec.shape).to(device, getattr(torch, spec.dtype))
    return MatrixProblem(
        spec, weight, Metric((Curvature(grams[0], grams[1], 4 * max(spec.shape)),))
    )


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
