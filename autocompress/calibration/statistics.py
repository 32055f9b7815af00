"""Gram matrices of every matrix's inputs and output gradients on the calibration text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.blocks import Blocks, NotBlockwise
from autocompress.calibration.collection import Collection, Loss, W, siblings_of
from autocompress.calibration.gram_sums import GramUse, with_gradient
from autocompress.evaluation.objectives import objective_for
from autocompress.numerics.metric import Metric
from autocompress.records import LayerSpec
from autocompress.surgery.placement import experts_apart
from autocompress.surgery.without_cache import without_cache


def collect_statistics(
    model: nn.Module,
    specs: Iterable[LayerSpec],
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _tokens: None,
    note: Callable[[str], None] = lambda _message: None,
) -> dict[str, Metric]:
    """Collect the metric of every matrix, and hold all of them; see ``stream_statistics``."""
    watched, metrics = tuple(specs), dict[str, Metric]()
    stream_statistics(
        model, watched, batches, metrics.update, seed=seed, advance=advance, note=note
    )
    return {spec.name: metrics[spec.name] for spec in watched}


def stream_statistics(
    model: nn.Module,
    specs: Iterable[LayerSpec],
    batches: Iterable[Tensor],
    keep: Callable[[Mapping[str, Metric]], None],
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _tokens: None,
    note: Callable[[str], None] = lambda _message: None,
    folder: Path | None = None,
) -> None:
    """Collect the metric of every matrix block by block, from the last to the first.

    The gradients are those of ``Objective.drawn_loss``, whose Gram matrix predicts the divergence.

    One pass without gradients keeps the hidden states before each block on disk. Then each block is
    run again with gradients, given those that came back from the block after it, so memory holds
    the model, one block's activations on one batch, and one block's Gram matrices. A model whose
    blocks cannot be run alone is run as a whole, with the Gram matrices of all of it in memory.

    Args:
        model: in evaluation mode; its weights are not touched.
        specs: the matrices to watch.
        batches: token ids ``[batch, length]``.
        keep: given metrics by name as they are done, those of the experts of one layer together.
        seed: of what the loss draws.
        advance: called with a number of tokens done, for progress; in all, those of the batches.
        note: told why a model is run as a whole.
        folder: on whose disk the hidden states are kept.
    """
    watched = tuple(specs)
    work = list(batches)
    tokens = sum(ids.numel() for ids in work)
    objective, draws = objective_for(model), torch.Generator().manual_seed(seed)
    rows = 0  # of outputs, one a token or fewer: the loss is a mean over them

    def loss(_batch: int, _start: int, outputs: Tensor) -> Tensor:
        nonlocal rows
        rows += len(outputs)
        return objective.drawn_loss(outputs, draws)

    def hand_over(done: Mapping[str, Sequence[GramUse]]) -> None:
        _lend_to_idle_experts(done)
        keep(
            {
                name: Metric(tuple(use.curvature(rows or tokens) for use in places))
                for name, places in done.items()
            }
        )

    stream_sums(
        model,
        watched,
        GramUse,
        work,
        hand_over,
        loss,
        advance=advance,
        note=note,
        folder=folder,
    )


def stream_sums(
    model: nn.Module,
    specs: Sequence[LayerSpec],
    watch: Callable[[LayerSpec, str, nn.Module], W],
    batches: Sequence[Tensor],
    keep: Callable[[Mapping[str, Sequence[W]]], None],
    loss: Loss,
    *,
    advance: Callable[[int], None] = lambda _tokens: None,
    note: Callable[[str], None] = lambda _message: None,
    folder: Path | None = None,
) -> None:
    """Run a model forth and back, and sum what passes its matrices, block by block if it allows.

    Args:
        model: see ``stream_statistics``.
        specs: see ``stream_statistics``.
        watch: makes the sums of a matrix at one of its paths.
        batches: see ``stream_statistics``.
        keep: given the sums by name, one of each path, as they are done.
        loss: see ``Loss``.
        advance: see ``stream_statistics``.
        note: see ``stream_statistics``.
        folder: see ``stream_statistics``.
    """
    device = next(chain(model.parameters(), model.buffers())).device
    work = [ids.to(device) for ids in batches]
    with (
        experts_apart(model, specs),
        gradients_from_the_embeddings(model),
        without_cache(model),
    ):
        uses = {
            spec.name: [
                watch(spec, path, model.get_submodule(path)) for path in (spec.name, *spec.tied)
            ]
            for spec in specs
        }
        collection = Collection(model, uses, work, keep, loss, advance=advance)
        del uses  # the collection drops those that are done
        try:
            with closing(Blocks(model, folder)) as blocks:
                collection.block_by_block(blocks)
        except NotBlockwise as reason:
            note(f"Calibrating on the whole model at once, not block by block: {reason}")
            collection.as_a_whole()


def _lend_to_idle_experts(uses: Mapping[str, Sequence[GramUse]]) -> None:
    """Let an expert that no token reached count as if one had, an average one of its siblings'.

    Without it, every change of that expert would be predicted to do no harm at all.
    """
    siblings: dict[str, list[GramUse]] = defaultdict(list)
    for name, places in uses.items():
        siblings[siblings_of(name)].append(places[0])
    for group in siblings.values():
        seen = [use for use in group if use.inputs.vectors]
        for use in group:
            if seen and not use.inputs.vectors:
                use.inputs.borrow([other.inputs for other in seen])
                use.gradients.borrow([other.gradients for other in seen])


@contextmanager
def gradients_from_the_embeddings(model: nn.Module) -> Iterator[None]:
    """Let gradients flow to every activation while no parameter gathers one.

    They begin at what embeddings return (of tokens, and of positions where a model learns them).
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    finder: Any = getattr(model, "get_input_embeddings", None)
    named = finder() if finder is not None else None
    for parameter, _ in required:
        parameter.requires_grad_(False)
    # First in line, so that the hooks of the statistics see an output that asks for gradients.
    handles = [
        module.register_forward_hook(
            lambda _module, _args, output: with_gradient(output), prepend=True
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
