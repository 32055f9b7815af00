"""Models whose predictions are known, and what scores must come out for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from autocompress.evaluation.windows import Windows


class BigramModel(nn.Module):
    """Predicts by the last token alone, from a table of logits ``[vocabulary, vocabulary]``."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits, requires_grad=False)
        self.config = PretrainedConfig(vocab_size=len(logits), max_position_embeddings=16)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table[input_ids])


def random_ids(count: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(3))


def random_table(vocabulary: int, seed: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(
        vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)
    )


def brute_force(model: Any, windows: Windows, dense: Any | None = None) -> tuple[float, float]:
    """Mean negative log-likelihood and divergence, token by token in fp64."""
    nll, kl = [], []
    with torch.inference_mode():
        for window in windows:
            logs = torch.log_softmax(model(input_ids=window[None]).logits[0, :-1].double(), -1)
            nll += [-logs[position, token].item() for position, token in enumerate(window[1:])]
            if dense is not None:
                teacher = torch.log_softmax(
                    dense(input_ids=window[None]).logits[0, :-1].double(), -1
                )
                kl += (teacher.exp() * (teacher - logs)).sum(-1).tolist()
    return sum(nll) / len(nll), sum(kl) / max(1, len(kl))
