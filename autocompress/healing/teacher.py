"""The dense model's predictions on the healing text, each computed once where memory allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autocompress.evaluation.divergence import TOP_K, divergence_of_the_top
from autocompress.healing.hardware import full_precision

MOST_BYTES = 2**30  # of predictions that are kept


class Predictions:
    """The most probable tokens after each token of some windows, and the mass of all others.

    Args:
        indices: ``[n, k]``, of the vocabulary; of any integer type.
        logs: ``[n, k]`` in fp32, their logarithmic probabilities.
    """

    def __init__(self, indices: Tensor, logs: Tensor) -> None:
        self.indices, self.logs = indices, logs

    @classmethod
    def of(cls, logits: Tensor) -> Predictions:
        """Keep ``TOP_K`` of each row of ``logits [n, vocabulary]``, all of a small vocabulary."""
        logs = torch.log_softmax(logits.float(), -1)
        kept, indices = logs.topk(min(TOP_K, logs.shape[-1]), -1, sorted=False)
        narrow = torch.int16 if logs.shape[-1] <= 2**15 else torch.int32
        return cls(indices.to(narrow), kept)

    def divergence(self, logits: Tensor) -> Tensor:
        """Mean ``KL(these || softmax(logits))`` for ``logits [n, vocabulary]``, in nats.

        See ``divergence_of_the_top``.
        """
        logs = torch.log_softmax(logits.float(), -1).gather(-1, self.indices.long())
        return divergence_of_the_top(self.logs, logs).mean()

    @property
    def memory_bytes(self) -> int:
        """Of the tensors."""
        return self.indices.nbytes + self.logs.nbytes


class DenseTeacher:
    """The dense model, asked for its predictions on windows that come again and again.

    One serves any number of runs of healing, which then share what is kept. It computes in the type
    that the model is stored in, also where students use half precision: the noise of that, 2e-4
    nats, is more than what light plans lose.

    Args:
        dense: the dense model.
        most_bytes: of predictions that are kept; those of other windows are computed every time.
        given: tokens at the start of each window that are not predicted.
    """

    def __init__(self, dense: Any, most_bytes: int = MOST_BYTES, given: int = 1) -> None:
        self.dense, self.most_bytes, self.given = dense, most_bytes, given
        self._kept: dict[bytes, Predictions] = {}
        self._bytes = 0

    @torch.no_grad()
    def predictions(self, ids: Tensor) -> Predictions:
        """Predictions of the tokens of the windows ``ids [b, length]`` behind those given."""
        keys = [row.cpu().numpy().tobytes() for row in ids]
        missing = [place for place, key in enumerate(keys) if key not in self._kept]
        fresh: dict[bytes, Predictions] = {}
        if missing:
            with full_precision(ids.device):
                logits = self.dense(input_ids=ids[missing], use_cache=False).logits
                logits = logits[:, self.given - 1 : -1]
            fresh = {
                keys[place]: Predictions.of(each)
                for place, each in zip(missing, logits, strict=True)
            }
        found = [self._kept.get(key) or fresh[key] for key in keys]
        for key, each in fresh.items():
            if self._bytes + each.memory_bytes <= self.most_bytes:
                self._kept[key] = each
                self._bytes += each.memory_bytes
        return Predictions(
            torch.cat([each.indices for each in found]), torch.cat([each.logs for each in found])
        )
