"""A tokenizer for the tiny models that puts a begin token before each text, as Llama's does."""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing

from tests.conftest import make_tiny_tokenizer


def make_begin_tokenizer() -> Any:
    """Make the tiny tokenizer with ``<s>``, id 1, before each text."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer
