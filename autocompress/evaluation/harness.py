"""A loaded model as lm-eval sees it: every text starts as the model's texts do, and fits it."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from autocompress.evaluation.encoding import check_known


class Harness(HFLM):  # type: ignore[misc]  # lm-eval is not typed
    """lm-eval's own model, but for the begin token.

    lm-eval 0.4.13 lets the tokenizer put its begin token before a text, and puts one of its own
    before a text whose every token is scored. With tokenizers that add one, its rolling likelihood
    then scores the second as if it were text.

    Args:
        model: causal language model in eval mode.
        tokenizer: its tokenizer.
        begin: tokens that every text starts with.
        batch_size: examples at a time.
        context: longest input.
    """

    def __init__(
        self, model: Any, tokenizer: Any, begin: tuple[int, ...], batch_size: int, context: int
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=context,
            add_bos_token=bool(begin),
            prefix_token_id=begin[-1] if begin else None,
        )
        self._begin = list(begin)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_more: Any,
    ) -> list[int]:
        """Encode a text behind the tokens that every text starts with.

        Raises:
            DataError: the model has no row for a token.
        """
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        self._check(torch.tensor(ids, dtype=torch.int64))
        begun = ids[: len(self._begin)] == self._begin
        if add_special_tokens is not False and not begun:
            ids = self._begin + ids
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(self, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        """Encode prompts to go on from.

        Raises:
            DataError: the model has no row for a token.
        """
        ids, mask = super().tok_batch_encode(*args, **settings)
        self._check(ids)
        return ids, mask

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Sum the log-likelihoods of every token of whole texts, the begin token being given."""
        begin, self._begin = self._begin, []  # lm-eval puts its own before each text
        try:
            sums: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._begin = begin
        return sums

    def _check(self, ids: Tensor) -> None:
        check_known(ids, self.model, self.tokenizer, "a task's text")
