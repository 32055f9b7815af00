from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Regex
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing

from autocompress.errors import DataError
from autocompress.evaluation.encoding import (
    begin_tokens,
    check_known,
    special_tokens,
    spelled,
    token_ids,
)
from tests.begin_token import make_begin_tokenizer
from tests.conftest import VOCABULARY


def test_what_a_tokenizer_puts_before_a_text(tiny_tokenizer: Any) -> None:
    assert begin_tokens(tiny_tokenizer) == ()
    assert spelled((), tiny_tokenizer) is None
    begins = make_begin_tokenizer()
    assert begin_tokens(begins) == (1,)
    assert spelled((1,), begins) == "<s>"


def test_what_it_puts_behind_a_text_is_no_begin_token() -> None:
    tokenizer = make_begin_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> </s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert begin_tokens(tokenizer) == (1, 2)


def test_chat_markers_are_special(tiny_tokenizer: Any) -> None:
    assert special_tokens(tiny_tokenizer) == (0, 1, 2)
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    assert special_tokens(tiny_tokenizer) == (0, 1, 2, VOCABULARY)


def test_a_tokenizer_that_makes_no_token_is_named(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.backend_tokenizer.normalizer = Replace(Regex(".+"), "")
    with pytest.raises(DataError, match="the tokenizer makes no token of the report text") as error:
        token_ids("w1 w2", tiny_tokenizer, name="the report text")
    assert "5 characters of text, 0 tokens" in str(error.value)
    with pytest.raises(DataError, match="is too short"):
        token_ids("  ", tiny_tokenizer)


def test_tokens_beyond_the_vocabulary_are_named(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    check_known(torch.arange(VOCABULARY), tiny_llama, tiny_tokenizer)
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    ids = torch.tensor([5, VOCABULARY, VOCABULARY + 1, VOCABULARY])
    with pytest.raises(DataError) as refused:
        check_known(ids, tiny_llama, tiny_tokenizer, "the report text chat.txt")
    for words in (
        "the report text chat.txt",
        f"got token {VOCABULARY} (<|im_start|>), {VOCABULARY + 1} (<|im_end|>)",
        f"ids below {VOCABULARY}, the vocabulary of LlamaForCausalLM",
        "resize_token_embeddings",
    ):
        assert words in str(refused.value)
