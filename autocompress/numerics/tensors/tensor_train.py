"""Tensor train of a matrix: both sides folded, one core per pair of an out mode and an in mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.numerics.kronecker import multiply_mode
from autocompress.numerics.tensors.entanglement import column_basis, product_values
from autocompress.numerics.tensors.tensor_fit import Environment, TensorForm, pad_to


def fold_pairs(matrix: Tensor, out_modes: Sequence[int], in_modes: Sequence[int]) -> Tensor:
    """Pad ``[out, in]`` with zeros and fold it to ``[o_1 * i_1, ..., o_d * i_d]``.

    The folding is that of Novikov et al. 2015.
    """
    order = len(out_modes)
    padded = pad_to(matrix, out_modes, in_modes)
    paired = padded.reshape(*out_modes, *in_modes).permute(
        [k + side * order for k in range(order) for side in (0, 1)]
    )
    return paired.reshape([o * i for o, i in zip(out_modes, in_modes, strict=True)])


def principal_split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Split ``[m, n]`` best into orthonormal columns ``[m, rank]`` times ``[rank, n]``.

    Returns the two and the squared error, in the type of the matrix. The Gram matrix of the thinner
    side is decomposed: in fp32 that leaves directions below 3e-4 of the largest unsorted.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
        basis = vectors.flip(1)[:, :rank]
        return basis, basis.T @ matrix, float(squares.flip(0)[rank:].clamp_min(0).sum())
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    basis, rest = torch.linalg.qr(matrix @ vectors.flip(1)[:, :rank])
    error = float(squares.flip(0)[rank:].clamp_min(0).sum())
    return basis, rest @ vectors.flip(1)[:, :rank].T, error


def decompose_train(tensor: Tensor, ranks: Sequence[int]) -> tuple[list[Tensor], list[float]]:
    """TT-SVD (Oseledets 2011, algorithm 1), with ranks given instead of a tolerance.

    Args:
        tensor: ``[n_1, ..., n_d]``.
        ranks: ``d - 1`` ranks; none above what the unfoldings allow.

    Returns:
        Cores ``[r_{k-1}, n_k, r_k]`` in the type of the tensor, all but the last with orthonormal
        columns, and the squared error of each cut. The squared error of the whole is their sum, and
        at most the sum over the unfoldings of ``tensor`` itself (theorem 2.2).
    """
    rest, before = tensor.flatten(), 1
    cores, errors = [], []
    for mode, rank in zip(tensor.shape, ranks, strict=False):
        basis, rest, error = principal_split(rest.reshape(before * mode, -1), rank)
        cores.append(basis.reshape(before, mode, -1))
        errors.append(error)
        before = cores[-1].shape[2]
    cores.append(rest.reshape(before, tensor.shape[-1], 1))
    return cores, errors


def random_train(form: TensorForm, size: float, generator: torch.Generator) -> list[Tensor]:
    """Gaussian cores ``[r_{k-1}, o_k, i_k, r_k]`` in fp32, for a matrix to be trained from nothing.

    An element of the matrix is a sum over all ranks of products of one element of each core, so its
    variance is that of a core's to the power of the number of cores, times the ranks.

    Args:
        form: ranks and modes.
        size: root mean square of the matrix's elements that is expected.
        generator: on the CPU.
    """
    ranks = (1, *form.ranks, 1)
    deviation = (size / math.sqrt(math.prod(form.ranks))) ** (1 / len(form.out_modes))
    return [
        deviation * torch.randn(ranks[k], o, i, ranks[k + 1], generator=generator)
        for k, (o, i) in enumerate(zip(form.out_modes, form.in_modes, strict=True))
    ]


def even_norms(factors: Sequence[Tensor]) -> list[Tensor]:
    """Spread a product's scale evenly over its factors, to stay in the range of half precision."""
    norms = [float(factor.norm()) / math.sqrt(factor.numel()) for factor in factors]
    if not all(norm > 0 for norm in norms):
        return list(factors)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]


def train_to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """Multiply cores ``[r_{k-1}, o_k, i_k, r_k]`` out to the matrix ``[prod o, prod i]``."""
    matrix = cores[0][0]
    for core in cores[1:]:
        rows, columns, _ = matrix.shape
        matrix = (
            torch.tensordot(matrix, core, dims=1)
            .transpose(1, 2)
            .reshape(rows * core.shape[1], columns * core.shape[2], -1)
        )
    return matrix[:, :, 0]


def train_bonds(cores: Sequence[Tensor]) -> list[Tensor]:
    """Singular values at each of the ``d - 1`` bonds of a train of cores ``[r_{k-1}, ..., r_k]``.

    As many at a bond as its rank, or fewer where the modes on a side allow no more.
    """
    forwards = _swept([core.flatten(1, -2) for core in cores])
    backwards = _swept([core.flatten(1, -2).transpose(0, 2) for core in reversed(cores)])
    return [
        product_values(left.T, right.T)
        for left, right in zip(forwards, reversed(backwards), strict=True)
    ]


def _swept(cores: Sequence[Tensor]) -> list[Tensor]:
    """What each bond is left with of the cores ``[r, n, r']`` before it: ``[basis, r']``."""
    carried = cores[0].new_ones(1, 1)
    found = []
    for core in cores[:-1]:
        matrix = torch.tensordot(carried, core, dims=1).flatten(0, 1)
        carried = column_basis(matrix).T @ matrix
        found.append(carried)
    return found


class TrainForm(TensorForm):
    """Cores ``[r_{k-1}, o_k, i_k, r_k]``; ``d - 1`` ranks and ``d`` modes on either side."""

    def decompose(self, matrix: Tensor) -> list[Tensor]:
        """TT-SVD."""
        tensor = fold_pairs(matrix, self.out_modes, self.in_modes)
        cores, _ = decompose_train(tensor, self.ranks)
        return [
            core.reshape(core.shape[0], o, i, core.shape[2])
            for core, o, i in zip(even_norms(cores), self.out_modes, self.in_modes, strict=True)
        ]

    def multiply_out(self, cores: Sequence[Tensor]) -> Tensor:
        """See ``train_to_matrix``."""
        return train_to_matrix(cores)

    def environments(self, cores: Sequence[Tensor]) -> list[Environment]:
        """Gram matrices of all that is to the left of a core, and of all to its right."""
        left, right = [cores[0].new_ones(1, 1)], [cores[0].new_ones(1, 1)]
        for core in cores[:-1]:
            carried = torch.tensordot(left[-1], core, dims=1)
            left.append(torch.tensordot(core, carried, dims=([0, 1, 2], [0, 1, 2])))
        for core in reversed(cores[1:]):
            carried = torch.tensordot(core, right[-1], dims=1)
            right.append(torch.tensordot(core, carried, dims=([1, 2, 3], [1, 2, 3])))
        return [((0, before), (3, after)) for before, after in zip(left, right[::-1], strict=True)]

    def absorb(
        self, cores: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Each core takes the matrices of its two modes."""
        return [
            multiply_mode(multiply_mode(core, row, 1), column, 2)
            for core, row, column in zip(cores, rows, columns, strict=True)
        ]

    def bonds(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """See ``train_bonds``."""
        return train_bonds(cores)
