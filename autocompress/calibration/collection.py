"""Sums what passes the matrices while a model runs forth and back, and hands on what is done."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autocompress.calibration.blocks import Blocks
from autocompress.calibration.gram_sums import watching
from autocompress.errors import ModelError
from autocompress.evaluation.objectives import objective_for
from autocompress.free_memory import give_back_memory

# mlp.experts.gate_up_proj.3, mlp.experts.3.up_proj: the same matrix of experts that are siblings
_EXPERT = re.compile(r"(?P<layer>.*\bexperts)(?P<matrix>\..*)")
_INDEX = re.compile(r"\.\d+")


FORTH = 3  # blocks that are run forth in the time of one there and back


class InputWatch(Protocol):
    """Sums of what passes one use of a matrix."""

    module: nn.Module

    def watch(self) -> Any:
        """Hook the module; the handle removes the hook."""


W = TypeVar("W", bound=InputWatch)
# Number of a batch, number of a first row and rows [m, width] of its outputs, in fp32, to their
# loss, summed; None where these rows have none. Asked in the order of the rows.
Loss = Callable[[int, int, Tensor], Tensor | None]
BLOCK_ELEMENTS = 2**21  # of outputs that are differentiated at a time


class Collection(Generic[W]):
    """The sums of one calibration, each handed over and dropped as soon as it is complete.

    Args:
        model: no parameter of it gathers gradients, and the embeddings are leaves.
        uses: of each matrix, by name, the places to watch.
        work: token ids ``[batch, length]``.
        keep: given the watched places by name as they are done.
        loss: see ``Loss``.
        advance: called with a number of tokens done.
    """

    def __init__(
        self,
        model: nn.Module,
        uses: Mapping[str, Sequence[W]],
        work: Sequence[Tensor],
        keep: Callable[[Mapping[str, Sequence[W]]], None],
        loss: Loss,
        *,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.work, self.keep, self.loss = model, work, keep, loss
        self.uses = dict(uses)
        self._objective = objective_for(model)
        self.tokens = sum(ids.numel() for ids in work)
        self._advance, self._worked, self._told = advance, 0, 0

    def as_a_whole(self) -> None:
        """Collect all from one pass with gradients through the whole model.

        Raises:
            ModelError: it predicts NaN.
        """
        with watching(use for places in self.uses.values() for use in places):
            for batch, ids in enumerate(self.work):
                self._backward(batch, self.model(input_ids=ids))
                self._count(ids, stages=1)
        self._hand_over(list(self.uses))

    def block_by_block(self, blocks: Blocks) -> None:
        """Collect one segment of the model after the other, from the last to the first.

        Raises:
            NotBlockwise: the model does not allow it. Nothing has been summed then.
            ModelError: it predicts NaN.
        """
        # Back through the tail, the blocks and what is before them; forth takes a third of that.
        forth = max(1, blocks.count // FORTH)
        stages = forth + blocks.count + 2
        segments = self._record(blocks, stages, forth)
        gradients: list[Tensor] = [torch.empty(0)] * len(self.work)
        for segment in reversed(range(blocks.count + 2)):
            if not self.uses:
                break
            with watching(self._in_segment(segments, segment)):
                for batch, ids in enumerate(self.work):
                    gradients[batch] = self._step(blocks, segment, batch, gradients[batch])
                    self._count(ids, stages)
                    if segment > blocks.count:
                        give_back_memory()  # of outputs: much, and freed in small pieces
            self._hand_over([name for name in self.uses if min(segments[name]) == segment])
            give_back_memory()
        self._tell(self.tokens)

    def _record(self, blocks: Blocks, stages: int, forth: int) -> dict[str, list[int]]:
        """Keep what enters each block; the segments in which each matrix is used, per use."""
        modules = [use.module for places in self.uses.values() for use in places]
        with blocks.noting(modules) as segment_of:
            for batch, ids in enumerate(self.work):
                outputs = blocks.record(batch, ids)
                _refuse_nan(outputs)
                if batch == 0:
                    blocks.check(ids, outputs)
                del outputs  # else those of two batches are held
                self._count(ids, stages, forth)
                give_back_memory()
        return {
            name: [segment_of[use.module] for use in places] for name, places in self.uses.items()
        }

    def _in_segment(self, segments: dict[str, list[int]], segment: int) -> Iterator[W]:
        for name, places in self.uses.items():
            for use, its in zip(places, segments[name], strict=True):
                if its == segment:
                    yield use

    def _step(self, blocks: Blocks, segment: int, batch: int, gradient: Tensor) -> Tensor:
        """Go back through a segment on one batch: from the gradient after it to that before it."""
        ids = self.work[batch]
        if segment == 0:
            hidden = blocks.entry(ids)
            if hidden.requires_grad:
                hidden.backward(gradient)  # type: ignore[no-untyped-call]
            return gradient
        if segment <= blocks.count:
            leaf, hidden = blocks.block(segment - 1, batch, ids)
            hidden.backward(gradient)  # type: ignore[no-untyped-call]
        else:
            leaf, returned = blocks.tail(batch, ids)
            self._backward(batch, returned)
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def _backward(self, batch: int, returned: Any) -> None:
        """Send back the gradients of the loss."""
        outputs = self._objective.output_of(returned)
        if outputs is None or not outputs.requires_grad:
            return
        _refuse_nan(outputs)
        # Row by row: with those of all rows a loss holds several copies of a large vocabulary.
        flat = outputs.detach().reshape(-1, outputs.shape[-1])
        gradient = torch.zeros_like(flat)
        at_once = max(1, BLOCK_ELEMENTS // flat.shape[-1])
        for start in range(0, len(flat), at_once):
            rows = flat[start : start + at_once].float().requires_grad_()
            loss = self.loss(batch, start, rows)
            if loss is not None:
                (gradient[start : start + at_once],) = torch.autograd.grad(loss, rows)
        outputs.backward(gradient.view_as(outputs))  # type: ignore[no-untyped-call]

    def _hand_over(self, names: Sequence[str]) -> None:
        together: dict[str, list[str]] = defaultdict(list)
        for name in names:
            together[entry_of(name)].append(name)
        for group in together.values():
            self.keep({name: self.uses.pop(name) for name in group})

    def _count(self, ids: Tensor, stages: int, done: int = 1) -> None:
        self._worked += ids.numel() * done
        self._tell(self._worked // stages)

    def _tell(self, tokens: int) -> None:
        if tokens > self._told:
            self._advance(tokens - self._told)
            self._told = tokens


def entry_of(name: str) -> str:
    """What a matrix's metric is kept under: its own name, but one for the experts of a layer.

    An expert may borrow from its siblings, so theirs are only done together.
    """
    expert = _EXPERT.match(name)
    return expert["layer"] if expert else name


def siblings_of(name: str) -> str:
    """What a matrix has in common with that of the other experts of its layer, else its name."""
    expert = _EXPERT.match(name)
    return expert["layer"] + _INDEX.sub("", expert["matrix"]) if expert else name


def _refuse_nan(outputs: Tensor) -> None:
    if bool(torch.isnan(outputs).any()):
        raise ModelError(
            "the model's predictions on the calibration text are not numbers (NaN)",
            hint="Check the checkpoint, or load it in a wider type with --compute-dtype float32.",
        )
