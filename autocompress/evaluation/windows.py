"""Non-overlapping windows of a model's context over a sequence of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import DataError

DEFAULT_CONTEXT = 2048
LOGIT_BYTES = (
    2**24
)  # fp32 logits of one batch on a CPU; larger ones cost more in fresh memory than they gain
LOGIT_BYTES_ACCELERATOR = 2**28
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
)


def context_length(model: Any, most: int = DEFAULT_CONTEXT) -> int:
    """Tokens of one window: the context that the model's config states, at most ``most``."""
    config = (
        model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    )
    stated = (getattr(config, key, None) for key in _CONTEXT_KEYS)
    return min([most, *(length for length in stated if isinstance(length, int) and length > 1)])


@dataclass(frozen=True, eq=False)
class Windows:
    """Tokens ``ids [n]`` cut into windows of ``context`` tokens.

    The first token of each window is only context; the rest are predicted. A last shorter window
    stays when it predicts at least one token.

    Raises:
        DataError: fewer than two tokens.
    """

    ids: Tensor
    context: int

    def __post_init__(self) -> None:
        if len(self.ids) < 2 or self.context < 2:
            got = f"{len(self.ids)} tokens in windows of {self.context}"
            raise DataError("the text is too short to score", got=got, wanted="at least 2 tokens")

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.ids) // self.context + (len(self.ids) % self.context >= 2)

    def __iter__(self) -> Iterator[Tensor]:
        """Windows ``[length]`` in order."""
        return (
            self.ids[start : start + self.context]
            for start in range(0, len(self) * self.context, self.context)
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens: what the means are over."""
        return sum(len(window) - 1 for window in self)

    def first(self, count: int) -> Windows:
        """The first ``count`` windows, for a cheaper score; a teacher of all serves these too."""
        return self.part(0, max(1, count))

    def part(self, start: int, stop: int) -> Windows:
        """The windows from one number up to another."""
        return Windows(self.ids[start * self.context : stop * self.context], self.context)

    def batches(self, vocabulary: int, logit_bytes: int = LOGIT_BYTES) -> Iterator[Tensor]:
        """Batches ``[b, length]`` of equal windows whose fp32 logits fit in ``logit_bytes``."""
        size = max(1, logit_bytes // (4 * vocabulary * self.context))
        whole = len(self.ids) // self.context
        if whole:
            yield from torch.split(self.ids[: whole * self.context].view(whole, self.context), size)
        if len(self) > whole:
            yield self.ids[whole * self.context :][None]
