"""Stored matrices seen at their bonds: the singular values that say which ranks they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.corrected import CorrectedMatrix
from autocompress.layers.cp import CpMatrix
from autocompress.layers.low_rank import LowRankMatrix
from autocompress.layers.tensor_train import TensorTrainMatrix
from autocompress.layers.tucker import TuckerMatrix
from autocompress.numerics.cp import CpForm
from autocompress.numerics.entanglement import (
    cp_weights,
    factors_bond,
    train_bonds,
    tucker_bonds,
)
from autocompress.numerics.kronecker import KroneckerWhitening, gram_roots, root_whitening
from autocompress.numerics.metric import Metric
from autocompress.numerics.svd import Whitening
from autocompress.numerics.tensor_fit import Form
from autocompress.numerics.tensor_train import TrainForm
from autocompress.numerics.tucker import TuckerForm

FoldedMatrix = TensorTrainMatrix | TuckerMatrix | CpMatrix


@dataclass(frozen=True)
class LowRankBond:
    """Two thin factors, and the bond between them.

    Attributes:
        matrix: holds the factors; they may be in training.
        whitening: of rows and columns, in fp32; plain when left out.
    """

    matrix: LowRankMatrix
    whitening: Whitening | None

    def values(self) -> list[Tensor]:
        """Singular values ``[rank]`` in fp32, with a gradient where the factors have one."""
        left = self.matrix.left.read(torch.float32)
        right = self.matrix.right.read(torch.float32)
        if self.whitening is not None:
            left = _times(left, self.whitening.rows)
            right = _times(right, self.whitening.columns)
        return [factors_bond(left, right)]


@dataclass(frozen=True)
class FoldedBonds:
    """A network of cores, and the bonds between them.

    Attributes:
        matrix: holds the cores; they may be in training.
        whitening: of each mode; plain when left out.
    """

    matrix: FoldedMatrix
    whitening: KroneckerWhitening | None

    @classmethod
    def of(cls, matrix: FoldedMatrix, metric: Metric | None) -> FoldedBonds:
        """See ``bonds_of``."""
        if metric is None:
            return cls(matrix, None)
        device = next(matrix.parameters()).device
        return cls(
            matrix, root_whitening(gram_roots(metric), matrix.out_modes, matrix.in_modes, device)
        )

    def cores(self) -> tuple[Form, list[Tensor]]:
        """The form, and its cores in the coordinates of the whitening."""
        form, cores = folded_cores(self.matrix)
        if self.whitening is not None:
            cores = form.absorb(cores, self.whitening.rows, self.whitening.columns)
        return form, cores

    def values(self) -> list[Tensor]:
        """Singular values of each bond in fp32; of a CP decomposition the components' norms."""
        form, cores = self.cores()
        if isinstance(form, TrainForm):
            return train_bonds(cores)
        if isinstance(form, TuckerForm):
            return tucker_bonds(cores[0], cores[1:])
        return [cp_weights(cores)]


Bonds = LowRankBond | FoldedBonds


def bonds_of(matrix: CompressedMatrix, metric: Metric | None = None) -> Bonds | None:
    """The bonds of a stored matrix, or ``None`` if it is not factorised.

    Those of a corrected matrix are the corrector's.

    Args:
        matrix: in any stored form.
        metric: what a change of the matrix costs. Values are those of the matrix in coordinates in
            which that is the identity: exactly for two factors, nearly for cores, see
            ``root_whitening``.
    """
    if isinstance(matrix, CorrectedMatrix):
        return bonds_of(matrix.corrector, metric)
    if isinstance(matrix, LowRankMatrix):
        if metric is None:
            return LowRankBond(matrix, None)
        whitening = Whitening.of(metric.rows, metric.columns)
        return LowRankBond(matrix, Whitening(whitening.rows.float(), whitening.columns.float()))
    return FoldedBonds.of(matrix, metric) if isinstance(matrix, FoldedMatrix) else None


def folded_cores(matrix: FoldedMatrix) -> tuple[Form, list[Tensor]]:
    """The form of a folded matrix, and its cores in the order and shape of that form, in fp32."""
    modes = matrix.out_modes, matrix.in_modes
    if isinstance(matrix, TensorTrainMatrix):
        cores = [core.permute(2, 0, 3, 1) for core in matrix.cores.read(torch.float32)]
        return TrainForm(matrix.ranks[1:-1], *modes), cores
    outs, ins = (side.read(torch.float32) for side in (matrix.out_factors, matrix.in_factors))
    if isinstance(matrix, CpMatrix):
        return CpForm((outs[0].shape[1],), *modes), [*outs, *ins]
    ranks = matrix.out_ranks + matrix.in_ranks
    core = matrix.core.read(torch.float32).reshape(ranks)
    return TuckerForm(ranks, *modes), [core, *outs, *(factor.T for factor in ins)]


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    factor = factor.to(matrix.device)
    return matrix * factor if factor.ndim == 1 else matrix @ factor
