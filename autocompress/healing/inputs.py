"""What a model gives its matrices on some text, found one transformer block at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.blocks import Blocks, NotBlockwise
from autocompress.calibration.spilled import SpilledTensors
from autocompress.surgery.without_cache import without_cache


class MatrixInputs:
    """Inputs of a model's matrices on a text, asked for in the order of their use.

    The hidden states before one block are kept on disk, so each block is run as often as it holds
    matrices with inputs of their own, and no more often in a deeper model. Matrices may be replaced
    meanwhile, in the block asked for last and in later ones. Of matrices that are announced and
    not replaced, the inputs of a whole block are kept from one run of it.

    Args:
        model: in evaluation mode.
        blocks: paths of its transformer blocks; none for a model without them.
        batches: token ids ``[b, length]``, on its device; each runs at once.
        folder: on whose disk hidden states are kept.
        unchanging: names that will be asked for, where nothing is replaced meanwhile.

    Attributes:
        why_whole: why the model is run from its beginning each time; ``None`` where it is not.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[str],
        batches: Sequence[Tensor],
        folder: Path | None = None,
        unchanging: Collection[str] = (),
    ) -> None:
        self.model, self.batches = model, batches
        self._prefixes = [f"{path}." for path in blocks]
        self._announced = [
            [name for name in unchanging if name.startswith(each)] for each in self._prefixes
        ]
        self._kept = SpilledTensors(folder)  # hidden states by batch, inputs by name and batch
        self._at = -1  # the block whose inputs are kept; before the first one there are none yet
        self._blocks: Blocks | None = None
        self.why_whole: str | None = None
        try:
            self._blocks = self._runnable([model.get_submodule(path) for path in blocks], folder)
        except NotBlockwise as reason:
            self.why_whole = str(reason)

    def close(self) -> None:
        """Drop the hidden states."""
        self._kept.close()
        if self._blocks is not None:
            self._blocks.close()

    @torch.no_grad()
    def of(self, name: str, batch: int) -> Tensor:
        """What a matrix is given on a batch, as fp32 ``[tokens, in]``."""
        index = next((k for k, each in enumerate(self._prefixes) if name.startswith(each)), None)
        blocks = self._blocks if index is not None else None
        with without_cache(self.model):
            if blocks is None or index is None:  # it is in no block that runs alone
                return self._given(name, lambda: self.model(input_ids=self.batches[batch]))
            self._go_to(blocks, index)
            if self._announced[index]:
                return self._kept[name.removeprefix(self._prefixes[index]), batch].float()
            return self._given(name, lambda: self._run(blocks, batch))

    def _given(self, name: str, run: Callable[[], object]) -> Tensor:
        """What a matrix is given in a run, which ends there."""

        def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        handle = self.model.get_submodule(name).register_forward_pre_hook(stop)
        try:
            run()
        except _Reached as reached:
            return reached.inputs.flatten(0, -2).float()
        finally:
            handle.remove()
        raise AssertionError(f"{name} is not used")

    def _go_to(self, blocks: Blocks, index: int) -> None:
        """Keep the hidden states before a block, or what its announced matrices are given."""
        while self._at < index:
            if self._at < 0 or not self._announced[self._at]:
                for batch, ids in enumerate(self.batches):
                    before = self._at < 0
                    self._kept[batch] = blocks.entry(ids) if before else self._run(blocks, batch)
            self._at += 1
            if self._announced[self._at]:
                self._run_recorded(blocks)

    def _run_recorded(self, blocks: Blocks) -> None:
        """Keep what the announced matrices of the block are given, and its outputs."""
        batch = 0

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                self._kept[name.removeprefix(prefix), batch] = args[0].flatten(0, -2)

            return hook

        prefix = self._prefixes[self._at]
        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(keep(name))
            for name in self._announced[self._at]
        ]
        try:
            for batch in range(len(self.batches)):
                self._kept[batch] = self._run(blocks, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _run(self, blocks: Blocks, batch: int) -> Tensor:
        ids = self.batches[batch]
        return blocks.block_on(self._at, self._kept[batch].to(ids.device), ids)

    @torch.no_grad()
    def _runnable(self, modules: Sequence[nn.Module], folder: Path | None) -> Blocks:
        """The blocks, after a check that they run alone."""
        if not modules:
            raise NotBlockwise("it has no list of blocks")
        blocks, first = Blocks(self.model, folder, modules), self.batches[0][:1]
        try:
            with without_cache(self.model):
                blocks.check(first, blocks.record(0, first))
        except NotBlockwise:
            blocks.close()
            raise
        return blocks


class _Reached(Exception):
    """Ends a pass of a model at a matrix, with what it is given."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
