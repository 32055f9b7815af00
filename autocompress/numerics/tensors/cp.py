"""Canonical polyadic decomposition of a matrix whose sides are folded into modes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from operator import mul

import torch
from torch import Tensor

from autocompress.numerics.kronecker import multiply_mode
from autocompress.numerics.tensors.entanglement import lost_shares
from autocompress.numerics.tensors.tensor_fit import Environment, TensorForm, pad_to

SWEEPS = 3  # of alternating least squares before all factors are improved together
RIDGE = 1e-4  # share of the mean diagonal added to each system; at high ranks they are singular
SEED = 0  # of the random factors to start from


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columnwise Kronecker product of ``[n_k, r]``: ``[prod n_k, r]``."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor[None]).flatten(0, 1)
    return product


def cp_to_matrix(factors: Sequence[Tensor], out_order: int) -> Tensor:
    """Multiply factors ``[n_k, r]`` out to a matrix with ``out_order`` modes as rows."""
    return khatri_rao(factors[:out_order]) @ khatri_rao(factors[out_order:]).T


def cp_rank_limit(modes: Sequence[int]) -> int:
    """A rank at which every tensor of these modes is exact."""
    return prod(modes) // max(modes)


def decompose_cp(
    matrix: Tensor, rank: int, out_modes: Sequence[int], in_modes: Sequence[int]
) -> list[Tensor]:
    """Fit factors by alternating least squares (Harshman 1970) from random ones.

    The factors of one side share the product of the matrix with the other side's, so that a sweep
    takes two products with the matrix, whatever the order. At ranks above the modes, which weights
    need, decompositions to start from have too few vectors; a few sweeps from random ones with a
    ridge serve better, and better than as many sweeps of ``tensorly.decomposition.parafac``.

    Args:
        matrix: ``[prod out_modes, prod in_modes]``.
        rank: columns of each factor.
        out_modes: modes of the rows.
        in_modes: modes of the columns.

    Returns:
        Factors ``[n_k, rank]``, out modes first, columns of one component of equal norm.
    """
    generator = torch.Generator().manual_seed(SEED)
    factors = [
        torch.randn(n, rank, generator=generator).to(matrix) / n**0.5
        for n in (*out_modes, *in_modes)
    ]
    rows, columns = factors[: len(out_modes)], factors[len(out_modes) :]
    for _ in range(SWEEPS):
        rows = _solve_side(matrix @ khatri_rao(columns), rows, columns)
        columns = _solve_side(matrix.T @ khatri_rao(rows), columns, rows)
    return _even_columns([*rows, *columns])


def _solve_side(
    product: Tensor, factors: Sequence[Tensor], others: Sequence[Tensor]
) -> list[Tensor]:
    """Solve for each factor of one side in turn; ``product [prod n_k, r]`` with the other side."""
    solved = list(factors)
    tensor = product.reshape(*(len(factor) for factor in factors), -1)
    for k in range(len(solved)):
        rest = [factor for j, factor in enumerate(solved) if j != k]
        weights = khatri_rao(rest) if rest else product.new_ones(1, product.shape[1])
        part = (tensor.movedim(k, 0).reshape(len(solved[k]), *weights.shape) * weights).sum(1)
        system = reduce(mul, [factor.T @ factor for factor in (*rest, *others)])
        ridge = RIDGE * float(system.diagonal().mean()) or 1.0
        system = system + ridge * torch.eye(len(system), dtype=system.dtype, device=system.device)
        solved[k] = torch.linalg.solve(system, part.T).T
    return _even_columns(solved)


def _even_columns(factors: Sequence[Tensor]) -> list[Tensor]:
    """Give all vectors of a component the same norm; none to a component that vanishes."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    mean = norms.double().prod(0).pow(1 / len(norms)).to(norms)
    scales = torch.where(norms > 0, mean / norms, 0.0)
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


def cp_weights(factors: Sequence[Tensor]) -> Tensor:
    """Norms ``[r]`` of the components of factors ``[n_k, r]``.

    The rank of a sum of outer products is no rank of any unfolding: what may be left out are
    components. So the weights of the components stand for singular values here, though components
    are not orthogonal, and their squares sum to the squared norm of the matrix only if they are.
    """
    squares = reduce(mul, [factor.square().sum(0) for factor in factors])
    tiny = torch.finfo(squares.dtype).tiny
    return squares.clamp_min(tiny).sqrt()


class CpForm(TensorForm):
    """Factors ``[n_k, r]``, out modes first; one rank."""

    def decompose(self, matrix: Tensor) -> list[Tensor]:
        """A few sweeps of alternating least squares."""
        padded = pad_to(matrix, self.out_modes, self.in_modes)
        return decompose_cp(padded, self.ranks[0], self.out_modes, self.in_modes)

    def multiply_out(self, cores: Sequence[Tensor]) -> Tensor:
        """See ``cp_to_matrix``."""
        return cp_to_matrix(cores, len(self.out_modes))

    def environments(self, cores: Sequence[Tensor]) -> list[Environment]:
        """The elementwise product of the Gram matrices of all other factors."""
        grams = [factor.T @ factor for factor in cores]
        return [[(1, reduce(mul, [*grams[:k], *grams[k + 1 :]]))] for k in range(len(cores))]

    def absorb(
        self, cores: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Each factor takes the matrix of its mode."""
        return [
            multiply_mode(factor, m, 0) for m, factor in zip((*rows, *columns), cores, strict=True)
        ]

    def bonds(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """See ``cp_weights``."""
        return [cp_weights(cores)]

    def lost(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Components are not orthogonal: the norm of a sum of them follows from their products."""
        order = falling_components(cores)
        parts = [core[:, order].double() for core in cores]
        products = reduce(mul, [part.T @ part for part in parts])
        sums = products.flip(0, 1).cumsum(0).cumsum(1).diagonal()
        return [lost_shares(sums.clamp_min(0))]


def falling_components(cores: Sequence[Tensor]) -> Tensor:
    """Indices of the components of factors ``[n_k, r]`` by falling norm: ``[r]``."""
    return cp_weights(cores).argsort(descending=True)
