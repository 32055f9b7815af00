"""What the methods that fold a matrix into modes have in common."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from autocompress.errors import MethodError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import (
    FACTOR_BITS,
    Method,
    smallest_share,
    torch_dtype,
    whole_number,
    whole_numbers,
)
from autocompress.methods.listing import (
    FACTORS,
    Choice,
    Key,
    Listed,
    Ranks,
    Whole,
    rank_keys,
    too_high,
)
from autocompress.numerics.tensors.shapes import balanced_modes, fits, nearest_modes, skewed_modes
from autocompress.records import LayerSpec

MOST_MODES = 8  # a side that is split automatically

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


class Folded(Method):
    """A method that folds both sides of a matrix into modes and keeps cores of small ranks.

    A subclass is a frozen dataclass with the settings below and its ranks.

    Attributes:
        out_modes: modes of the rows.
        in_modes: modes of the columns.
        bits: 8 or 4 to round the cores, 0 to keep them in the type of the matrix.
    """

    out_modes: tuple[int, ...]
    in_modes: tuple[int, ...]
    bits: int
    factorised: ClassVar[bool] = True
    label: ClassVar[str]  # its short name
    layer: ClassVar[Callable[..., CompressedMatrix]]
    rank_setting: ClassVar[str] = "ranks"  # the setting that holds its ranks

    @classmethod
    @abstractmethod
    def rank_count(cls, out_order: int, in_order: int) -> int:
        """How many ranks there are for so many modes."""

    @classmethod
    @abstractmethod
    def rank_limits(cls, out_modes: tuple[int, ...], in_modes: tuple[int, ...]) -> tuple[int, ...]:
        """The largest useful value of each rank."""

    @classmethod
    def largest_ranks(
        cls,
        out_modes: tuple[int, ...],
        in_modes: tuple[int, ...],
        spec: LayerSpec,  # noqa: ARG003 - the modes say it all, but of CP
    ) -> tuple[int, ...]:
        """What shares of a rank are shares of, for a matrix."""
        return cls.rank_limits(out_modes, in_modes)

    @classmethod
    def space_keys(cls) -> Mapping[str, Key]:
        """See ``Listable``; ``orders`` are split automatically, as ``splits`` say."""
        return {
            **rank_keys(cls.rank_setting),
            "bits": FACTORS,
            "orders": Key("out_modes", Whole(2, MOST_MODES), ()),
            "splits": Key("out_modes", Choice(get_args(Split)), ("balanced",)),
            "modes": Key("out_modes", Modes, ()),
        }

    @classmethod
    def check_listed(cls, listed: Listed, given: Collection[str]) -> None:  # noqa: ARG003
        """See ``Listable``."""
        Ranks.check(listed)
        if not listed["orders"] and not listed["modes"]:
            raise ValueError("`orders` (split automatically), `modes`, or both")

    @classmethod
    def candidates(cls, listed: Listed, spec: LayerSpec) -> Iterator[Self]:
        """See ``Listable``; shares of ranks are of ``largest_ranks``."""
        for modes in cls._foldings(listed, spec):
            largest = cls.largest_ranks(modes.rows, modes.columns, spec)
            ranks_listed = Ranks.of(listed).within(largest)
            for ranks, bits in itertools.product(ranks_listed, listed["bits"]):
                yield cls.of_ranks(ranks, modes.rows, modes.columns, bits).feasible()

    @classmethod
    def notices(cls, listed: Listed, spec: LayerSpec) -> Iterator[str]:
        """Yield every explicit split and every whole rank that had to be corrected."""
        for modes in listed["modes"]:
            fitted = modes.fitted(spec)
            if fitted != modes:
                yield f"{cls.name} modes {modes} do not fit, used {fitted}"
        for modes in dict.fromkeys(cls._foldings(listed, spec)):
            lowered = {rank: cls._lowered(rank, modes, spec) for rank in listed["ranks"]}
            changed = [rank for rank, used in lowered.items() if set(used) != {rank}]
            if changed:
                used = "; ".join(",".join(map(str, lowered[rank])) for rank in changed)
                yield f"{cls.name} {too_high(changed)} too high for modes {modes}, used {used}"

    @classmethod
    def _foldings(cls, listed: Listed, spec: LayerSpec) -> Iterator[Modes]:
        """Yield the ways to split one matrix."""
        for order, split in itertools.product(listed["orders"], listed["splits"]):
            yield Modes.of(spec, order, split)
        for modes in listed["modes"]:
            yield modes.fitted(spec)

    @classmethod
    def _lowered(cls, rank: int, modes: Modes, spec: LayerSpec) -> tuple[int, ...]:
        """What a whole rank becomes under some modes, one per bond or mode."""
        largest = cls.largest_ranks(modes.rows, modes.columns, spec)
        (ranks,) = Ranks((rank,)).within(largest)
        return cls.of_ranks(ranks, modes.rows, modes.columns).feasible().all_ranks

    @abstractmethod
    def feasible(self) -> Self:
        """The same with ranks that its modes and its other ranks allow."""

    @classmethod
    def of_ranks(
        cls,
        ranks: tuple[int, ...],
        out_modes: tuple[int, ...],
        in_modes: tuple[int, ...],
        bits: int = 0,
    ) -> Self:
        """The method with these ranks, modes and bits."""
        settings: dict[str, Any] = {"out_modes": out_modes, "in_modes": in_modes, "bits": bits}
        return cls(**settings, **cls._as_setting(ranks))

    @classmethod
    def of_one_rank(
        cls, rank: int, out_modes: tuple[int, ...], in_modes: tuple[int, ...], bits: int = 0
    ) -> Self:
        """The method with one rank wherever it has one, lower where the modes allow less."""
        count = cls.rank_count(len(out_modes), len(in_modes))
        return cls.of_ranks((rank,) * count, out_modes, in_modes, bits).feasible()

    @classmethod
    def uniform(cls, shape: tuple[int, int], *, order: int, rank: int, bits: int = 0) -> Self:
        """The same with ``order`` balanced modes a side."""
        out_modes, in_modes = (balanced_modes(side, order) for side in shape)
        return cls.of_one_rank(rank, out_modes, in_modes, bits)

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """Its ranks."""
        held = getattr(self, self.rank_setting)
        return held if isinstance(held, tuple) else (held,)

    def with_ranks(self, ranks: Sequence[int]) -> Self:
        """See ``Method``."""
        return replace(self, **self._as_setting(ranks)).feasible()

    @classmethod
    def _as_setting(cls, ranks: Sequence[int]) -> dict[str, Any]:
        return {cls.rank_setting: tuple(ranks) if cls.rank_setting == "ranks" else ranks[0]}

    def check_settings(self) -> None:
        """Check what can be checked without a matrix, but the number of ranks.

        Raises:
            MethodError: a setting is no whole number, or is out of range.
        """
        for setting in ("out_modes", "in_modes"):
            whole_numbers(self.name, setting, getattr(self, setting))
        if self.rank_setting == "ranks":
            alone = self.rank_count(1, 1) == 0  # a single core of a train has none
            whole_numbers(self.name, "ranks", getattr(self, self.rank_setting), empty=alone)
        else:
            whole_number(self.name, self.rank_setting, getattr(self, self.rank_setting), least=1)
        whole_number(self.name, "bits", self.bits, allowed=FACTOR_BITS)

    def fitting(self, spec: LayerSpec) -> Self:
        """The same with the nearest modes that fit a matrix, and ranks that they allow."""
        nearest: dict[str, Any] = {
            "out_modes": nearest_modes(spec.out_features, self.out_modes),
            "in_modes": nearest_modes(spec.in_features, self.in_modes),
        }
        return replace(self, **nearest).feasible()

    def check(self, spec: LayerSpec) -> None:
        """Modes must cover the matrix without waste, ranks must not exceed what the modes allow.

        Raises:
            MethodError: they do not; the message names modes or ranks that would.
        """
        check_modes(self, spec, self.out_modes, self.in_modes)
        limits = self.rank_limits(self.out_modes, self.in_modes)
        check_ranks(self, spec, self.all_ranks, limits, self.feasible().all_ranks)

    def rank_share(self, spec: LayerSpec) -> float:  # noqa: ARG002 - the modes say it all
        """Smallest share of the largest value of any rank."""
        return smallest_share(self.all_ranks, self.rank_limits(self.out_modes, self.in_modes))

    def skeleton(self, spec: LayerSpec) -> CompressedMatrix:
        """A layer of cores without content."""
        return type(self).layer(
            *spec.shape,
            out_modes=self.out_modes,
            in_modes=self.in_modes,
            bits=self.bits,
            bias=spec.bias,
            dtype=torch_dtype(spec),
            **{self.rank_setting: getattr(self, self.rank_setting)},
        )

    def __str__(self) -> str:
        return folded_label(self.label, self.out_modes, self.all_ranks, self.bits)


def check_modes(
    method: Method, spec: LayerSpec, out_modes: tuple[int, ...], in_modes: tuple[int, ...]
) -> None:
    """Check that modes cover both sides and pad less than one slice of the largest mode.

    Raises:
        MethodError: they do not; the message names the nearest that do.
    """
    for side, size, modes in zip(
        ("out_modes", "in_modes"), spec.shape, (out_modes, in_modes), strict=True
    ):
        if not fits(size, modes):
            near = nearest_modes(size, modes)
            raise MethodError(
                f"layer {spec}, {method}: {side} do not fit the side of {size}",
                got=f"{list(modes)} with product {math.prod(modes)}",
                wanted=f"for example {list(near)} with product {math.prod(near)}",
            )


def check_ranks(
    method: Method,
    spec: LayerSpec,
    ranks: tuple[int, ...],
    limits: tuple[int, ...],
    feasible: tuple[int, ...] | None = None,
) -> None:
    """Check that no rank exceeds what the modes and the other ranks allow.

    Args:
        method: for the message.
        spec: the matrix.
        ranks: one per joint or mode.
        limits: what the modes alone allow.
        feasible: the ranks as they are lowered to what all the others allow.

    Raises:
        MethodError: one does; the message names what is allowed.
    """
    what, got = "rank" if len(ranks) == 1 else "ranks", ", ".join(map(str, ranks))
    if any(rank > limit for rank, limit in zip(ranks, limits, strict=True)):
        wanted = f"at most {', '.join(map(str, limits))}"
    elif feasible is not None and feasible != ranks:
        wanted = f"{', '.join(map(str, feasible))}, as much as each has beside the others"
    else:
        return
    raise MethodError(f"layer {spec}, {method}: {what}", got=got, wanted=wanted)


def folded_label(name: str, out_modes: tuple[int, ...], ranks: tuple[int, ...], bits: int) -> str:
    """Short label: ``tt 16x16x16 r8 int8``; one rank stands for all where they are equal."""
    shown = ranks[:1] if len(set(ranks)) == 1 else ranks
    label = f"{name} {'x'.join(map(str, out_modes))} r{','.join(map(str, shown))}"
    return label + (f" int{bits}" if bits else "")
