"""Families of methods: settings that a search space lists, and their methods for one matrix."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.shapes import (
    balanced_modes,
    nearest_modes,
    train_rank_limits,
    tucker_rank_limits,
)
from autocompress.numerics.svd import MetricKind
from autocompress.records import LayerSpec

RANK_MULTIPLE = 8  # matrix kernels fall off their fast paths at other ranks
WHOLE_ROW = 0  # the group size that means one group per row


class Family(ABC):
    """All settings of one method that a search space offers; an option is one combination."""

    name: ClassVar[str]

    @abstractmethod
    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination for one matrix; some may not fit it, some may be equal."""

    def notices(self, spec: LayerSpec) -> Iterator[str]:  # noqa: ARG002 - only families with modes correct anything
        """Yield what was corrected to suit one matrix."""
        yield from ()


@dataclass(frozen=True)
class QuantizeFamily(Family):
    """Rounding to few bits.

    Attributes:
        bits: bits of one code.
        group_sizes: weights that share a scale; 0 is a whole row.
        symmetric: whether there is no zero point; both kinds may be listed.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    symmetric: tuple[bool, ...] = (False,)
    name: ClassVar[str] = Quantize.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination; a group as long as the row *is* the row."""
        for bits, size, symmetric in itertools.product(self.bits, self.group_sizes, self.symmetric):
            yield Quantize(bits, WHOLE_ROW if size == spec.in_features else size, symmetric)


@dataclass(frozen=True)
class Ranks:
    """Ranks as a search space lists them.

    Attributes:
        whole: ranks taken as written.
        fractions: shares of the largest rank, in (0, 1], rounded down to a multiple of 8 where that
            leaves any.
    """

    whole: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()

    def within(self, largest: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield for every listed rank one per bond or mode, none above the largest of its bond."""
        for rank in self.whole:
            yield tuple(min(rank, most) for most in largest)
        for fraction in self.fractions:
            yield tuple(aligned_rank(fraction * most) for most in largest)


def aligned_rank(rank: float) -> int:
    """Round a rank down to a multiple of 8; below 8 to a whole number of at least 1.

    The tiny margin keeps ``0.29 * 100``, which is a hair under 29 in binary, at 29.
    """
    whole = math.floor(rank + 1e-9)
    return whole // RANK_MULTIPLE * RANK_MULTIPLE if whole >= RANK_MULTIPLE else max(whole, 1)


@dataclass(frozen=True)
class SvdFamily(Family):
    """Two factors.

    Attributes:
        ranks: of the factors; fractions are of ``min(out, in)``.
        metrics: ``plain``, ``input`` or ``two_sided``.
        bits: of the stored factors; 0 keeps them in the matrix's dtype.
    """

    ranks: Ranks
    metrics: tuple[MetricKind, ...] = ("two_sided",)
    bits: tuple[int, ...] = (0,)
    name: ClassVar[str] = Svd.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for (rank,), metric, bits in itertools.product(
            self.ranks.within((min(spec.shape),)), self.metrics, self.bits
        ):
            yield Svd(rank, metric, bits)


@dataclass(frozen=True)
class Modes:
    """How rows and columns are split: ``math.prod(rows)`` is the row count, or a little more."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def fitted(self, spec: LayerSpec) -> Modes:
        """Return the nearest modes that fit a matrix: themselves, when they do."""
        return Modes(
            nearest_modes(spec.out_features, self.rows),
            nearest_modes(spec.in_features, self.columns),
        )

    @property
    def bonds(self) -> tuple[int, ...]:
        """Largest rank of each bond of a tensor train with these modes."""
        return train_rank_limits(
            tuple(row * column for row, column in zip(self.rows, self.columns, strict=True))
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Largest Tucker rank of each mode: those of the rows, then those of the columns."""
        return tucker_rank_limits(self.rows + self.columns)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.rows))} by {'x'.join(map(str, self.columns))}"


@dataclass(frozen=True)
class _TensorFamily(Family):
    """What tensor trains and Tucker share.

    Attributes:
        ranks: fractions are of the largest rank of each bond (tensor train) or of each mode
            (Tucker).
        orders: numbers of modes of rows and of columns, split automatically.
        modes: explicit splits, corrected to the nearest fit.
        bits: of the stored cores; 0 keeps them in the matrix's dtype.
    """

    ranks: Ranks
    orders: tuple[int, ...] = ()
    modes: tuple[Modes, ...] = ()
    bits: tuple[int, ...] = (0,)

    def splits(self, spec: LayerSpec) -> Iterator[Modes]:
        """Yield the ways to split one matrix."""
        for order in self.orders:
            yield Modes(
                balanced_modes(spec.out_features, order), balanced_modes(spec.in_features, order)
            )
        for modes in self.modes:
            yield modes.fitted(spec)

    def notices(self, spec: LayerSpec) -> Iterator[str]:
        """Yield every explicit split that had to be corrected."""
        for modes in self.modes:
            fitted = modes.fitted(spec)
            if fitted != modes:
                yield f"{spec}: {self.name} modes {modes} do not fit, used {fitted}"


class TensorTrainFamily(_TensorFamily):
    """A chain of cores, each with one mode of the rows and one of the columns."""

    name: ClassVar[str] = TensorTrain.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.splits(spec):
            for ranks, bits in itertools.product(self.ranks.within(modes.bonds), self.bits):
                yield TensorTrain(ranks, modes.rows, modes.columns, bits)


class TuckerFamily(_TensorFamily):
    """A small core with one factor per mode."""

    name: ClassVar[str] = Tucker.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.splits(spec):
            for ranks, bits in itertools.product(self.ranks.within(modes.sides), self.bits):
                yield Tucker(ranks, modes.rows, modes.columns, bits)


def stored_bits(method: Method) -> int | None:
    """Bits of a method's codes, or ``None`` where it stores floating-point numbers."""
    return getattr(method, "bits", 0) or None


def rank_fraction(method: Method, spec: LayerSpec) -> float | None:
    """Smallest share of a possible rank that a method keeps, or ``None`` where it cuts no rank."""
    match method:
        case Svd():
            return method.rank / min(spec.shape)
        case TensorTrain():
            largest = Modes(method.out_modes, method.in_modes).bonds
        case Tucker():
            largest = Modes(method.out_modes, method.in_modes).sides
        case _:
            return None
    return min((rank / most for rank, most in zip(method.ranks, largest, strict=True)), default=1.0)
