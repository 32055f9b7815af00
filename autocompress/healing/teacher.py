"""The dense model's outputs on the healing text, each computed once where memory allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autocompress.evaluation.objective import Objective, Rows
from autocompress.evaluation.objectives import objective_for
from autocompress.healing.hardware import full_precision

MOST_BYTES = 2**30  # of outputs that are kept


class DenseTeacher:
    """The dense model, asked for its outputs on windows that come again and again.

    One serves any number of runs of healing, which then share what is kept. It computes in the type
    that the model is stored in, also where students use half precision: the noise of that, 2e-4
    nats, is more than what light plans lose.

    Args:
        dense: the dense model.
        most_bytes: of outputs that are kept; those of other windows are computed every time.
        given: tokens at the start of each window that count as known.
    """

    def __init__(self, dense: Any, most_bytes: int = MOST_BYTES, given: int = 1) -> None:
        self.dense, self.most_bytes, self.given = dense, most_bytes, given
        self.objective = objective_for(dense)
        self._kept: dict[bytes, dict[str, Tensor]] = {}
        self._bytes = 0

    def compared(self, ids: Tensor) -> range:
        """Which rows of the outputs of the windows ``ids [b, length]`` are compared."""
        return self.objective.compared(ids.shape[1], self.given)

    @torch.no_grad()
    def rows(self, ids: Tensor) -> Rows:
        """What is compared of the windows ``ids [b, length]``, one window after the other."""
        keys = [row.cpu().numpy().tobytes() for row in ids]
        missing = [place for place, key in enumerate(keys) if key not in self._kept]
        fresh: dict[bytes, dict[str, Tensor]] = {}
        if missing:
            with full_precision(ids.device):
                returned = self.dense(input_ids=ids[missing], use_cache=False)
            outputs = outputs_of(self.objective, returned, self.compared(ids))
            for place, each in zip(missing, outputs, strict=True):
                count, width = each.shape
                rows = self.objective.rows(count, width, each.device, training=True)
                rows.add(self.objective.prepared(each))
                fresh[keys[place]] = rows.tensors()
        found = [self._kept.get(key) or fresh[key] for key in keys]
        for key, tensors in fresh.items():
            size = sum(tensor.nbytes for tensor in tensors.values())
            if self._bytes + size <= self.most_bytes:
                self._kept[key] = tensors
                self._bytes += size
        joined = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        return self.objective.restored(joined, training=True)


def outputs_of(objective: Objective, returned: Any, compared: range) -> Tensor:
    """The compared rows ``[b, rows, width]`` of what a model returns."""
    outputs = objective.output_of(returned)
    assert outputs is not None, "the model has been scored"
    return outputs[:, compared.start : compared.stop]
