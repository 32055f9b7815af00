"""What a model gives its matrices on some text, found one transformer block at a time."""

from __future__ import annotations

from collections.abc import Sequence
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
    meanwhile, in the block asked for last and in later ones.

    Args:
        model: in evaluation mode.
        blocks: paths of its transformer blocks; none for a model without them.
        batches: token ids ``[b, length]``, on its device; each runs at once.
        folder: on whose disk hidden states are kept.

    Attributes:
        why_whole: why the model is run from its beginning each time; ``None`` where it is not.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[str],
        batches: Sequence[Tensor],
        folder: Path | None = None,
    ) -> None:
        self.model, self.batches = model, batches
        self._prefixes = [f"{path}." for path in blocks]
        self._hidden = SpilledTensors(folder)
        self._at = -1  # the block whose inputs are kept; before the first one there are none yet
        self._blocks: Blocks | None = None
        self.why_whole: str | None = None
        try:
            self._blocks = self._runnable([model.get_submodule(path) for path in blocks], folder)
        except NotBlockwise as reason:
            self.why_whole = str(reason)

    def close(self) -> None:
        """Drop the hidden states."""
        self._hidden.close()
        if self._blocks is not None:
            self._blocks.close()

    @torch.no_grad()
    def of(self, name: str, batch: int) -> Tensor:
        """What a matrix is given on a batch, as fp32 ``[tokens, in]``."""

        def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        handle = self.model.get_submodule(name).register_forward_pre_hook(stop)
        try:
            with without_cache(self.model):
                self._run_block_of(name, batch)
                self.model(input_ids=self.batches[batch])  # it is in no block that runs alone
        except _Reached as reached:
            return reached.inputs.flatten(0, -2).float()
        finally:
            handle.remove()
        raise AssertionError(f"{name} is not used")

    def _run_block_of(self, name: str, batch: int) -> None:
        """Run the block that holds a matrix, from the kept hidden states, if there is one."""
        index = next((k for k, each in enumerate(self._prefixes) if name.startswith(each)), None)
        if self._blocks is None or index is None:
            return
        while self._at < index:
            for each, ids in enumerate(self.batches):
                self._hidden[each] = (
                    self._blocks.entry(ids) if self._at < 0 else self._run(self._blocks, each)
                )
            self._at += 1
        self._run(self._blocks, batch)

    def _run(self, blocks: Blocks, batch: int) -> Tensor:
        ids = self.batches[batch]
        return blocks.block_on(self._at, self._hidden[batch].to(ids.device), ids)

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
