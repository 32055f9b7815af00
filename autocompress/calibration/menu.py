"""The menu: each layer's options worth considering, with their bytes and predicted damage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from autocompress.calibration.builder import LayerBuilder
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.keep import Keep
from autocompress.numerics.metric import MOST_WEIGHTED, apply_gram
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.inventory import placed_entries

LEAST_PARAMETERS_TO_SHARE = 4_000_000  # of a matrix, from which on several threads share it
MOST_PARAMETERS_REMEMBERED = 1_000_000  # of a matrix whose forms may share all that is factorised
WORK_BYTES = 60  # per parameter of a matrix while it is fitted: fp64 copies and factors
LEAST_WORK_BYTES = 2**30  # that threads may use together, even for a smaller model


@dataclass(frozen=True)
class Fit:
    """How well one method stores one matrix.

    Attributes:
        damage: predicted rise of the loss, nats per token.
        cosine: cosine between the outputs of the dense and of the compressed layer over the
            calibration text.
    """

    damage: float
    cosine: float


@dataclass(frozen=True)
class Option:
    """One method for one layer.

    Attributes:
        method: the method.
        bytes: exact bytes of the tensors it stores.
        file_bytes: the same with the entries in the file's header.
        damage: predicted rise of the loss, nats per token.
        cosine: agreement of the outputs.
    """

    method: Method
    bytes: int
    file_bytes: int
    damage: float
    cosine: float

    def is_beaten_by(self, other: Option) -> bool:
        """Whether another takes no more bytes in the file and does no more damage."""
        return other.file_bytes <= self.file_bytes and other.damage <= self.damage


@dataclass(frozen=True)
class LayerMenu:
    """All options of one layer, by rising bytes."""

    spec: LayerSpec
    options: tuple[Option, ...]

    @property
    def undominated(self) -> tuple[Option, ...]:
        """Options no other beats in both bytes and damage, by rising bytes and falling damage."""
        kept: list[Option] = []
        for option in sorted(self.options, key=lambda o: (o.file_bytes, o.damage)):
            if not kept or option.damage < kept[-1].damage:
                kept.append(option)
        return tuple(kept)


@dataclass(frozen=True)
class Menu:
    """The menus of all layers, in the order of the model."""

    layers: tuple[LayerMenu, ...]

    def __getitem__(self, name: str) -> LayerMenu:
        return next(layer for layer in self.layers if layer.spec.name == name)

    @property
    def options(self) -> int:
        """Number of options over all layers."""
        return sum(len(layer.options) for layer in self.layers)


def build_menu(
    builder: LayerBuilder,
    options_of: Callable[[LayerSpec], Sequence[Method]],
    specs: Iterable[LayerSpec],
    *,
    advance: Callable[[str], None] = lambda _name: None,
) -> Menu:
    """Fit every option of every layer, keeping the layers worth keeping and the figures of all.

    Large layers are worked on one at a time by all threads, small ones by a thread each, as many as
    take no more memory together than the model. Of each, one option is held at a time, and of large
    ones what is factorised for one form. What the cache already knows is not fitted again.

    Args:
        builder: builds and keeps layers.
        options_of: the methods to consider for a layer.
        specs: the layers.
        advance: called with a layer's name when it is done.
    """
    wanted = list(specs)
    layers: dict[str, LayerMenu] = {}
    small = [spec for spec in wanted if spec.parameters < LEAST_PARAMETERS_TO_SHARE]
    # The steps of a small matrix are short: sharing one among threads costs more than it saves.
    threads = torch.get_num_threads()
    workers = min(threads, most_at_once(small, builder.workbench.inventory.dense_bytes))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = [pool.submit(_layer_menu, builder, spec, options_of(spec)) for spec in small]
        for done in as_completed(running):
            menu = done.result()
            layers[menu.spec.name] = menu
            advance(menu.spec.name)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread of the pool set holds for those to come
    for spec in wanted:
        if spec.name not in layers:
            layers[spec.name] = _layer_menu(builder, spec, options_of(spec))
            advance(spec.name)
    builder.forget_problem()
    return Menu(tuple(layers[spec.name] for spec in wanted))


def most_at_once(specs: Sequence[LayerSpec], model_bytes: int) -> int:
    """How many of these layers can be fitted side by side in as much memory as the model takes."""
    largest = max((spec.parameters for spec in specs), default=1)
    return max(1, max(model_bytes, LEAST_WORK_BYTES) // (largest * WORK_BYTES))


def _layer_menu(builder: LayerBuilder, spec: LayerSpec, methods: Sequence[Method]) -> LayerMenu:
    content = builder.content_of(spec.name)
    addresses = {method: builder.key(spec.name, method) for method in methods}
    known = builder.cache.record("fits", content) or {}
    options = {m: _option(m, spec, known[key]) for m, key in addresses.items() if key in known}
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
    in_order = (options[method] for method in methods)
    menu = LayerMenu(spec, tuple(sorted(in_order, key=lambda each: (each.bytes, each.damage))))
    worth_keeping = {option.method for option in menu.undominated}
    for method in fresh:
        if method not in worth_keeping:  # it was at its time, but a later one is better
            builder.drop(spec.name, method)
    return menu


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
        return _option(method, spec, {"damage": 0.0, "cosine": 1.0})
    layer = builder.fit(spec.name, method)
    fit = judge(builder.problem(spec.name), layer)
    if not reached:
        fit = replace(fit, damage=0.0)  # none is known, and what the plain metric says is no loss
    option = _option(method, spec, asdict(fit))
    if not any(map(option.is_beaten_by, others)):
        builder.keep(spec.name, method, layer)
    return option


def _option(method: Method, spec: LayerSpec, fit: Mapping[str, float]) -> Option:
    return Option(method, method.cost(spec), file_bytes(method, spec), **fit)


def _forms(methods: Iterable[Method]) -> Iterable[list[Method]]:
    """Methods that share most of what they factorise: of one kind, in one kind of Gram matrices."""
    forms: dict[tuple[type[Method], object], list[Method]] = {}
    for method in methods:
        forms.setdefault((type(method), getattr(method, "gram", None)), []).append(method)
    return forms.values()


def judge(problem: MatrixProblem, layer: CompressedMatrix) -> Fit:
    """Predict the damage of a built layer, and compare its outputs with the dense layer's."""
    dense = problem.weight32
    compressed = layer.to_dense().to(dense.device)
    return Fit(problem.metric.damage(compressed - dense), output_cosine(problem, dense, compressed))


def output_cosine(problem: MatrixProblem, dense: Tensor, compressed: Tensor) -> float:
    """Cosine of ``W x`` and ``W' x`` over the calibration inputs, from the Gram matrix alone."""
    term = problem.metric.terms[0]
    lookup = problem.spec.kind is Kind.EMBEDDING
    gram = term.rows if lookup else term.columns
    gram = gram.to(dense)
    if lookup and gram.ndim == 2:
        sums = _inner_products(gram, dense, compressed)
    else:  # rows do not interact
        at_once = max(1, MOST_WEIGHTED // dense.shape[1])
        parts = zip(torch.split(dense, at_once), torch.split(compressed, at_once), strict=True)
        grams = torch.split(gram, at_once) if lookup else itertools.repeat(gram)
        sums = torch.stack(
            [
                _inner_products(each, *((a, b) if lookup else (a.T, b.T)))
                for each, (a, b) in zip(grams, parts, strict=False)
            ]
        ).sum(0)
    both, first, second = sums.tolist()
    norm = math.sqrt(first * second)
    return both / norm if norm > 0 else 1.0


def _inner_products(gram: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Of both, of the first and of the second with itself under a Gram matrix: ``[3]``."""
    weighted = apply_gram(gram, a)
    both, first = (weighted * b).sum(), (weighted * a).sum()
    return torch.stack([both, first, (apply_gram(gram, b) * b).sum()])


def file_bytes(method: Method, spec: LayerSpec) -> int:
    """Bytes of a matrix in the file: its tensors, and a bound on their entries in the header."""
    return sum(entry.most_bytes for entry in placed_entries(method, spec))
