"""The family of a method that folds a matrix into modes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from autocompress.methods.base import Method
from autocompress.methods.folding import Folded
from autocompress.numerics.shapes import balanced_modes, nearest_modes, skewed_modes
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

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.rows))} by {'x'.join(map(str, self.columns))}"


@dataclass(frozen=True)
class TensorFamily(Family):
    """A method that folds a matrix into modes.

    Attributes:
        method: its class.
        ranks: fractions are of the largest rank of each bond (tensor train) or of each mode
            (Tucker), or of the rank that takes as many numbers as the matrix (CP).
        orders: numbers of modes of rows and of columns, split automatically.
        modes: explicit splits, corrected to the nearest fit.
        bits: of the stored cores; 0 keeps them in the matrix's dtype.
        splits: how ``orders`` split: evenly, or skewed, which is nearer to two thin factors.
    """

    method: type[Folded]
    ranks: Ranks
    orders: tuple[int, ...] = ()
    modes: tuple[Modes, ...] = ()
    bits: tuple[int, ...] = (0,)
    splits: tuple[Split, ...] = ("balanced",)
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.method.name)

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for modes in self.foldings(spec):
            largest = self.method.largest_ranks(modes.rows, modes.columns, spec)
            for ranks, bits in itertools.product(self.ranks.within(largest), self.bits):
                yield self.method.of_ranks(ranks, modes.rows, modes.columns, bits).feasible()

    def feasible(self, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:
        """What a whole rank becomes under some modes, one per bond or mode."""
        largest = self.method.largest_ranks(modes.rows, modes.columns, spec)
        (ranks,) = Ranks((rank,)).within(largest)
        return self.method.of_ranks(ranks, modes.rows, modes.columns).feasible().all_ranks

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
