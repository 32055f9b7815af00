"""Metrics from few tokens: Gram matrices shrunk towards their diagonals, or cut down to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from autocompress.numerics.metric import Curvature, Metric

GramKind = Literal["full", "shrunk", "diagonal"]


def with_grams(metric: Metric, kind: GramKind) -> Metric:
    """The metric with its Gram matrices as they are, shrunk, or reduced to their diagonals.

    ``shrunk`` leaves a term as it is when the tokens behind it are not known.
    """
    if kind == "full":
        return metric
    return Metric(tuple(_with_grams(term, kind) for term in metric.terms))


def _with_grams(term: Curvature, kind: GramKind) -> Curvature:
    if kind == "diagonal":
        rows, columns = (
            gram if gram.ndim == 1 else gram.diagonal().clone()
            for gram in (term.rows, term.columns)
        )
        return replace(term, rows=rows, columns=columns)
    if term.tokens < 2:  # not known, or the statistics of others
        return term
    return replace(
        term, rows=shrink(term.rows, term.tokens), columns=shrink(term.columns, term.tokens)
    )


def shrink(gram: Tensor, samples: int) -> Tensor:
    """Mix a Gram matrix ``[n, n]`` with its diagonal by the estimated intensity."""
    if gram.ndim == 1:
        return gram
    intensity = shrinkage_intensity(gram, samples)
    return gram * (1 - intensity) + torch.diag(gram.diagonal() * intensity)


def shrinkage_intensity(gram: Tensor, samples: int) -> float:
    """Share of the diagonal, in [0, 1], that brings a sampled Gram matrix nearest to the true one.

    ``sum Var(r_ij) / sum r_ij^2`` over the correlations off the diagonal (Schaefer and Strimmer
    2005, target D: a diagonal of unequal variances). Their variances are estimated from the
    samples; here only the Gram matrix is kept, so they are those of normal variables, ``(1 -
    r_ij^2)^2 / (samples - 1)``, as oracle-approximating shrinkage assumes too (Chen et al. 2010,
    arXiv 0907.4698).

    Args:
        gram: ``[n, n]``.
        samples: vectors that it is the mean of.
    """
    scale = gram.diagonal().double().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    squares = (gram.double() * inverse * inverse[:, None]).square().fill_diagonal_(0).clamp_(max=1)
    total = float(squares.sum())
    # Rows that are zero have no correlations, and no variances of them either.
    pairs = (inverse > 0).double()
    pairs = (pairs * pairs[:, None]).fill_diagonal_(0)
    variance = float(((1 - squares).square() * pairs).sum()) / max(samples - 1, 1)
    return min(1.0, variance / total) if total > 0 else 1.0
