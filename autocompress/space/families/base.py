"""What a family is, and the ranks that a search space lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.numerics.shapes import aligned_rank
from autocompress.records import LayerSpec


class Family(ABC):
    """All settings of one method that a search space offers; an option is one combination."""

    name: ClassVar[str]

    @abstractmethod
    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination for one matrix; some may not fit it, some may be equal."""

    def notices(self, spec: LayerSpec) -> Iterator[str]:  # noqa: ARG002 - only families with modes or ranks correct anything
        """Yield what was corrected to suit one matrix; Space names the matrix."""
        yield from ()


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

    def notices(self, method: str, largest: int) -> Iterator[str]:
        """Yield which of the whole ranks are lowered to the largest."""
        above = [rank for rank in self.whole if rank > largest]
        if above:
            yield f"{method} {listed(above)} above the largest, used {largest}"


def listed(ranks: Sequence[int]) -> str:
    """Ranks as the subject of a sentence: ``ranks 64, 96 are``."""
    noun, verb = ("rank", "is") if len(ranks) == 1 else ("ranks", "are")
    return f"{noun} {', '.join(map(str, ranks))} {verb}"
