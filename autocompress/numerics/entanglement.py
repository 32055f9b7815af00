"""Entanglement entropies of factorised matrices: how many singular values each bond really needs.

A bond cuts a network of factors in two. The singular values of the unfolded matrix along that cut
are its Schmidt coefficients, and their normalised squares a distribution (Schollwöck 2011, arXiv
1008.3477, section 4.1). They are found from the factors alone: those on either side of a bond are
swept into orthonormal bases by QR (section 4.4 there), and what is decomposed is as large as the
rank. The bases are held constant for the gradient, which is exact for singular values: to first
order these change by ``u^T dW v``, without a change of their vectors (Townsend 2016,
"Differentiating the singular value decomposition"). So the gradient of a function of all values
alike stays finite where some coincide or vanish.

All functions work in the floating-point type and on the device of what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from autocompress.numerics.kronecker import multiply_mode
from autocompress.numerics.tucker import unfold

LEAST_SHARE = 1e-8  # below it a value is gone: slopes of low orders would drown all others
NEAR_SHANNON = 1e-3  # of an order to 1, where its formula is all cancellation


def entropy(values: Tensor, alpha: float) -> Tensor:
    """Rényi entropy of the normalised squares of singular values, in nats.

    ``log(sum p^alpha) / (1 - alpha)`` (Rényi 1961): it falls with the order ``alpha``, from the
    logarithm of the rank at 0 over Shannon's entropy at 1 to ``-log max p`` at infinity. Orders
    below 1 bound the share that a truncation discards (Verstraete and Cirac 2006, arXiv
    cond-mat/0505140, lemma 2).

    Args:
        values: ``[k]``, not negative; zero for values that all vanish.
        alpha: above 0; infinity as well.

    Returns:
        A scalar from 0 to ``log k``.
    """
    squares = values.square()
    shares = squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
    shares = shares[shares > LEAST_SHARE]
    if not len(shares):
        return values.sum() * 0
    if math.isinf(alpha):
        return -shares.max().log()
    if abs(alpha - 1) < NEAR_SHANNON:
        return -(shares * shares.log()).sum()
    return shares.pow(alpha).sum().log() / (1 - alpha)


def lowering_entropy(values: Tensor, alpha: float) -> Tensor:
    """The same entropy, with a gradient for those values alone whose fall lowers it.

    An entropy also falls where the largest values rise. Descent would raise them until the others
    look smaller, and what is then cut costs more than its share says. To divide by a constant norm
    instead is no way out: above order 1 all values rise then, and no share changes.

    Args:
        values: ``[k]``, see ``entropy``.
        alpha: likewise.

    Returns:
        A scalar from 0 to ``log k``.
    """
    with torch.enable_grad():
        probe = values.detach().requires_grad_()
        found = entropy(probe, alpha)
        (slope,) = torch.autograd.grad(found, probe)
    return found.detach() + (slope.clamp_min(0) * (values - values.detach())).sum()


def factors_bond(left: Tensor, right: Tensor) -> Tensor:
    """Singular values ``[r]`` of ``left.T @ right``, falling, for ``[r, out]`` and ``[r, in]``."""
    return _singular_values(left @ _basis(left.T), right @ _basis(right.T))


def train_bonds(cores: Sequence[Tensor]) -> list[Tensor]:
    """Singular values at each of the ``d - 1`` bonds of a train of cores ``[r_{k-1}, ..., r_k]``.

    As many at a bond as its rank, or fewer where the modes on a side allow no more.
    """
    forwards = _swept([core.flatten(1, -2) for core in cores])
    backwards = _swept([core.flatten(1, -2).transpose(0, 2) for core in reversed(cores)])
    return [
        _singular_values(left.T, right.T)
        for left, right in zip(forwards, reversed(backwards), strict=True)
    ]


def tucker_bonds(core: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Singular values of each mode's unfolding, for a core ``[r_1, ..]`` and ``[n_k, r_k]``."""
    whole = core
    for mode, factor in enumerate(factors):
        whole = multiply_mode(whole, _basis(factor).T @ factor, mode)
    bonds = []
    for mode in range(whole.ndim):
        unfolding = unfold(whole, mode)
        bonds.append(torch.linalg.svdvals(unfolding @ _basis(unfolding.T)))
    return bonds


def cp_weights(factors: Sequence[Tensor]) -> Tensor:
    """Norms ``[r]`` of the components of factors ``[n_k, r]``.

    The rank of a sum of outer products is no rank of any unfolding: what may be left out are
    components. So the weights of the components stand for singular values here, though components
    are not orthogonal, and their squares sum to the squared norm of the matrix only if they are.
    """
    squares = reduce(mul, [factor.square().sum(0) for factor in factors])
    tiny = torch.finfo(squares.dtype).tiny
    return squares.clamp_min(tiny).sqrt()


def _swept(cores: Sequence[Tensor]) -> list[Tensor]:
    """What each bond is left with of the cores ``[r, n, r']`` before it: ``[basis, r']``."""
    carried = cores[0].new_ones(1, 1)
    found = []
    for core in cores[:-1]:
        matrix = torch.tensordot(carried, core, dims=1).flatten(0, 1)
        carried = _basis(matrix).T @ matrix
        found.append(carried)
    return found


def _basis(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``matrix [m, n]``: ``[m, min(m, n)]``, constant."""
    basis: Tensor = torch.linalg.qr(matrix.detach())[0]
    return basis


def _singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of ``left.T @ right`` for ``[r, a]`` and ``[r, b]``, ``min(a, b, r)``."""
    values: Tensor = torch.linalg.svdvals(left.T @ right)
    return values
