"""Families of methods that store two thin factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.methods.grouping import WHOLE_ROW
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.numerics.randomised import Sketching
from autocompress.numerics.shrinkage import GramKind
from autocompress.numerics.svd import MetricKind
from autocompress.records import LayerSpec
from autocompress.space.families.base import Family, Ranks


@dataclass(frozen=True)
class SvdFamily(Family):
    """Two factors.

    Attributes:
        ranks: of the factors; fractions are of ``min(out, in)``.
        metrics: ``plain``, ``input`` or ``two_sided``.
        bits: of the stored factors; 0 keeps them in the matrix's dtype.
        grams: ``full``, ``shrunk`` or ``diagonal``.
        sketching: random projections that all options are fitted by; exactly when left out.
    """

    ranks: Ranks
    metrics: tuple[MetricKind, ...] = ("two_sided",)
    bits: tuple[int, ...] = (0,)
    grams: tuple[GramKind, ...] = ("full",)
    sketching: Sketching | None = None
    name: ClassVar[str] = Svd.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination."""
        for (rank,), metric, bits, gram in itertools.product(
            self.ranks.within((min(spec.shape),)), self.metrics, self.bits, self.grams
        ):
            yield Svd(rank, metric, bits, gram).sketched(self.sketching)

    def notices(self, spec: LayerSpec) -> Iterator[str]:
        """Yield which whole ranks are above the smaller side."""
        yield from self.ranks.notices(self.name, min(spec.shape))


@dataclass(frozen=True)
class QuantizePlusLowRankFamily(Family):
    """Codes of few bits and two packed factors that correct them.

    Attributes:
        bits: bits of one code.
        group_sizes: weights that share a scale; 0 is a whole row.
        ranks: of the corrector; fractions are of ``min(out, in)``.
        factor_bits: of the corrector's factors.
        symmetric: whether the codes have no zero point; both kinds may be listed.
        grams: ``full``, ``shrunk`` or ``diagonal``.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    ranks: Ranks
    factor_bits: tuple[int, ...] = (8,)
    symmetric: tuple[bool, ...] = (False,)
    grams: tuple[GramKind, ...] = ("full",)
    name: ClassVar[str] = QuantizePlusLowRank.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination; a group as long as the row *is* the row."""
        for bits, size, (rank,), factor_bits, symmetric, gram in itertools.product(
            self.bits,
            self.group_sizes,
            tuple(self.ranks.within((min(spec.shape),))),
            self.factor_bits,
            self.symmetric,
            self.grams,
        ):
            group = WHOLE_ROW if size == spec.in_features else size
            yield QuantizePlusLowRank(bits, group, rank, factor_bits, symmetric, gram)

    def notices(self, spec: LayerSpec) -> Iterator[str]:
        """Yield which whole ranks of the corrector are above the smaller side."""
        yield from self.ranks.notices(self.name, min(spec.shape))
