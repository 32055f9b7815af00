"""Matrices, metrics and problems that the tests of methods and numerics share."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.methods.base import MatrixProblem
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind, LayerSpec, Role


def gram(size: int, seed: int, *, decay: float = 1.0) -> Tensor:
    """A Gram matrix ``[n, n]`` of correlated vectors whose energy falls off over the directions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = (
        torch.randn(size, size, generator=generator)
        * torch.arange(1, size + 1).float().pow(-decay)[:, None]
    )
    vectors = torch.randn(8 * size, size, generator=generator) @ mixing
    return vectors.T @ vectors / len(vectors)


def matrix(out_features: int, in_features: int, seed: int = 0) -> Tensor:
    """A random matrix ``[out, in]`` with a falling spectrum, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out_features, in_features, generator=generator)
    right = torch.randn(in_features, in_features, generator=generator)
    return left * torch.arange(1, in_features + 1).float().pow(-0.7) @ right / in_features**0.5


def spec_of(
    out_features: int,
    in_features: int,
    *,
    kind: Kind = Kind.LINEAR,
    dtype: str = "float32",
    bias: bool = False,
) -> LayerSpec:
    role = Role.EMBEDDING if kind is Kind.EMBEDDING else Role.UP
    return LayerSpec("block.matrix", role, kind, out_features, in_features, dtype=dtype, bias=bias)


def problem_of(spec: LayerSpec, *, metric: Metric | None = None, seed: int = 0) -> MatrixProblem:
    dtype = getattr(torch, spec.dtype)
    bias = torch.randn(spec.out_features, generator=torch.Generator().manual_seed(seed + 1)).to(
        dtype
    )
    return MatrixProblem(
        spec, matrix(*spec.shape, seed).to(dtype), metric, bias if spec.bias else None
    )


def linear_metric(out_features: int, in_features: int, seed: int = 0) -> Metric:
    """Both Gram matrices in full, as for a linear layer."""
    return Metric((Curvature(gram(out_features, seed + 10), gram(in_features, seed + 20)),))


def embedding_metric(vocabulary: int, hidden: int, seed: int = 0) -> Metric:
    """Two uses: a lookup with token frequencies, and a tied head with its gradients' diagonal."""
    generator = torch.Generator().manual_seed(seed)
    counts, errors = (
        torch.rand(vocabulary, generator=generator),
        torch.rand(vocabulary, generator=generator),
    )
    return Metric(
        (Curvature(counts, gram(hidden, seed + 1)), Curvature(errors, gram(hidden, seed + 2)))
    )
