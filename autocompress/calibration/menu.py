"""The menu: each layer's options worth considering, with their bytes and predicted damage."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.numerics.metric import MOST_WEIGHTED, apply_gram
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.inventory import placed_entries


class State(StrEnum):
    """How an option's damage is known, and whether it is on offer."""

    FITTED = "fitted"
    PREDICTED = "predicted"  # by fits of the same method to other matrices; see ``screening``
    LEFT_OUT = "left out"  # predicted, and too far from the best to be chosen


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
        damage: rise of the loss to second order, nats per token: of its fit, else as predicted.
        cosine: agreement of the outputs; ``None`` before it is fitted.
        state: how the damage is known.
        predicted: damage before anything of its kind was fitted to this matrix; ``None`` where it
            was fitted at once.
    """

    method: Method
    bytes: int
    file_bytes: int
    damage: float
    cosine: float | None = None
    state: State = State.FITTED
    predicted: float | None = None

    @classmethod
    def of(cls, method: Method, spec: LayerSpec, fit: Mapping[str, float]) -> Self:
        """A fitted option, from its damage and cosine."""
        size = method.cost(spec), file_bytes(method, spec)
        return cls(method, *size, fit["damage"], fit["cosine"])

    @classmethod
    def expected(cls, method: Method, spec: LayerSpec, damage: float) -> Self:
        """One that nothing was fitted for."""
        size = method.cost(spec), file_bytes(method, spec)
        return cls(method, *size, damage, state=State.PREDICTED, predicted=damage)

    def is_beaten_by(self, other: Option) -> bool:
        """Whether another takes no more bytes in the file and does no more damage."""
        return other.file_bytes <= self.file_bytes and other.damage <= self.damage


@dataclass(frozen=True)
class LayerMenu:
    """All options of one layer, by rising bytes."""

    spec: LayerSpec
    options: tuple[Option, ...]

    @classmethod
    def of(cls, spec: LayerSpec, options: Iterable[Option]) -> Self:
        """Put options in order."""
        return cls(spec, tuple(sorted(options, key=lambda each: (each.bytes, each.damage))))

    @property
    def on_offer(self) -> tuple[Option, ...]:
        """Options that may be chosen."""
        return tuple(each for each in self.options if each.state is not State.LEFT_OUT)

    @property
    def undominated(self) -> tuple[Option, ...]:
        """Fitted options no other beats in bytes and damage, by rising bytes and falling damage."""
        fitted = [each for each in self.options if each.state is State.FITTED]
        kept: list[Option] = []
        for option in sorted(fitted, key=lambda o: (o.file_bytes, o.damage)):
            if not kept or option.damage < kept[-1].damage:
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
            if each.state is State.FITTED and each.predicted and each.damage > 0:
                errors[each.method.name].append(math.log(each.damage / each.predicted))
        off = {name: math.exp(statistics.fmean(logs)) for name, logs in errors.items()}
        return LayerMenu.of(
            self.spec,
            [
                each
                if each.state is State.FITTED or each.predicted is None
                else replace(each, damage=each.predicted * off.get(each.method.name, 1.0))
                for each in options
            ],
        )


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
    """Predict the damage of a built layer, and compare its outputs with the dense layer's."""
    change = layer.to_dense().to(problem.weight.device).float() - problem.weight32
    first, *others = problem.metric.terms
    if first.rows.ndim == 2:  # the largest product serves both
        weighted = apply_gram(first.columns.to(change), change.T).T
        damage = first.damage(change, weighted)
    else:
        weighted, damage = None, first.damage(change)
    damage += sum(term.damage(change) for term in others)
    return Fit(max(damage, 0.0), output_cosine(problem, change, weighted))


def output_cosine(problem: MatrixProblem, change: Tensor, weighted: Tensor | None = None) -> float:
    """Cosine of ``W x`` and ``(W + D) x`` over the calibration inputs, from their Gram matrix.

    Args:
        problem: the dense matrix ``W`` with its metric.
        change: ``D [out, in]`` in fp32.
        weighted: its product with the Gram matrix of the inputs, where that is known.
    """
    seen = _outputs(problem)
    dense = float((seen * problem.weight32).sum())
    cross = float((seen * change).sum())
    own = float(((_outputs_of(problem, change) if weighted is None else weighted) * change).sum())
    norm = math.sqrt(max(dense * (dense + 2 * cross + own), 0.0))
    return (dense + cross) / norm if norm > 0 else 1.0


def _outputs(problem: MatrixProblem) -> Tensor:
    return problem.once("weighted by inputs", lambda: _outputs_of(problem, problem.weight32))


def _outputs_of(problem: MatrixProblem, matrix: Tensor) -> Tensor:
    """``matrix [out, in]`` times the Gram matrix of the inputs, which of a lookup are its rows."""
    term = problem.metric.terms[0]
    lookup = problem.spec.kind is Kind.EMBEDDING
    gram = (term.rows if lookup else term.columns).to(matrix)
    if lookup:
        return apply_gram(gram, matrix)
    at_once = max(1, MOST_WEIGHTED // matrix.shape[1])
    return torch.cat([apply_gram(gram, part.T).T for part in torch.split(matrix, at_once)])


def file_bytes(method: Method, spec: LayerSpec) -> int:
    """Bytes of a matrix in the file: its tensors, and a bound on their entries in the header."""
    return sum(entry.most_bytes for entry in placed_entries(method, spec))
