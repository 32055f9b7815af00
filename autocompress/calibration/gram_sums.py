"""Gram matrices while they are being summed, and the hooks on a model's modules that feed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.numerics.metric import FULL_GRAM_LIMIT, Curvature
from autocompress.records import Kind, LayerSpec

BLOCK_ELEMENTS = 2**22  # of vectors that are squared at a time


def with_gradient(output: Tensor) -> Tensor:
    """What a module returns, with a gradient of its own where it has none.

    It is a copy of a leaf: a model may write into it, which autograd forbids for leaves.
    """
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.detach().requires_grad_().clone()


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a module with one input was called with."""
    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    return given


class GramSum:
    """A Gram matrix while it is being summed, in fp32, where the vectors are.

    Args:
        size: n.
        diagonal: keep only the diagonal ``[n]``; else the whole ``[n, n]``.
    """

    def __init__(self, size: int, diagonal: bool) -> None:
        self.size, self.diagonal = size, diagonal
        self.total: Tensor | None = None
        self.vectors = 0

    def add(self, batch: Tensor) -> None:
        """Add ``batch [..., n]``: the sum over its vectors of ``v v^T``."""
        every = batch.detach().reshape(-1, self.size)
        self.vectors += len(every)
        if self.diagonal:
            for vectors in torch.split(every, max(1, BLOCK_ELEMENTS // self.size)):
                self._add(vectors.float().square().sum(0))
            return
        vectors = every.float()
        if self.total is None:
            self.total = vectors.T @ vectors
        else:
            self.total.addmm_(vectors.T, vectors)

    def add_counts(self, ids: Tensor) -> None:
        """Add one-hot vectors given by their indices: the diagonal is how often each occurs."""
        self._add(torch.bincount(ids.detach().reshape(-1), minlength=self.size).float())
        self.vectors += ids.numel()

    def _add(self, part: Tensor) -> None:
        self.total = part if self.total is None else self.total.add_(part)

    def frequencies(self) -> Tensor:
        """How often each index is to be expected, ``[n]``, after ``add_counts``.

        The chance that the next one is new is the share of those seen once (Good 1953); it is
        spread over all, since most of a vocabulary does not occur in a calibration text and later
        does.
        """
        counts = self.mean(1)
        if not self.vectors:
            return counts
        new = float((counts == 1).sum()) / self.vectors
        return (1 - new) * counts / self.vectors + new / self.size

    def borrow(self, others: list[GramSum]) -> None:
        """Take the mean over the vectors of others for one vector of its own."""
        totals = [other.total for other in others if other.total is not None]
        if totals:
            self.total = torch.stack(totals).sum(0) / sum(other.vectors for other in others)
            self.vectors = 1

    def mean(self, count: int) -> Tensor:
        """Return the sum over ``count``; zeros when the matrix was never used."""
        if self.total is None:
            return torch.zeros(self.size if self.diagonal else (self.size, self.size))
        return self.total.cpu() / max(count, 1)


class GramUse:
    """One place where a matrix is used: the sums of its two Gram matrices, fed by hooks.

    For a linear use the inputs give the columns and the output gradients the rows; for a lookup the
    token counts give the rows and the gradients the columns.
    """

    def __init__(self, spec: LayerSpec, path: str, module: nn.Module) -> None:
        self.module, self.lookup = module, isinstance(module, nn.Embedding)
        self.factor = spec.factor_of(path)
        lookup = self.lookup
        wide_rows = spec.kind is Kind.EMBEDDING or spec.out_features > FULL_GRAM_LIMIT
        self.inputs = GramSum(spec.out_features, True) if lookup else self._sum(spec.in_features)
        self.gradients = (
            self._sum(spec.in_features) if lookup else GramSum(spec.out_features, wide_rows)
        )

    @staticmethod
    def _sum(size: int) -> GramSum:
        return GramSum(size, diagonal=size > FULL_GRAM_LIMIT)

    def watch(self) -> Any:
        """Hook the module; the handle removes the hook."""

        def forward(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            given = input_of(args, kwargs)
            self.inputs.add_counts(given) if self.lookup else self.inputs.add(given)
            if torch.is_grad_enabled():
                output = with_gradient(output)
                output.register_hook(self.gradients.add)  # type: ignore[no-untyped-call]
            return output

        return self.module.register_forward_hook(forward, with_kwargs=True)

    def curvature(self, rows: int) -> Curvature:
        """Means over what was seen.

        Gradients are divided by all rows of outputs, so that a matrix used twice a row counts
        twice, and one of an expert by the share of the rows that are routed to it.
        """
        inputs = self.inputs.frequencies() if self.lookup else self.inputs.mean(self.inputs.vectors)
        gradients = self.gradients.mean(rows) * self.factor**2  # by the row, not what it becomes
        if self.gradients.vectors == 0 and self.inputs.vectors:
            # A model without a loss: every output counts the same.
            gradients = torch.full((self.gradients.size,), self.inputs.vectors / rows)
        return (
            Curvature(rows=inputs, columns=gradients, tokens=self.inputs.vectors)
            if self.lookup
            else Curvature(rows=gradients, columns=inputs, tokens=self.inputs.vectors)
        )


@contextmanager
def watching(uses: Iterable[Any]) -> Iterator[None]:
    """Feed these sums with what the model computes meanwhile."""
    handles = [use.watch() for use in uses]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
