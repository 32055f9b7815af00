"""Fits options of many layers, side by side where they are small, and keeps what is worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from typing import TypeVar

import torch

from autocompress.calibration.builder import LayerBuilder
from autocompress.calibration.menu import LayerMenu, Menu, Option, judge
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.records import LayerSpec

LEAST_PARAMETERS_TO_SHARE = 4_000_000  # of a matrix, from which on several threads share it
MOST_PARAMETERS_REMEMBERED = 1_000_000  # of a matrix whose forms may share all that is factorised
WORK_BYTES = 60  # per parameter of a matrix while it is fitted: fp64 copies and factors
LEAST_WORK_BYTES = 2**30  # that threads may use together, even for a smaller model
T = TypeVar("T")


def build_menu(
    builder: LayerBuilder,
    options_of: Callable[[LayerSpec], Sequence[Method]],
    specs: Iterable[LayerSpec],
    *,
    advance: Callable[[str], None] = lambda _name: None,
) -> Menu:
    """Fit every option of every layer, keeping the layers worth keeping and the figures of all.

    Of each layer, one option is held at a time, and of large ones what is factorised for one form.
    What the cache already knows is not fitted again.

    Args:
        builder: builds and keeps layers.
        options_of: the methods to consider for a layer.
        specs: the layers.
        advance: called with a layer's name when it is done.
    """
    wanted = list(specs)
    layers = over_layers(
        builder, wanted, lambda spec: _layer_menu(builder, spec, options_of(spec)), advance
    )
    return Menu(tuple(layers[spec.name] for spec in wanted))


def over_layers(
    builder: LayerBuilder,
    specs: Sequence[LayerSpec],
    work: Callable[[LayerSpec], T],
    advance: Callable[[str], None] = lambda _name: None,
) -> dict[str, T]:
    """Do some work for each layer, and return what came of it by the layer's name.

    Large layers are worked on one at a time by all threads, small ones by a thread each, as many as
    take no more memory together than the model.

    Raises:
        TimeIsUp: the builder's deadline passes before all are done.
    """
    done: dict[str, T] = {}
    small = [spec for spec in specs if spec.parameters < LEAST_PARAMETERS_TO_SHARE]
    # The steps of a small matrix are short: sharing one among threads costs more than it saves.
    threads = torch.get_num_threads()
    workers = min(threads, most_at_once(small, builder.workbench.inventory.dense_bytes))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = {pool.submit(work, spec): spec.name for spec in small}
        for future in as_completed(running):
            name = running[future]
            done[name] = future.result()
            advance(name)
            builder.check_time()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread of the pool set holds for those to come
    for spec in specs:
        if spec.name not in done:
            done[spec.name] = work(spec)
            advance(spec.name)
            builder.check_time()
    builder.forget_problem()
    return done


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
    options = {m: Option.of(m, spec, known[key]) for m, key in addresses.items() if key in known}
    fresh = [method for method in methods if method not in options]
    metric = builder.metrics.get(spec.name) if fresh else None
    reached = metric is None or metric.reached
    for form in _forms(fresh):
        builder.prepare(spec.name, form)
        for method in form:
            option = options[method] = _fitted(
                builder, spec, method, tuple(options.values()), reached=reached
            )
            known[addresses[method]] = {"damage": option.damage, "cosine": option.cosine}
        builder.cache.keep_record("fits", content, known)
        if spec.parameters > MOST_PARAMETERS_REMEMBERED:
            builder.forget_work(spec.name)
    options = {method: options[method] for method in methods}
    worth_keeping = {option.method for option in LayerMenu.of(spec, options.values()).undominated}
    for method in fresh:
        if method not in worth_keeping:  # it was at its time, but a later one is better
            builder.drop(spec.name, method)
    return options


def _layer_menu(builder: LayerBuilder, spec: LayerSpec, methods: Sequence[Method]) -> LayerMenu:
    return LayerMenu.of(spec, fit_layer(builder, spec, methods).values())


def _fitted(
    builder: LayerBuilder,
    spec: LayerSpec,
    method: Method,
    others: Sequence[Option],
    *,
    reached: bool,
) -> Option:
    """Fit and judge one option, and keep the layer unless another option is better."""
    if isinstance(method, Keep):
        return Option.of(method, spec, {"damage": 0.0, "cosine": 1.0})
    layer = builder.fit(spec.name, method)
    fit = judge(builder.problem(spec.name), layer)
    if not reached:
        fit = replace(fit, damage=0.0)  # none is known, and what the plain metric says is no loss
    option = Option.of(method, spec, asdict(fit))
    if not any(map(option.is_beaten_by, others)):
        builder.keep(spec.name, method, layer)
    return option


def _forms(methods: Iterable[Method]) -> Iterable[list[Method]]:
    """Methods that share most of what they factorise: of one kind, in one kind of Gram matrices."""
    forms: dict[tuple[type[Method], object], list[Method]] = {}
    for method in methods:
        forms.setdefault((type(method), getattr(method, "gram", None)), []).append(method)
    return forms.values()


def fit_taken(
    builder: LayerBuilder,
    menu: Menu,
    taken: Mapping[str, Iterable[Method]],
    advance: Callable[[str], None] = lambda _name: None,
) -> Menu:
    """Fit options that are only predicted yet, and correct by them what is predicted of their like.

    Args:
        builder: builds and keeps layers.
        menu: the options of all layers.
        taken: the options to fit by layer name; those that are fitted, or none of the menu's, are
            left as they are.
        advance: called with a layer's name when it is done.
    """
    wanted = {
        layer.spec.name: methods
        for layer in menu.layers
        if (methods := layer.unfitted(taken.get(layer.spec.name, ())))
    }
    specs = [layer.spec for layer in menu.layers if layer.spec.name in wanted]
    fits = over_layers(
        builder, specs, lambda spec: fit_layer(builder, spec, wanted[spec.name]), advance
    )
    return Menu(
        tuple(
            layer.with_fits(fits[layer.spec.name]) if layer.spec.name in fits else layer
            for layer in menu.layers
        )
    )
