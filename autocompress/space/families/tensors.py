"""Families of methods that fold a matrix into modes."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from autocompress.methods.base import Method
from autocompress.methods.cp import Cp
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.cp import cp_rank_limit
from autocompress.numerics.shapes import (
    balanced_modes,
    matrix_train_limits,
    nearest_modes,
    padded_modes,
    skewed_modes,
    tucker_rank_limits,
)
from autocompress.records import LayerSpec
from autocompress.space.families.base import Family, Ranks, listed

Split = Literal["balanced", "skewed"]


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

    @classmethod
    def of(cls, spec: LayerSpec, order: int, split: Split) -> Modes:
        """Split a matrix automatically: evenly, or with one large mode a side at opposite ends."""
        fold = skewed_modes if split == "skewed" else balanced_modes
        rows, columns = fold(spec.out_features, order), fold(spec.in_features, order)
        return cls(rows[::-1] if split == "skewed" else rows, columns)

    @property
    def bonds(self) -> tuple[int, ...]:
        """Largest rank of each bond of a tensor train with these modes, padded where few."""
        order = max(len(self.rows), len(self.columns))
        return matrix_train_limits(
            padded_modes(self.rows, order), padded_modes(self.columns, order)
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Largest Tucker rank of each mode: those of the rows, then those of the columns."""
        return tucker_rank_limits(self.rows + self.columns)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.rows))} by {'x'.join(map(str, self.columns))}"


@dataclass(frozen=True)
class _TensorFamily(Family):
    """What tensor trains, Tucker and CP share.

    Attributes:
        ranks: fractions are of the largest rank of each bond (tensor train) or of each mode
            (Tucker), or of the rank that takes as many numbers as the matrix (CP).
        orders: numbers of modes of rows and of columns, split automatically.
        modes: explicit splits, corrected to the nearest fit.
        bits: of the stored cores; 0 keeps them in the matrix's dtype.
        splits: how ``orders`` split: evenly, or skewed, which is nearer to two thin factors.
    """

    ranks: Ranks
    orders: tuple[int, ...] = ()
    modes: tuple[Modes, ...] = ()
    bits: tuple[int, ...] = (0,)
    splits: tuple[Split, ...] = ("balanced",)

    @abstractmethod
    def feasible(self, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:
        """What a whole rank becomes under some modes, one per bond or mode."""

    def foldings(self, spec: LayerSpec) -> Iterator[Modes]:
        """Yield the ways to split one matrix."""
        for order, split in itertools.product(self.orders, self.splits):
            yield Modes.of(spec, order, split)
        for modes in self.modes:
            yield modes.fitted(spec)

    def notices(self, spec: LayerSpec) -> Iterator[str]:
        """Yield every explicit split and every whole rank that had to be corrected."""
        for modes in self.modes:
            fitted = modes.fitted(spec)
            if fitted != modes:
                yield f"{self.name} modes {modes} do not fit, used {fitted}"
        for modes in dict.fromkeys(self.foldings(spec)):
            lowered = {rank: self.feasible(rank, modes, spec) for rank in self.ranks.whole}
            changed = [rank for rank, used in lowered.items() if set(used) != {rank}]
            if changed:
                used = "; ".join(",".join(map(str, lowered[rank])) for rank in changed)
                yield f"{self.name} {listed(changed)} too high for modes {modes}, used {used}"


class TensorTrainFamily(_TensorFamily):
    """A chain of cores, each with one mode of the rows and one of the columns."""

    name: ClassVar[str] = TensorTrain.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.foldings(spec):
            for ranks, bits in itertools.product(self.ranks.within(modes.bonds), self.bits):
                yield TensorTrain(ranks, modes.rows, modes.columns, bits).feasible()

    def feasible(self, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - modes say it all
        """One rank at every bond, lowered to what the modes allow."""
        return TensorTrain((rank,) * len(modes.bonds), modes.rows, modes.columns).feasible().ranks


class TuckerFamily(_TensorFamily):
    """A small core with one factor per mode."""

    name: ClassVar[str] = Tucker.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.foldings(spec):
            for ranks, bits in itertools.product(self.ranks.within(modes.sides), self.bits):
                yield Tucker(ranks, modes.rows, modes.columns, bits).feasible()

    def feasible(self, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - modes say it all
        """One rank for every mode, lowered to what the modes allow."""
        return Tucker((rank,) * len(modes.sides), modes.rows, modes.columns).feasible().ranks


class CpFamily(_TensorFamily):
    """A sum of outer products."""

    name: ClassVar[str] = Cp.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.foldings(spec):
            largest = _largest_cp_rank(modes, spec)
            for (rank,), bits in itertools.product(self.ranks.within((largest,)), self.bits):
                yield Cp(rank, modes.rows, modes.columns, bits)

    def feasible(self, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:
        """The rank, lowered to that which takes as many numbers as the matrix."""
        return (min(rank, _largest_cp_rank(modes, spec)),)


def _largest_cp_rank(modes: Modes, spec: LayerSpec) -> int:
    """The rank that takes as many numbers as the matrix; at least 1, as of a matrix of 2 x 2."""
    sizes = modes.rows + modes.columns
    return max(1, min(cp_rank_limit(sizes), spec.parameters // sum(sizes)))
