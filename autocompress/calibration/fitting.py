"""Fits options of many layers, side by side where they are small, and keeps what is worth it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.menu import LayerMenu, Menu, Option, judge
from autocompress.crew import Crew
from autocompress.errors import TimeIsUp
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.progress import Advance
from autocompress.records import LayerSpec

LEAST_PARAMETERS_TO_SHARE = 4_000_000  # of a matrix, from which on several threads share it
MOST_PARAMETERS_REMEMBERED = 1_000_000  # of a matrix whose forms may share all that is factorised
WORK_BYTES = 60  # per parameter of a matrix while it is fitted: fp64 copies and factors
LEAST_WORK_BYTES = 2**30  # that threads may use together, even for a smaller model
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class LayerWork(Protocol[T_co]):
    """Work on one layer. Picklable, and small: layers and figures are kept in the cache."""

    @property
    def spec(self) -> LayerSpec:
        """The layer."""

    def done_with(self, builder: LayerBuilder) -> T_co:
        """Do it."""


@dataclass(frozen=True)
class LayerFits:
    """Fit and judge some options of a layer; see ``fit_layer``."""

    spec: LayerSpec
    methods: tuple[Method, ...]

    def done_with(self, builder: LayerBuilder) -> dict[Method, Option]:
        """See ``LayerWork``."""
        return fit_layer(builder, self.spec, self.methods)


@dataclass(frozen=True)
class _Share:
    """Work on some layers as a task of a crew, whose desks have a ``builder``."""

    works: tuple[LayerWork[Any], ...]

    def done_on(self, desk: Any) -> dict[str, Any]:
        """See ``Task``."""
        return over_layers(desk.builder, self.works)


def build_menu(
    builder: LayerBuilder,
    options_of: Callable[[LayerSpec], Sequence[Method]],
    specs: Iterable[LayerSpec],
    *,
    advance: Advance = lambda _steps: None,
    deadline: float = math.inf,
    crew: Crew | None = None,
) -> Menu:
    """Fit every option of every layer, keeping the layers worth keeping and the figures of all.

    Of each layer, one option is held at a time, and of large ones what is factorised for one form.
    What the cache already knows is not fitted again.

    Args:
        builder: builds and keeps layers.
        options_of: the methods to consider for a layer.
        specs: the layers.
        advance: see ``over_layers``.
        deadline: see ``over_layers``.
        crew: see ``over_layers``.
    """
    wanted = list(specs)
    works = [LayerFits(spec, tuple(options_of(spec))) for spec in wanted]
    fits = over_layers(builder, works, advance, deadline=deadline, crew=crew)
    return Menu(tuple(LayerMenu.of(spec, fits[spec.name].values()) for spec in wanted))


def over_layers(
    builder: LayerBuilder,
    works: Sequence[LayerWork[T]],
    advance: Advance = lambda _steps: None,
    *,
    deadline: float = math.inf,
    crew: Crew | None = None,
) -> dict[str, T]:
    """Do some work for each layer, and return what came of it by the layer's name.

    Without a crew large layers are worked on one at a time by all threads, small ones by a thread
    each, as many as take no more memory together than the model.

    Args:
        builder: builds and keeps layers.
        works: what to do, once for a layer.
        advance: called with 1 for each that is done.
        deadline: of ``time.monotonic``, after which no layer is begun.
        crew: does the work where it is idle, each of its workers with a builder of its own.

    Raises:
        TimeIsUp: the deadline passes before all are done.
    """
    if crew is not None and crew.idle and len(works) > 1:
        shares = crew.do(
            _shares(works, torch.get_num_threads() // crew.workers),
            lambda _number, found: advance(len(found)),
            deadline,
        )
        return {name: found for share in shares for name, found in share.items()}

    def check_time() -> None:
        if time.monotonic() >= deadline:
            raise TimeIsUp.during("fitting options")

    done: dict[str, T] = {}
    longest_first = _longest_first(works)
    small = [w for w in longest_first if w.spec.parameters < LEAST_PARAMETERS_TO_SHARE]
    # The steps of a small matrix are short: sharing one among threads costs more than it saves.
    threads = torch.get_num_threads()
    dense_bytes = builder.workbench.inventory.dense_bytes
    workers = min(threads, most_at_once([work.spec for work in small], dense_bytes))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = {pool.submit(work.done_with, builder): work.spec.name for work in small}
        for future in as_completed(running):
            done[running[future]] = future.result()
            advance(1)
            check_time()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread of the pool set holds for those to come
    for work in works:
        if work.spec.name not in done:
            done[work.spec.name] = work.done_with(builder)
            advance(1)
            check_time()
    builder.forget_problem()
    return done


def _shares(works: Sequence[LayerWork[Any]], threads: int) -> list[_Share]:
    """Shares of work, the largest matrices first: small ones as many as a worker has threads."""
    longest_first = _longest_first(works)
    large = [work for work in longest_first if work.spec.parameters >= LEAST_PARAMETERS_TO_SHARE]
    small = longest_first[len(large) :]
    together = _batched(small, max(1, threads))
    return [_Share((work,)) for work in large] + [_Share(some) for some in together]


def _longest_first(works: Sequence[LayerWork[T]]) -> list[LayerWork[T]]:
    return sorted(works, key=lambda work: -work.spec.parameters)


def _batched(works: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """Cut a sequence into parts of a size; the last may be shorter."""
    return [tuple(works[start : start + size]) for start in range(0, len(works), size)]


def most_at_once(specs: Sequence[LayerSpec], model_bytes: int) -> int:
    """How many of these layers can be fitted side by side in as much memory as the model takes."""
    largest = max((spec.parameters for spec in specs), default=1)
    return max(1, max(model_bytes, LEAST_WORK_BYTES) // (largest * WORK_BYTES))


def fit_layer(
    builder: LayerBuilder, spec: LayerSpec, methods: Sequence[Method]
) -> dict[Method, Option]:
    """Fit and judge some options of a layer, or read from the cache what is known of them.

    Those that are no better than another at its bytes are not kept.
    """
    content = builder.content_of(spec.name)
    addresses = {method: builder.key(spec.name, method) for method in methods}
    known = builder.cache.record("fits", content) or {}
    target = builder.workbench.inventory.target
    options = {
        m: Option.of(m, spec, known[key], target) for m, key in addresses.items() if key in known
    }
    fresh = [method for method in methods if method not in options]
    metric = builder.metrics.get(spec.name) if fresh else None
    reached = metric is None or metric.reached
    for form in _forms(fresh):
        builder.prepare(spec.name, form)
        for method in form:
            option = options[method] = _fitted(
                builder, spec, method, tuple(options.values()), reached=reached
            )
            known[addresses[method]] = {
                "loss_increase": option.loss_increase,
                "cosine": option.cosine,
            }
        builder.cache.keep_record("fits", content, known)
        if spec.parameters > MOST_PARAMETERS_REMEMBERED:
            builder.forget_work(spec.name)
    options = {method: options[method] for method in methods}
    worth_keeping = {option.method for option in LayerMenu.of(spec, options.values()).undominated}
    for method in fresh:
        if method not in worth_keeping:  # it was at its time, but a later one is better
            builder.drop(spec.name, method)
    return options


def _fitted(
    builder: LayerBuilder,
    spec: LayerSpec,
    method: Method,
    others: Sequence[Option],
    *,
    reached: bool,
) -> Option:
    """Fit and judge one option, and keep the layer unless another option is better."""
    target = builder.workbench.inventory.target
    if isinstance(method, Keep):
        return Option.of(method, spec, {"loss_increase": 0.0, "cosine": 1.0}, target)
    layer = builder.fit(spec.name, method)
    fit = judge(builder.problem(spec.name), layer)
    if not reached:
        fit = replace(
            fit, loss_increase=0.0
        )  # none is known, and what the plain metric says is no loss
    option = Option.of(method, spec, asdict(fit), target)
    if not any(map(option.is_beaten_by, others)):
        builder.keep(spec.name, method, layer)
    return option


def _forms(methods: Iterable[Method]) -> Iterable[list[Method]]:
    """Methods that share most of what they factorise: of one kind, in one kind of Gram matrices."""
    forms: dict[tuple[type[Method], object], list[Method]] = {}
    for method in methods:
        forms.setdefault((type(method), method.gram_kind), []).append(method)
    return forms.values()


def fit_taken(
    builder: LayerBuilder,
    menu: Menu,
    taken: Mapping[str, Iterable[Method]],
    advance: Advance = lambda _steps: None,
    *,
    deadline: float = math.inf,
    crew: Crew | None = None,
) -> Menu:
    """Fit options that are only predicted yet, and correct by them what is predicted of their like.

    Args:
        builder: builds and keeps layers.
        menu: the options of all layers.
        taken: the options to fit by layer name; see ``Menu.unfitted``.
        advance: see ``over_layers``.
        deadline: see ``over_layers``.
        crew: see ``over_layers``.
    """
    works = [LayerFits(spec, tuple(methods)) for spec, methods in menu.unfitted(taken)]
    fits = over_layers(builder, works, advance, deadline=deadline, crew=crew)
    return Menu(
        tuple(
            layer.with_fits(fits[layer.spec.name]) if layer.spec.name in fits else layer
            for layer in menu.layers
        )
    )
