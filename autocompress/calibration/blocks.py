"""Runs the transformer blocks of a model one at a time, each just as the model itself calls it.

The model's own forward is run every time, with stand-ins for the blocks that are not wanted, so
masks, position embeddings and whatever else a block is given are made as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.spilled import SpilledTensors
from autocompress.evaluation.objectives import objective_for

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}  # of a block alone with it in the model
AGREEMENT_HALF = 2e-2  # in 16 bits, where kernels differ with and without gradients
COMPARED_ELEMENTS = 2**21  # at a time
BETWEEN = -1  # the segment between one block and the next, where nothing should happen

# Answers in place of a block's forward, given its index, that forward and its arguments.
Answer = Callable[..., Any]


class NotBlockwise(Exception):
    """Why the blocks of a model cannot be run one at a time."""


class _Stop(Exception):
    """Ends a run of the model, with the hidden states that were wanted."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def find_blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer blocks: of all lists of modules, inside no other, the one that holds most.

    Raises:
        NotBlockwise: there is none.
    """
    lists: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists[path] = module
    if not lists:
        raise NotBlockwise("it has no list of blocks")
    sizes = {path: sum(p.numel() for p in each.parameters()) for path, each in lists.items()}
    return list(lists[max(sizes, key=sizes.__getitem__)])


def block_paths(model: nn.Module) -> list[str]:
    """Where the transformer blocks are in a model, in order; empty where there are none."""
    paths = {module: path for path, module in model.named_modules()}
    try:
        return [paths[block] for block in find_blocks(model)]
    except NotBlockwise:
        return []


class Blocks:
    """The blocks of a model, each runnable alone on hidden states kept from one whole pass.

    A model is cut into segments: 0 is all before the first block, ``i + 1`` is block ``i``, the
    last is all after the last block.

    Args:
        model: in evaluation mode; what it returns has outputs for its objective. Its parameters
            gather no gradients, what its embeddings return does.
        folder: on whose disk the hidden states are kept.
        modules: its blocks; found when left out.

    Raises:
        NotBlockwise: it has no list of blocks, or one block is there twice.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: Path | None = None,
        modules: Sequence[nn.Module] | None = None,
    ) -> None:
        self.model, self.modules = model, modules or find_blocks(model)
        self.count = len(self.modules)
        self._objective = objective_for(model)
        if len(set(map(id, self.modules))) < self.count:
            raise NotBlockwise("one block is used at several places")
        self._segment: int | None = None  # where the pass is that is being recorded
        self._next, self._latest = 0, torch.empty(0)  # the block to come; what the last one gave
        self._hidden = SpilledTensors(folder)
        # How many things a block returns beside hidden states; None where it returns no tuple.
        self._beside: list[int | None] = [None] * self.count

    def close(self) -> None:
        """Drop the hidden states."""
        self._hidden.close()

    @contextmanager
    def noting(self, modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, int]]:
        """Find out by the passes recorded meanwhile in which segment each module is used.

        The dict is filled at the end. One that is never used counts for the block that holds it.

        Raises:
            NotBlockwise: one is used in several segments, or between two blocks.
        """
        called: dict[nn.Module, set[int]] = {module: set() for module in modules}

        def before(module: nn.Module, _args: object) -> None:
            if self._segment is not None:
                called[module].add(self._segment)

        handles = [module.register_forward_pre_hook(before) for module in called]
        segments: dict[nn.Module, int] = {}
        try:
            yield segments
        finally:
            for handle in handles:
                handle.remove()
        holders = {m: i + 1 for i, block in enumerate(self.modules) for m in block.modules()}
        for module, found in called.items():
            if len(found) > 1 or BETWEEN in found:
                raise NotBlockwise("a matrix is used in several of its blocks")
            segments[module] = next(iter(found), holders.get(module, self.count + 1))

    @torch.no_grad()
    def record(self, batch: int, ids: Tensor) -> Tensor:
        """Run the whole model on ``ids [b, length]``, keeping what enters and leaves each block.

        Args:
            batch: number by which the other methods ask for these hidden states.
            ids: token ids.

        Returns:
            The outputs that its objective looks at, such as logits.

        Raises:
            NotBlockwise: the blocks are no simple chain, or there are no outputs.
        """
        self._segment = self._next = 0
        with self._answering(partial(self._record, batch)):
            outputs = self._objective.output_of(self.model(input_ids=ids))
        self._segment = None
        if self._next != self.count:
            raise NotBlockwise("not every one of its blocks is used")
        if outputs is None:
            raise NotBlockwise(f"it returns no outputs of a {self._objective.name} model")
        self._hidden[self.count, batch], self._latest = self._latest, torch.empty(0)
        return outputs

    def _record(self, batch: int, index: int, forward: Answer, *args: Any, **kwargs: Any) -> Any:
        hidden = _hidden_of(args, kwargs)
        if index != self._next:
            raise NotBlockwise("its blocks are not used one after the other, each once")
        if index and hidden is not self._latest:
            raise NotBlockwise("something happens to the hidden states between its blocks")
        self._hidden[index, batch] = hidden
        self._segment = index + 1
        output = forward(*args, **kwargs)
        self._next = index + 1
        self._segment = self.count + 1 if self._next == self.count else BETWEEN
        self._latest, self._beside[index] = _hidden_in(output)
        return output

    def check(self, ids: Tensor, outputs: Tensor) -> None:
        """See whether each segment alone gives what it gave in the whole model.

        Args:
            ids: the token ids of batch 0.
            outputs: what ``record`` gave for them.

        Raises:
            NotBlockwise: one gives something else, or depends on the embeddings by another way.
        """
        try:
            for index in range(self.count):
                _, alone = self.block(index, 0, ids, learns=False)
                if alone.requires_grad or not _near(alone, self._hidden[index + 1, 0]):
                    raise NotBlockwise(f"block {index} depends on more than the one before it")
            _, returned = self.tail(0, ids, learns=False)
            found = self._objective.output_of(returned)
        except (
            RuntimeError,
            LookupError,
            AttributeError,
            NameError,
            TypeError,
            ValueError,
        ) as error:
            raise NotBlockwise(f"its blocks do not run alone ({error})") from error
        if found is None or found.requires_grad or not _near(found, outputs):
            raise NotBlockwise("its output depends on more than the last block")

    def block(
        self, index: int, batch: int, ids: Tensor, *, learns: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Run one block alone: its input as a leaf that gathers a gradient, and its output."""
        leaf = self._leaf(index, batch, ids, learns)
        return leaf, self.block_on(index, leaf, ids)

    def block_on(self, index: int, hidden: Tensor, ids: Tensor) -> Tensor:
        """Run one block alone on hidden states ``[b, length, n]``: its output.

        At least one batch must have been recorded.
        """

        def answer(at: int, forward: Answer, *args: Any, **kwargs: Any) -> Any:
            if at < index:
                return self._as_returned(at, _hidden_of(args, kwargs))
            own = hidden.clone()  # a block may change its input in place
            more = {"hidden_states": own} if not args else {}
            output = forward(*(own, *args[1:])[: len(args)], **kwargs | more)
            raise _Stop(_hidden_in(output)[0])

        return self._stopped(answer, ids)

    def tail(self, batch: int, ids: Tensor, *, learns: bool = True) -> tuple[Tensor, Any]:
        """Run what comes after the last block: its input as a leaf, and the model's output."""
        leaf = self._leaf(self.count, batch, ids, learns)

        def answer(at: int, _forward: Answer, *args: Any, **kwargs: Any) -> Any:
            last = at + 1 == self.count
            hidden = leaf.clone() if last else _hidden_of(args, kwargs)  # a tail may change it
            return self._as_returned(at, hidden)

        with self._answering(answer):
            return leaf, self.model(input_ids=ids)

    def entry(self, ids: Tensor) -> Tensor:
        """Run what comes before the first block: the first block's input, with its graph."""

        def answer(_at: int, _forward: Answer, *args: Any, **kwargs: Any) -> Any:
            raise _Stop(_hidden_of(args, kwargs))

        return self._stopped(answer, ids)

    def _leaf(self, index: int, batch: int, ids: Tensor, learns: bool) -> Tensor:
        return self._hidden[index, batch].to(ids.device).requires_grad_(learns)

    def _as_returned(self, index: int, hidden: Tensor) -> Any:
        beside = self._beside[index]
        return hidden if beside is None else (hidden, *[None] * beside)

    def _stopped(self, answer: Answer, ids: Tensor) -> Tensor:
        try:
            with self._answering(answer):
                self.model(input_ids=ids)
        except _Stop as stop:
            return stop.hidden
        raise NotBlockwise("not every one of its blocks is used")

    @contextmanager
    def _answering(self, answer: Answer) -> Iterator[None]:
        """Let ``answer(index, forward, *args, **kwargs)`` stand in for each block's forward."""
        own = [module.__dict__.get("forward") for module in self.modules]
        try:
            for index, module in enumerate(self.modules):
                module.forward = partial(answer, index, module.forward)
            yield
        finally:
            for module, forward in zip(self.modules, own, strict=True):
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise NotBlockwise("its blocks are not called with hidden states")
    return hidden


def _hidden_in(output: object) -> tuple[Tensor, int | None]:
    """The hidden states in what a block returns, and how much is beside them in a tuple."""
    hidden = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(hidden, Tensor):
        raise NotBlockwise("its blocks return no hidden states")
    return hidden, len(output) - 1 if isinstance(output, tuple) else None


def _near(one: Tensor, other: Tensor) -> bool:
    rows = max(1, COMPARED_ELEMENTS // other.shape[-1])
    difference = norm = 0.0
    for mine, its in zip(
        *(torch.split(each.detach().flatten(0, -2), rows) for each in (one, other)), strict=True
    ):
        its = its.float()
        difference += float((mine.to(its.device).float() - its).square().sum())
        norm += float(its.square().sum())
    limit = AGREEMENT.get(other.dtype, AGREEMENT_HALF)
    return difference <= limit**2 * norm
