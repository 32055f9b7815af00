"""The menu: each layer's options worth considering, with bytes and predicted loss increase."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.target import Target
from autocompress.numerics.metric import MOST_WEIGHTED, Curvature, apply_gram
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.native import NATIVE


class State(StrEnum):
    """How an option's loss increase is known, and whether it is on offer."""

    FITTED = "fitted"
    PREDICTED = "predicted"  # by fits of the same method to other matrices; see ``screening``
    LEFT_OUT = "left out"  # predicted, and too far from the best to be chosen


@dataclass(frozen=True)
class Fit:
    """How well one method stores one matrix.

    Attributes:
        loss_increase: predicted increase of the loss, nats per token.
        cosine: cosine between the outputs of the dense and of the compressed layer over the
            calibration text.
    """

    loss_increase: float
    cosine: float


@dataclass(frozen=True)
class Option:
    """One method for one layer.

    Attributes:
        method: the method.
        bytes: exact bytes of the tensors it stores.
        file_bytes: most bytes that the matrix takes in the target's container, header included.
        loss_increase: increase of the loss to second order, nats per token: of its fit, else as
            predicted.
        cosine: agreement of the outputs; ``None`` before it is fitted.
        state: how the loss increase is known.
        predicted: loss increase before anything of its kind was fitted to this matrix; ``None``
            where it was fitted at once.
    """

    method: Method
    bytes: int
    file_bytes: int
    loss_increase: float
    cosine: float | None = None
    state: State = State.FITTED
    predicted: float | None = None

    @classmethod
    def of(
        cls,
        method: Method,
        spec: LayerSpec,
        fit: Mapping[str, float],
        target: Target = NATIVE,
    ) -> Self:
        """A fitted option, from its loss increase and cosine."""
        size = method.cost(spec), target.matrix_bytes(method, spec)
        return cls(method, *size, fit["loss_increase"], fit["cosine"])

    @classmethod
    def expected(
        cls, method: Method, spec: LayerSpec, loss_increase: float, target: Target = NATIVE
    ) -> Self:
        """One that nothing was fitted for."""
        size = method.cost(spec), target.matrix_bytes(method, spec)
        return cls(method, *size, loss_increase, state=State.PREDICTED, predicted=loss_increase)

    def is_beaten_by(self, other: Option) -> bool:
        """Whether another takes no more bytes in the file and does no more loss increase."""
        return other.file_bytes <= self.file_bytes and other.loss_increase <= self.loss_increase


@dataclass(frozen=True)
class LayerMenu:
    """All options of one layer, by rising bytes."""

    spec: LayerSpec
    options: tuple[Option, ...]

    @classmethod
    def of(cls, spec: LayerSpec, options: Iterable[Option]) -> Self:
        """Put options in order."""
        return cls(spec, tuple(sorted(options, key=lambda each: (each.bytes, each.loss_increase))))

    @property
    def on_offer(self) -> tuple[Option, ...]:
        """Options that may be chosen."""
        return tuple(each for each in self.options if each.state is not State.LEFT_OUT)

    def option(self, method: Method | None) -> Option | None:
        """The option of a method, if there is one."""
        return next((each for each in self.options if each.method == method), None)

    @property
    def undominated(self) -> tuple[Option, ...]:
        """Fitted options that no other beats in bytes and loss increase, by rising bytes."""
        fitted = [each for each in self.options if each.state is State.FITTED]
        kept: list[Option] = []
        for option in sorted(fitted, key=lambda o: (o.file_bytes, o.loss_increase)):
            if not kept or option.loss_increase < kept[-1].loss_increase:
                kept.append(option)
        return tuple(kept)

    def unfitted(self, methods: Iterable[Method]) -> list[Method]:
        """Those of some methods that are options which nothing was fitted for."""
        states = {option.method: option.state for option in self.options}
        wanted = dict.fromkeys(methods)
        return [each for each in wanted if states.get(each, State.FITTED) is not State.FITTED]

    def with_fits(self, fits: Mapping[Method, Option]) -> LayerMenu:
        """The menu with some options fitted.

        What is predicted of other options of the same methods is multiplied by what their fits came
        to over what had been predicted of them: a matrix that trellis codes of 3 bits suit better
        than predicted is suited better by those of 2 bits too.
        """
        options = [
            replace(fits[each.method], predicted=each.predicted) if each.method in fits else each
            for each in self.options
        ]
        errors: dict[str, list[float]] = defaultdict(list)
        for each in options:
            if each.state is State.FITTED and each.predicted and each.loss_increase > 0:
                errors[each.method.name].append(math.log(each.loss_increase / each.predicted))
        off = {name: math.exp(statistics.fmean(logs)) for name, logs in errors.items()}
        return LayerMenu.of(
            self.spec,
            [
                each
                if each.state is State.FITTED or each.predicted is None
                else replace(each, loss_increase=each.predicted * off.get(each.method.name, 1.0))
                for each in options
            ],
        )


@dataclass(frozen=True)
class Menu:
    """The menus of all layers, in the order of the model."""

    layers: tuple[LayerMenu, ...]

    def __getitem__(self, name: str) -> LayerMenu:
        return next(layer for layer in self.layers if layer.spec.name == name)

    def fitted_alone(self) -> Menu:
        """The same with nothing on offer but what is fitted."""

        def held_back(option: Option) -> Option:
            fitted = option.state is State.FITTED
            return option if fitted else replace(option, state=State.LEFT_OUT)

        return Menu(
            tuple(LayerMenu(each.spec, tuple(map(held_back, each.options))) for each in self.layers)
        )

    @property
    def options(self) -> int:
        """Number of options over all layers."""
        return sum(len(layer.options) for layer in self.layers)

    def count(self, state: State) -> int:
        """Number of options over all layers that are in a state."""
        return sum(option.state is state for layer in self.layers for option in layer.options)

    def unfitted(
        self, taken: Mapping[str, Iterable[Method]]
    ) -> list[tuple[LayerSpec, list[Method]]]:
        """What is taken of layers, by name, and only predicted yet."""
        found = [(each.spec, each.unfitted(taken.get(each.spec.name, ()))) for each in self.layers]
        return [(spec, methods) for spec, methods in found if methods]


def judge(problem: MatrixProblem, layer: CompressedMatrix) -> Fit:
    """Predict the loss increase of a built layer, and compare its outputs with the dense layer's.

    The outputs are compared by their Gram matrix: with that of the inputs, ``G``, the cosine of
    ``W x`` and ``(W + D) x`` follows from the sums of ``W G W``, ``W G D`` and ``D G D``. Rows that
    do not interact are taken some at a time, so that a large matrix is not copied as a whole.
    """
    stored = layer.to_dense().to(problem.weight.device)
    loss_increase = cross = own = 0.0
    for rows in _blocks_of_rows(problem):
        weight = problem.weight[rows].detach().float()
        change = stored[rows].float() - weight
        products = [apply_gram(t.columns.to(change), change.T).T for t in problem.metric.terms]
        for term, product in zip(problem.metric.terms, products, strict=True):
            loss_increase += Curvature(term.rows[rows], term.columns).loss_increase(change, product)
        lookup = problem.spec.kind is Kind.EMBEDDING
        weighted = _by_inputs(problem, rows, change) if lookup else products[0]
        cross += float((weighted * weight).sum())
        own += float((weighted * change).sum())
    dense = problem.once("output energy", lambda: _output_energy(problem))
    norm = math.sqrt(max(dense * (dense + 2 * cross + own), 0.0))
    return Fit(max(loss_increase, 0.0), (dense + cross) / norm if norm > 0 else 1.0)


def _by_inputs(problem: MatrixProblem, rows: slice, matrix: Tensor) -> Tensor:
    """Some rows ``[n, in]`` times the Gram matrix of the inputs, which of a lookup are the rows."""
    term = problem.metric.terms[0]
    if problem.spec.kind is Kind.EMBEDDING:
        return apply_gram(term.rows[rows].to(matrix), matrix)
    return apply_gram(term.columns.to(matrix), matrix.T).T


def _output_energy(problem: MatrixProblem) -> float:
    """Mean square of the dense matrix's outputs, summed over them."""
    energy = 0.0
    for rows in _blocks_of_rows(problem):
        weight = problem.weight[rows].detach().float()
        energy += float((_by_inputs(problem, rows, weight) * weight).sum())
    return energy


def _blocks_of_rows(problem: MatrixProblem) -> list[slice]:
    """All rows of a matrix, some at a time where none interacts with another."""
    rows, columns = problem.spec.shape
    if any(term.rows.ndim == 2 for term in problem.metric.terms):
        return [slice(0, rows)]
    at_once = max(1, MOST_WEIGHTED // columns)
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]
