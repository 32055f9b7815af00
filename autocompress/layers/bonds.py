"""Stored matrices seen at their bonds: the singular values that say which ranks they need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.layers.packed import Factor
from autocompress.numerics.kronecker import KroneckerWhitening
from autocompress.numerics.svd import Whitening
from autocompress.numerics.tensors.entanglement import factors_bond, lost_beyond
from autocompress.numerics.tensors.tensor_fit import TensorForm


class Bonds(ABC):
    """The bonds of a factorised matrix, whose factors may be in training."""

    @abstractmethod
    def values(self) -> list[Tensor]:
        """Singular values of each bond in fp32, with a gradient where the factors have one.

        Of a CP decomposition the components' norms.
        """

    @abstractmethod
    def lost(self) -> list[Tensor]:
        """Share of the squared norm lost at each bond, ``[k + 1]`` by the rank that is kept."""


@dataclass(frozen=True)
class LowRankBond(Bonds):
    """Two thin factors, and the bond between them.

    Attributes:
        left: ``[rank, out]``.
        right: ``[rank, in]``.
        whitening: of rows and columns, in fp32; plain when left out.
    """

    left: Factor
    right: Factor
    whitening: Whitening | None

    def values(self) -> list[Tensor]:
        """See ``Bonds``."""
        left, right = self.left.read(torch.float32), self.right.read(torch.float32)
        if self.whitening is not None:
            left = _times(left, self.whitening.rows)
            right = _times(right, self.whitening.columns)
        return [factors_bond(left, right)]

    def lost(self) -> list[Tensor]:
        """See ``Bonds``."""
        return [lost_beyond(values) for values in self.values()]


@dataclass(frozen=True)
class FoldedBonds(Bonds):
    """A network of cores, and the bonds between them.

    Attributes:
        form: how the cores make a matrix.
        read: reads them in the order and shape of the form, in fp32.
        whitening: of each mode; plain when left out.
    """

    form: TensorForm
    read: Callable[[], list[Tensor]]
    whitening: KroneckerWhitening | None

    def cores(self) -> list[Tensor]:
        """The cores in the coordinates of the whitening."""
        if self.whitening is None:
            return self.read()
        return self.form.absorb(self.read(), self.whitening.rows, self.whitening.columns)

    def values(self) -> list[Tensor]:
        """See ``Bonds``."""
        return self.form.bonds(self.cores())

    def lost(self) -> list[Tensor]:
        """See ``Bonds``."""
        return self.form.lost(self.cores())


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    factor = factor.to(matrix.device)
    return matrix * factor if factor.ndim == 1 else matrix @ factor
