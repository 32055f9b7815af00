"""Tiny mixtures of experts of the kinds that transformers has, built from configurations."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.conftest import VOCABULARY

EXPERTS = 4
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {"intermediate_size": 48, "num_local_experts": EXPERTS},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"intermediate_size": 48, "moe_intermediate_size": 48, "num_experts": EXPERTS},
    ),
    "gpt_oss": (  # transposed stacks with biases, gate and up interleaved
        "GptOssForCausalLM",
        "GptOssConfig",
        {"intermediate_size": 48, "num_local_experts": EXPERTS, "sliding_window": 16},
    ),
}


def make_moe(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Make a tiny mixture of experts whose matrices differ enough for routing to matter."""
    architecture, configuration, more = _FAMILIES[family]
    config = getattr(transformers, configuration)(**_SHAPE, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config).eval()
        for parameter in model.parameters():
            parameter.data = (parameter.data + 0.15 * torch.randn_like(parameter)).to(dtype)
    model.config.dtype = dtype
    return model.requires_grad_(False)
