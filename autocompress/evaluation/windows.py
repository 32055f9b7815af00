"""Non-overlapping windows of a model's context over a sequence of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import DataError
from autocompress.requests.groups import DEFAULT_CONTEXT

LOGIT_BYTES = (
    2**24
)  # fp32 logits of one batch on a CPU; larger ones cost more in fresh memory than they gain
LOGIT_BYTES_ACCELERATOR = 2**28
_CONTEXT_KEYS = (
    "max_seq_len",
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
    """Tokens ``ids [n]`` of a text cut into windows of at most ``context`` tokens.

    Each window starts with the tokens ``begin``, which are given and not predicted, and holds
    ``stride`` tokens of the text, which are all predicted. Without ``begin`` the first token of
    each window is only context. A last shorter window stays when it predicts at least one token.

    Raises:
        DataError: fewer than two tokens, or no room for one beside those that are given.
    """

    ids: Tensor
    context: int
    begin: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) < self._least:
            got, wanted = f"{len(self.ids)} tokens", f"at least {self._least}"
            raise DataError("the text is too short to score", got=got, wanted=wanted)
        least = self.given + 1
        if self.context < least:
            given = f", {len(self.begin)} of them given by the tokenizer" if self.begin else ""
            raise DataError(
                "the windows are too short to score",
                got=f"a context of {self.context} tokens{given}",
                wanted=f"at least {least}",
                hint="Raise --context.",
            )

    @property
    def given(self) -> int:
        """Tokens at the start of a window that are not predicted."""
        return max(1, len(self.begin))

    @property
    def stride(self) -> int:
        """Tokens of the text in a whole window."""
        return self.context - len(self.begin)

    @property
    def _least(self) -> int:
        """Tokens of the text in the shortest window that predicts one."""
        return self.given + 1 - len(self.begin)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.ids) // self.stride + (len(self.ids) % self.stride >= self._least)

    def __iter__(self) -> Iterator[Tensor]:
        """Windows ``[length]`` in order."""
        begin = self.ids.new_tensor(self.begin)
        return (
            torch.cat([begin, self.ids[start : start + self.stride]])
            for start in range(0, len(self) * self.stride, self.stride)
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens: what the means are over."""
        return sum(len(window) - self.given for window in self)

    def first(self, count: int) -> Windows:
        """The first ``count`` windows, for a cheaper score; a teacher of all serves these too."""
        return self.part(0, max(1, count))

    def part(self, start: int, stop: int) -> Windows:
        """The windows from one number up to another."""
        ids = self.ids[start * self.stride : stop * self.stride]
        return Windows(ids, self.context, self.begin)

    def batches(self, width: int, logit_bytes: int = LOGIT_BYTES) -> Iterator[Tensor]:
        """Batches ``[b, length]`` of equal windows whose fp32 outputs fit in ``logit_bytes``."""
        size = max(1, logit_bytes // (4 * width * self.context))
        whole = len(self.ids) // self.stride
        if whole:
            equal = with_begin(self.ids[: whole * self.stride].view(whole, -1), self.begin)
            yield from torch.split(equal, size)
        if len(self) > whole:
            yield with_begin(self.ids[whole * self.stride :][None], self.begin)


def with_begin(windows: Tensor, begin: tuple[int, ...]) -> Tensor:
    """Put the same tokens before each of ``windows [n, length]``."""
    if not begin:
        return windows
    return torch.cat([windows.new_tensor(begin).expand(len(windows), -1), windows], 1)
