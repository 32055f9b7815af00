"""Gram matrices of every matrix's inputs and output gradients on the calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autocompress.calibration.blocks import Blocks, NotBlockwise
from autocompress.calibration.collection import Collection
from autocompress.calibration.gram_sums import with_gradient
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

    The gradients are those of the log-likelihood of labels drawn from the model's own predictions,
    so that their Gram matrix is that of the Fisher information, whose quadratic form predicts the
    KL divergence (Martens and Grosse 2015, section 2; the labels of the text would give the
    empirical Fisher instead).

    One pass without gradients keeps the hidden states before each block on disk. Then each block is
    run again with gradients, given those that came back from the block after it, so memory holds
    the model, one block's activations on one batch, and one block's Gram matrices. A model whose
    blocks cannot be run alone is run as a whole, with the Gram matrices of all of it in memory.

    Args:
        model: in evaluation mode; its weights are not touched.
        specs: the matrices to watch.
        batches: token ids ``[batch, length]``.
        keep: given metrics by name as they are done, those of the experts of one layer together.
        seed: of the drawn labels.
        advance: called with a number of tokens done, for progress; in all, those of the batches.
        note: told why a model is run as a whole.
        folder: on whose disk the hidden states are kept.
    """
    watched, device = tuple(specs), next(model.parameters()).device
    work = [ids.to(device) for ids in batches]
    with (
        experts_apart(model, watched),
        gradients_from_the_embeddings(model),
        without_cache(model),
    ):
        collection = Collection(model, watched, work, keep, seed=seed, advance=advance)
        try:
            with closing(Blocks(model, folder)) as blocks:
                collection.block_by_block(blocks)
        except NotBlockwise as reason:
            note(f"Calibrating on the whole model at once, not block by block: {reason}")
            collection.as_a_whole()


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
