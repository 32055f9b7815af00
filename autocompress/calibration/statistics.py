"""A pass over the calibration text: Gram matrices of every matrix's inputs and output gradients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.numerics.metric import FULL_GRAM_LIMIT, Curvature, Metric
from autocompress.records import Kind, LayerSpec
from autocompress.surgery.placement import experts_apart

# mlp.experts.gate_up_proj.3, mlp.experts.3.up_proj: the same matrix of experts that are siblings
_EXPERT = re.compile(r"(?P<layer>.*\bexperts)(?P<matrix>\..*)")
_INDEX = re.compile(r"\.\d+")


@dataclass
class GramSum:
    """A Gram matrix while it is being summed, in fp32 or wider.

    Args:
        size: n.
        diagonal: keep only the diagonal ``[n]``; else the whole ``[n, n]``.
    """

    size: int
    diagonal: bool
    total: Tensor | None = None
    vectors: int = 0

    def add(self, batch: Tensor) -> None:
        """Add ``batch [..., n]``: the sum over its vectors of ``v v^T``."""
        vectors = batch.detach().reshape(-1, self.size).float()
        part = vectors.square().sum(0) if self.diagonal else vectors.T @ vectors
        self.total = part if self.total is None else self.total.add_(part)
        self.vectors += len(vectors)

    def add_counts(self, ids: Tensor) -> None:
        """Add one-hot vectors given by their indices: the diagonal is how often each occurs."""
        part = torch.bincount(ids.detach().reshape(-1), minlength=self.size).float()
        self.total = part if self.total is None else self.total.add_(part)
        self.vectors += ids.numel()

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


class Use:
    """One place where a matrix is used: the sums of its two Gram matrices, fed by hooks.

    For a linear use the inputs give the columns and the output gradients the rows; for a lookup the
    token counts give the rows and the gradients the columns.
    """

    def __init__(self, spec: LayerSpec, module: nn.Module, *, lookup: bool) -> None:
        self.module, self.lookup = module, lookup
        wide_rows = spec.kind is Kind.EMBEDDING or spec.out_features > FULL_GRAM_LIMIT
        self.inputs = GramSum(spec.out_features, True) if lookup else self._sum(spec.in_features)
        self.gradients = (
            self._sum(spec.in_features) if lookup else GramSum(spec.out_features, wide_rows)
        )

    @staticmethod
    def _sum(size: int) -> GramSum:
        return GramSum(size, diagonal=size > FULL_GRAM_LIMIT)

    def watch(self) -> list[Any]:
        """Hook the module; the handles remove the hooks."""

        def forward(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.inputs.add_counts(args[0]) if self.lookup else self.inputs.add(args[0])
            if output.requires_grad:
                output.register_hook(self.gradients.add)  # type: ignore[no-untyped-call]

        return [self.module.register_forward_hook(forward)]

    def curvature(self, tokens: int) -> Curvature:
        """Means over what was seen.

        Gradients are divided by all tokens, so that a matrix used twice a token counts twice, and
        one of an expert by the share of the tokens that are routed to it.
        """
        inputs = self.inputs.frequencies() if self.lookup else self.inputs.mean(self.inputs.vectors)
        gradients = self.gradients.mean(tokens)
        if self.gradients.vectors == 0 and self.inputs.vectors:
            # A model without a loss: every output counts the same.
            gradients = torch.full((self.gradients.size,), self.inputs.vectors / tokens)
        return (
            Curvature(rows=inputs, columns=gradients, tokens=self.inputs.vectors)
            if self.lookup
            else Curvature(rows=gradients, columns=inputs, tokens=self.inputs.vectors)
        )


def uses_of(model: nn.Module, spec: LayerSpec) -> list[Use]:
    """Find the places where a matrix is used: its own module, and those tied to it."""
    own = Use(spec, model.get_submodule(spec.name), lookup=spec.kind is Kind.EMBEDDING)
    return [own, *(Use(spec, model.get_submodule(name), lookup=False) for name in spec.tied)]


def collect_statistics(
    model: nn.Module,
    specs: Iterable[LayerSpec],
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _tokens: None,
) -> dict[str, Metric]:
    """Collect the metric of every matrix in one pass.

    The gradients are those of the log-likelihood of labels drawn from the model's own predictions,
    so that their Gram matrix is that of the Fisher information, whose quadratic form predicts the
    KL divergence (Martens and Grosse 2015, section 2; the labels of the text would give the
    empirical Fisher instead).

    Args:
        model: in evaluation mode; its weights are not touched.
        specs: the matrices to watch.
        batches: token ids ``[batch, length]``.
        seed: of the drawn labels.
        advance: called with the number of tokens done, for progress.
    """
    watched = tuple(specs)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = 0
    with experts_apart(model, watched):
        uses = {spec.name: uses_of(model, spec) for spec in watched}
        with _watching(uses), _gradients_from_the_embeddings(model):
            for ids in batches:
                _accumulate(model, ids.to(device), generator)
                tokens += ids.numel()
                advance(ids.numel())
    _lend_to_idle_experts(uses)
    return {
        name: Metric(tuple(use.curvature(tokens) for use in places))
        for name, places in uses.items()
    }


def _lend_to_idle_experts(uses: dict[str, list[Use]]) -> None:
    """Let an expert that no token reached count as if one had, an average one of its siblings'.

    Without it, every change of that expert would be predicted to do no harm at all.
    """
    siblings: dict[str, list[Use]] = defaultdict(list)
    for name, places in uses.items():
        if expert := _EXPERT.match(name):
            siblings[expert["layer"] + _INDEX.sub("", expert["matrix"])].append(places[0])
    for group in siblings.values():
        seen = [use for use in group if use.inputs.vectors]
        for use in group:
            if seen and not use.inputs.vectors:
                use.inputs.borrow([other.inputs for other in seen])
                use.gradients.borrow([other.gradients for other in seen])


@contextmanager
def _watching(uses: dict[str, list[Use]]) -> Iterator[None]:
    handles = [handle for places in uses.values() for use in places for handle in use.watch()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _gradients_from_the_embeddings(model: nn.Module) -> Iterator[None]:
    """Let gradients flow to every activation while no parameter gathers one.

    What embeddings return (of tokens, and of positions where a model learns them) is made leaves.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    finder: Any = getattr(model, "get_input_embeddings", None)
    named = finder() if finder is not None else None
    for parameter, _ in required:
        parameter.requires_grad_(False)
    # First in line, so that the hooks of the statistics see an output that asks for gradients.
    handles = [
        module.register_forward_hook(
            lambda _module, _args, output: output.detach().requires_grad_(), prepend=True
        )
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is named
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def _accumulate(model: nn.Module, ids: Tensor, generator: torch.Generator) -> None:
    logits = getattr(model(input_ids=ids), "logits", None)
    if logits is None or not logits.requires_grad:
        return
    flat = logits.float().reshape(-1, logits.shape[-1])
    with torch.no_grad():
        labels = torch.multinomial(flat.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(
            flat.device
        )
    nn.functional.cross_entropy(flat, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]


def to_tensors(metrics: dict[str, Metric]) -> dict[str, Tensor]:
    """Flatten metrics for the cache: ``<layer>|<term>|rows``, ``...|columns``, ``...|tokens``."""
    return {
        f"{name}|{index}|{part}": torch.as_tensor(getattr(term, part))
        for name, metric in metrics.items()
        for index, term in enumerate(metric.terms)
        for part in ("rows", "columns", "tokens")
    }


def from_tensors(tensors: dict[str, Tensor]) -> dict[str, Metric]:
    """Read what ``to_tensors`` wrote."""
    terms: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, index, part = key.rsplit("|", 2)
        terms.setdefault(name, {}).setdefault(int(index), {})[part] = tensor
    return {
        name: Metric(tuple(_curvature(parts[i]) for i in sorted(parts)))
        for name, parts in terms.items()
    }


def _curvature(parts: dict[str, Tensor]) -> Curvature:
    return Curvature(parts["rows"], parts["columns"], int(parts["tokens"]))
