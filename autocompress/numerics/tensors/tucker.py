"""Tucker decomposition of a matrix whose sides are folded into modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.numerics.kronecker import multiply_mode
from autocompress.numerics.tensors.entanglement import column_basis
from autocompress.numerics.tensors.tensor_fit import Environment, TensorForm, pad_to
from autocompress.numerics.tensors.tensor_train import even_norms


def fold(matrix: Tensor, out_modes: Sequence[int], in_modes: Sequence[int]) -> Tensor:
    """Pad a matrix ``[out, in]`` with zeros and fold it into ``[o_1, ..., o_d, i_1, ..., i_e]``."""
    padded = pad_to(matrix, out_modes, in_modes)
    return torch.reshape(padded, (*out_modes, *in_modes))


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Unfolding ``[n_mode, product of the others]``."""
    return tensor.permute(mode, *(k for k in range(tensor.ndim) if k != mode)).flatten(1)


def decompose_tucker(
    tensor: Tensor, ranks: Sequence[int]
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Sequentially truncated HOSVD (Vannieuwenhoven et al. 2012, algorithm 1).

    Args:
        tensor: ``[n_1, ..., n_d]``.
        ranks: ``d`` ranks.

    Returns:
        Core ``[r_1, ..., r_d]``, factors ``[n_k, r_k]`` with orthonormal columns, in the type of
        the tensor, and the squared error of each cut. The squared error of the whole is their sum,
        and at most the sum over the modes of ``tensor`` itself (their theorem 5.1).
    """
    core, factors, errors = tensor, [], []
    for mode, rank in enumerate(ranks):
        unfolding = unfold(core, mode)
        squares, vectors = torch.linalg.eigh(unfolding @ unfolding.T)
        factors.append(vectors.flip(1)[:, :rank])
        errors.append(float(squares.flip(0)[rank:].clamp_min(0).sum()))
        core = multiply_mode(core, factors[-1].T, mode)
    return core, factors, errors


def tucker_to_matrix(core: Tensor, factors: Sequence[Tensor], out_order: int) -> Tensor:
    """Multiply core and factors ``[n_k, r_k]`` to a matrix with ``out_order`` modes as rows."""
    tensor = core
    for mode, factor in enumerate(factors):
        tensor = multiply_mode(tensor, factor, mode)
    return tensor.reshape(math.prod(tensor.shape[:out_order]), -1)


def tucker_bonds(core: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Singular values of each mode's unfolding, for a core ``[r_1, ..]`` and ``[n_k, r_k]``."""
    whole = core
    for mode, factor in enumerate(factors):
        whole = multiply_mode(whole, column_basis(factor).T @ factor, mode)
    bonds = []
    for mode in range(whole.ndim):
        unfolding = unfold(whole, mode)
        bonds.append(torch.linalg.svdvals(unfolding @ column_basis(unfolding.T)))
    return bonds


class TuckerForm(TensorForm):
    """The core ``[r_1, ..., r_{d+e}]`` first, then factors ``[n_k, r_k]``, out modes first."""

    def decompose(self, matrix: Tensor) -> list[Tensor]:
        """Sequentially truncated HOSVD."""
        core, factors, _ = decompose_tucker(fold(matrix, self.out_modes, self.in_modes), self.ranks)
        return even_norms([core, *factors])

    def multiply_out(self, cores: Sequence[Tensor]) -> Tensor:
        """See ``tucker_to_matrix``."""
        return tucker_to_matrix(cores[0], cores[1:], len(self.out_modes))

    def environments(self, cores: Sequence[Tensor]) -> list[Environment]:
        """For the core the Gram matrices of all factors; for a factor that of all the rest."""
        core, *factors = cores
        grams = [factor.T @ factor for factor in factors]
        found: list[Environment] = [list(enumerate(grams))]
        for k in range(len(factors)):
            weighted = core
            for j, gram in enumerate(grams):
                if j != k:
                    weighted = multiply_mode(weighted, gram, j)
            found.append([(1, unfold(core, k) @ unfold(weighted, k).T)])
        return found

    def absorb(
        self, cores: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Each factor takes the matrix of its mode."""
        core, *factors = cores
        matrices = (*rows, *columns)
        return [
            core,
            *(multiply_mode(factor, m, 0) for m, factor in zip(matrices, factors, strict=True)),
        ]

    def bonds(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """See ``tucker_bonds``."""
        return tucker_bonds(cores[0], cores[1:])
