"""The family of methods that keep only some elements."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from autocompress.methods.base import Method
from autocompress.methods.sparse import Pattern, Sparse
from autocompress.records import LayerSpec
from autocompress.space.families.base import Family


@dataclass(frozen=True)
class SparseFamily(Family):
    """Sparse matrices.

    Attributes:
        patterns: ``2:4``, ``unstructured`` or both.
        densities: shares of a row that are kept without a pattern.
        bits: bits of a kept element; 0 keeps the type of the matrix.
    """

    patterns: tuple[Pattern, ...]
    densities: tuple[float, ...]
    bits: tuple[int, ...]
    name: ClassVar[str] = Sparse.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:  # noqa: ARG002 - shares suit all sizes
        """Yield every combination."""
        for pattern, bits in itertools.product(self.patterns, self.bits):
            if pattern == "2:4":
                yield Sparse(pattern, bits=bits)
            else:
                for density in self.densities:
                    yield Sparse(pattern, density, bits)
