"""Texts as tokens: what a tokenizer puts before each text, and which tokens a model knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autocompress.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_TOKENS = 256  # below that a perplexity says nothing
# More than any tokenizer packs into a token on average; to encode only what is needed.
CHARACTERS_PER_TOKEN = 16
PROBE = "a"  # a text to see what a tokenizer puts before one
MOST_NAMED = 5  # unknown tokens that an error names


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that a tokenizer puts before every text, such as a begin token; often none."""
    plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(PROBE)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that no plain text holds: begin, end, padding, chat markers."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {index for index, token in added.items() if getattr(token, "special", False)}
    return tuple(sorted(marked | set(tokenizer.all_special_ids)))


def spelled(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Some tokens as a person reads them, for reports; ``None`` for none."""
    names = tokenizer.convert_ids_to_tokens(list(tokens)) if tokens else []
    return " ".join(map(str, names)) or None


def vocabulary_of(model: Any) -> int:
    """How many tokens a model has rows for."""
    return int(model.config.get_text_config().vocab_size)


def check_known(
    ids: Tensor, model: Any, tokenizer: PreTrainedTokenizerBase, name: str = "the text"
) -> None:
    """Make sure that a model has a row for every token.

    Args:
        ids: token ids.
        model: the model.
        tokenizer: its tokenizer, to name the tokens.
        name: what the error calls the text.

    Raises:
        DataError: some are beyond the model's vocabulary.
    """
    rows = vocabulary_of(model)
    if not ids.numel() or int(ids.max()) < rows:
        return
    beyond = sorted(set(ids[ids >= rows].tolist()))
    named = ", ".join(
        f"{index} ({spelled([index], tokenizer) or 'no name'})" for index in beyond[:MOST_NAMED]
    )
    more = f" and {len(beyond) - MOST_NAMED} more" if len(beyond) > MOST_NAMED else ""
    raise DataError(
        f"{name} holds tokens that the model has no rows for",
        got=f"token {named}{more}",
        wanted=f"ids below {rows}, the vocabulary of {type(model).__name__}",
        hint="Tokens were added to the tokenizer and not to the model: resize it "
        "(model.resize_token_embeddings(len(tokenizer))), train it on them and save both, "
        "or use the tokenizer that the model was saved with.",
    )


def token_ids(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    least: int = LEAST_TOKENS,
    name: str = "the text",
) -> Tensor:
    """Encode a text without special tokens: int64 ids ``[n]`` on the CPU.

    Args:
        text: what to encode.
        tokenizer: the model's tokenizer.
        limit: keep at most that many tokens, from the start.
        least: a text of fewer tokens is an error, unless ``limit`` asks for fewer.
        name: what the error calls the text.

    Raises:
        DataError: too few tokens, or none of a text that is not blank.
    """
    head = text if limit is None else text[: limit * CHARACTERS_PER_TOKEN]
    ids = _encode(head, tokenizer)
    if not ids and head.strip():
        raise DataError(
            f"the tokenizer makes no token of {name}",
            got=f"{len(head)} characters of text, 0 tokens by {type(tokenizer).__name__}",
            wanted="the tokenizer that the model was trained with",
            hint="Look at tokenizer.json and tokenizer_config.json in the model's folder.",
        )
    if limit is not None and len(ids) < limit and len(head) < len(text):
        ids = _encode(text, tokenizer)
    least = least if limit is None else min(least, limit)
    if len(ids) < least:
        raise DataError(
            f"{name} is too short",
            got=f"{len(ids)} tokens",
            wanted=f"at least {least}",
            hint="Give a longer text.",
        )
    return torch.tensor(ids[:limit], dtype=torch.int64)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)
