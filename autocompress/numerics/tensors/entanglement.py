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

import torch
from torch import Tensor

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
    return product_values(left @ column_basis(left.T), right @ column_basis(right.T))


def column_basis(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``matrix [m, n]``: ``[m, min(m, n)]``, constant."""
    basis: Tensor = torch.linalg.qr(matrix.detach())[0]
    return basis


def product_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of ``left.T @ right`` for ``[r, a]`` and ``[r, b]``, ``min(a, b, r)``."""
    values: Tensor = torch.linalg.svdvals(left.T @ right)
    return values


def lost_beyond(values: Tensor) -> Tensor:
    """Share ``[k + 1]`` of the squared norm of falling singular values ``[k]`` lost by the rank."""
    return lost_shares(values.double().square().flip(0).cumsum(0))


def lost_shares(rising: Tensor) -> Tensor:
    """Squared norms of the last 1, 2, ... of all parts, as shares by the number of those kept."""
    lost = torch.cat([rising.flip(0), rising.new_zeros(1)])
    return lost / lost[0].clamp_min(torch.finfo(lost.dtype).tiny)
