from __future__ import annotations

import math

import torch

from autocompress.evaluation.plausibility import (
    absurd_perplexity,
    differing_texts,
    too_few_tokens,
)
from autocompress.records import Kind, LayerSpec, Role


def drawn(seed: int, shift: int = 0) -> torch.Tensor:
    """Tokens with frequencies that fall as 1 over their rank, as in texts."""
    weights = 1 / torch.arange(1.0, 501)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights, 5_000, replacement=True, generator=generator) + shift


def test_a_perplexity_near_the_vocabulary_is_absurd() -> None:
    assert absurd_perplexity(math.log(100), 4096, "x") is None
    assert absurd_perplexity(math.nan, 4096, "x") is None
    said = absurd_perplexity(math.log(4000), 4096, "the report text")
    assert said is not None
    assert "hardly predicts the report text: perplexity 4000, chance alone is 4096" in said
    assert "perplexity infinite" in (absurd_perplexity(800.0, 4096, "x") or "")


def test_texts_of_one_kind_and_of_two() -> None:
    names = ("a.txt", "b.txt")
    assert differing_texts(drawn(0), drawn(1), names) is None
    said = differing_texts(drawn(0), drawn(1, shift=400), names)
    assert said is not None
    assert said.startswith("a.txt and b.txt hold different tokens")
    assert differing_texts(drawn(0)[:100], drawn(1, shift=400)[:100], names) is None


def test_fewer_tokens_than_a_matrix_has_inputs_are_said():
    specs = [
        LayerSpec("up", Role.UP, Kind.LINEAR, 200, 50),
        LayerSpec("down", Role.DOWN, Kind.LINEAR, 50, 200),
        LayerSpec("embed", Role.EMBEDDING, Kind.EMBEDDING, 1000, 5000),
    ]
    assert too_few_tokens(200, specs, "a text") is None
    said = too_few_tokens(199, specs, "a text")
    assert said is not None
    for word in ("199 tokens of a text", "200 inputs of down", "longer text"):
        assert word in said
    assert too_few_tokens(1, specs[2:], "a text") is None
