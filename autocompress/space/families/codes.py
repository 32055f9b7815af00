"""Families of methods that round a matrix to few bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.methods.grouping import WHOLE_ROW
from autocompress.methods.quantize import Quantize
from autocompress.methods.trellis import Trellis
from autocompress.numerics.shrinkage import GramKind
from autocompress.records import LayerSpec
from autocompress.space.families.base import Family


@dataclass(frozen=True)
class QuantizeFamily(Family):
    """Rounding to few bits.

    Attributes:
        bits: bits of one code.
        group_sizes: weights that share a scale; 0 is a whole row.
        symmetric: whether there is no zero point; both kinds may be listed.
        grams: ``full``, ``shrunk`` or ``diagonal``.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    symmetric: tuple[bool, ...] = (False,)
    grams: tuple[GramKind, ...] = ("full",)
    name: ClassVar[str] = Quantize.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination; a group as long as the row *is* the row."""
        for bits, size, symmetric, gram in itertools.product(
            self.bits, self.group_sizes, self.symmetric, self.grams
        ):
            yield Quantize(bits, WHOLE_ROW if size == spec.in_features else size, symmetric, gram)


@dataclass(frozen=True)
class TrellisFamily(Family):
    """Joint rounding to few bits.

    Attributes:
        bits: bits of one code.
        group_sizes: weights that share a scale; 0 is a whole row.
        grams: ``full``, ``shrunk`` or ``diagonal``.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...] = (WHOLE_ROW,)
    grams: tuple[GramKind, ...] = ("full",)
    name: ClassVar[str] = Trellis.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination; a group as long as the row *is* the row."""
        for bits, size, gram in itertools.product(self.bits, self.group_sizes, self.grams):
            yield Trellis(bits, WHOLE_ROW if size == spec.in_features else size, gram)
