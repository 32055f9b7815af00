"""What a model gives its matrices on some text, found one transformer block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.calibration.blocks import Blocks, NotBlockwise, without_cache
from autocompress.calibration.spilled import SpilledTensors


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
        self._at = 0  # the block whose inputs are kept
        self._blocks: Blocks | None = None
        self.why_whole: str | None = None
        try:
            self._blocks = self._runnable([model.get_submodule(path) for path in blocks])
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
            self._run_to(name, batch)
        except _Reached as reached:
            return reached.inputs.flatten(0, -2).float()
        finally:
            handle.remove()
        raise AssertionError(f"{name} is not used")

    def _run_to(self, name: str, batch: int) -> None:
        """Run what there is between the kept hidden states and a matrix, and maybe beyond it."""
        index = next((k for k, each in enumerate(self._prefixes) if name.startswith(each)), None)
        ids = self.batches[batch]
        with without_cache(self.model):
            if self._blocks is None or index is None:
                self.model(input_ids=ids)
                return
            while self._at < index:
                for each in range(len(self.batches)):
                    self._hidden[each] = self._run_block(self._blocks, each)
                self._at += 1
            self._run_block(self._blocks, batch)

    def _run_block(self, blocks: Blocks, batch: int) -> Tensor:
        ids = self.batches[batch]
        return blocks.block_on(self._at, self._hidden[batch].to(ids.device), ids)

    @torch.no_grad()
    def _runnable(self, modules: Sequence[nn.Module]) -> Blocks:
        """The blocks, after a check that they run alone; what enters the first is kept."""
        if not modules:
            raise NotBlockwise("it has no list of blocks")
        blocks, first = Blocks(self.model, modules=modules), self.batches[0][:1]
        with without_cache(self.model):
            blocks.check(first, blocks.record(0, first))
            for batch, ids in enumerate(self.batches):
                self._hidden[batch] = blocks.entry(ids)
        return blocks


class _Reached(Exception):
    """Ends a pass of a model at a matrix, with what it is given."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
