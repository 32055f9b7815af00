"""Families of methods that store two thin factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.methods.svd import Svd
from autocompress.numerics.svd import MetricKind
from autocompress.records import LayerSpec
from autocompress.search.families.base import Family, Ranks


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
