"""The metric in which a matrix is approximated: how much a change of its elements raises the loss.

For a linear map ``y = W x`` the loss rises, to second order and in the Kronecker-factored
approximation of the Fisher matrix (Martens and Grosse 2015, arXiv 1503.05671), by ``1/2 tr(S D G
D^T)`` nats per token, where ``D`` is the change of ``W``, ``G = E[x x^T]`` the Gram matrix of the
inputs and ``S = E[g g^T]`` that of the output gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curvature:
    """One Kronecker term: the use of a matrix ``[out, in]`` at one place of the model.

    Attributes:
        rows: Gram matrix ``[out, out]`` of the output gradients, or its diagonal ``[out]``.
        columns: Gram matrix ``[in, in]`` of the inputs, or its diagonal ``[in]``.
        tokens: that both are means over; 0 when that is not known.
    """

    rows: Tensor
    columns: Tensor
    tokens: int = 0

    def loss_increase(self, change: Tensor, weighted: Tensor | None = None) -> float:
        """Predict the loss increase that the use at this place sees; see ``Metric.loss_increase``.

        Args:
            change: ``[out, in]`` in fp32.
            weighted: its product with the Gram matrix of the columns, where that is known.
        """
        rows, columns = self.rows.to(change), self.columns.to(change)
        if rows.ndim == 2:
            inner = apply_gram(columns, change.T).T if weighted is None else weighted
            return 0.5 * float((apply_gram(rows, inner) * change).sum())
        if weighted is not None:
            return 0.5 * float((weighted * change).sum(1) @ rows)
        total = 0.0
        at_once = max(1, MOST_WEIGHTED // change.shape[1])
        parts = torch.split(change, at_once)
        for part, weights in zip(parts, torch.split(rows, at_once), strict=True):
            energies = (apply_gram(columns, part.T).T * part).sum(1)
            total += 0.5 * float(energies @ weights)
        return total


def apply_gram(gram: Tensor, matrix: Tensor) -> Tensor:
    """Return ``gram @ matrix [n, m]`` for a Gram matrix ``[n, n]`` or its diagonal ``[n]``."""
    return gram[:, None] * matrix if gram.ndim == 1 else gram @ matrix


def trace(gram: Tensor) -> float:
    """Trace of a Gram matrix ``[n, n]`` or of its diagonal ``[n]``."""
    return float(gram.sum() if gram.ndim == 1 else gram.trace())


@dataclass(frozen=True)
class Metric:
    """All uses of a matrix ``[out, in]``: two terms for a tied embedding and head, else one."""

    terms: tuple[Curvature, ...]

    @classmethod
    def identity(cls, out_features: int, in_features: int) -> Metric:
        """Plain Frobenius metric, for fitting without calibration."""
        return cls((Curvature(torch.ones(out_features), torch.ones(in_features)),))

    @property
    def reached(self) -> bool:
        """Whether it is a mean over anything: not where calibration saw no input vector."""
        return any(term.tokens or bool(term.rows.any()) for term in self.terms)

    def loss_increase(self, change: Tensor) -> float:
        """Predict the rise of the loss, in nats per token, when ``change [out, in]`` is added."""
        change = change.float()
        return max(sum(term.loss_increase(change) for term in self.terms), 0.0)

    @cached_property
    def rows(self) -> Tensor:
        """One Gram matrix for the rows, ``[out, out]`` or diagonal ``[out]``.

        It is the sum of the terms, weighted by their share.
        """
        return self._combined([t.rows for t in self.terms], [trace(t.columns) for t in self.terms])

    @cached_property
    def columns(self) -> Tensor:
        """One Gram matrix for the columns, ``[in, in]`` or diagonal ``[in]``."""
        return self._combined([t.columns for t in self.terms], [trace(t.rows) for t in self.terms])

    @staticmethod
    def _combined(grams: list[Tensor], weights: list[float]) -> Tensor:
        # A sum of Kronecker products is no Kronecker product; this one has the same partial traces
        # as the sum, up to scale (the pi-free form of Martens and Grosse 2015, section 6.3).
        if len(grams) == 1:
            return grams[0]
        if any(gram.ndim == 2 for gram in grams) and grams[0].shape[0] <= FULL_GRAM_LIMIT:
            grams = [torch.diag(gram) if gram.ndim == 1 else gram for gram in grams]
        else:
            grams = [gram if gram.ndim == 1 else gram.diagonal() for gram in grams]
        total = sum(weights) or 1.0
        return torch.stack(
            [gram * (weight / total) for gram, weight in zip(grams, weights, strict=True)]
        ).sum(0)


MOST_WEIGHTED = 2**22  # elements of a matrix at a time, where its rows do not interact
FULL_GRAM_LIMIT = (
    8192  # beyond it only the diagonal is kept: a full fp32 Gram matrix would take over 256 MiB
)
