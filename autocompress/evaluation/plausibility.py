"""Signs that a text is not what a model is for, said before figures on it are trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from autocompress.records import Kind, LayerSpec

# Share of ln(vocabulary), the loss of a model that knows nothing, from which a loss is absurd.
# Trained models of 512 to 50,000 tokens have .2 to .5 on text of their kind.
ABSURD_LOSS = 0.8
LEAST_TOKENS = 4_096  # of each text, below which their frequencies say little
# Two texts differ if their token frequencies overlap by less than this share of the overlap of the
# halves of one. Stories, encyclopedia and code have .3 to .7 of it, two articles .8 and more.
LEAST_OVERLAP = 0.6


def absurd_perplexity(nll: float, vocabulary: int, text: str) -> str | None:
    """Say that a dense model predicts a text hardly better than by chance, if it does.

    Args:
        nll: mean negative log-likelihood, nats per token.
        vocabulary: of the model.
        text: what the text is called.
    """
    if not nll > ABSURD_LOSS * math.log(vocabulary):
        return None
    perplexity = f"{math.exp(nll):.4g}" if nll < 700 else "infinite"
    return (
        f"The dense model hardly predicts {text}: perplexity {perplexity}, chance alone is "
        f"{vocabulary}. Text unlike what it was trained on, another tokenizer or a damaged "
        "checkpoint does that; figures of compressed models then say little."
    )


def too_few_tokens(tokens: int, specs: Iterable[LayerSpec], text: str) -> str | None:
    """Say that a text has fewer tokens than some matrix has inputs, if so.

    The Gram matrix of so few inputs is singular: in the other directions every change looks free.

    Args:
        tokens: that statistics are collected on.
        specs: the matrices.
        text: what the text is called.
    """
    multiplied = [spec for spec in specs if spec.kind is not Kind.EMBEDDING]
    widest = max(multiplied, key=lambda spec: spec.in_features, default=None)
    if widest is None or tokens >= widest.in_features:
        return None
    return (
        f"Statistics come from {tokens:,} tokens of {text}, fewer than the {widest.in_features:,} "
        f"inputs of {widest.name}: on other text plans may lose more than is predicted. Name a "
        "longer text, or raise --effort, which reads more of it."
    )


def differing_texts(one: Tensor, other: Tensor, names: tuple[str, str]) -> str | None:
    """Say that two texts hold other tokens than texts of one kind do, if so.

    Args:
        one: token ids ``[n]`` that statistics are collected on.
        other: token ids ``[m]`` that plans are judged on.
        names: what the texts are called.
    """
    if min(len(one), len(other)) < LEAST_TOKENS:
        return None
    half = len(one) // 2
    between, within = _overlap(one, other), _overlap(one[:half], one[half:])
    if between >= LEAST_OVERLAP * within:
        return None
    return (
        f"{names[0]} and {names[1]} hold different tokens: their frequencies overlap by "
        f"{between:.0%}, those of the halves of the first by {within:.0%}. Statistics of one kind "
        "of text serve another badly; name texts of one kind."
    )


def _overlap(one: Tensor, other: Tensor) -> float:
    """Shared probability mass of the token frequencies of two texts."""
    size = int(max(one.max(), other.max())) + 1
    shares = [torch.bincount(ids, minlength=size).double() / len(ids) for ids in (one, other)]
    return float(torch.minimum(*shares).sum())
