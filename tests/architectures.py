"""Tiny random causal language models of many architectures, built from their configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.conftest import VOCABULARY, make_tiny_tokenizer

WIDTH, FEED_FORWARD, BLOCKS, HEADS, POSITIONS = 32, 64, 2, 4, 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    "hidden_size": WIDTH,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
GPT_LIKE = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": POSITIONS}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OPT_LIKE = {
    "d_model": WIDTH,
    "decoder_layers": BLOCKS,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": FEED_FORWARD,
    "max_position_embeddings": POSITIONS,
}


@dataclass(frozen=True)
class Architecture:
    """A causal language model and the settings that make it tiny."""

    model: str
    config: str
    settings: dict[str, Any]

    def make(self) -> Any:
        """A model with random weights, the same each time."""
        config = getattr(transformers, self.config)(
            vocab_size=VOCABULARY, **TOKENS, **self.settings
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, self.model)(config).eval().requires_grad_(False)
            for parameter in model.parameters():  # biases and norms that are not all zero or one
                parameter.data += 0.05 * torch.randn_like(parameter)
        return model

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer as a folder."""
        self.make().save_pretrained(folder)
        make_tiny_tokenizer().save_pretrained(folder)


def _llama_like(name: str, **more: Any) -> Architecture:
    return Architecture(f"{name}ForCausalLM", f"{name}Config", LLAMA_LIKE | more)


def _gpt_like(model: str, config: str, **more: Any) -> Architecture:
    return Architecture(model, config, GPT_LIKE | more)


ARCHITECTURES: dict[str, Architecture] = {
    "arcee": _llama_like("Arcee"),
    "bart": Architecture("BartForCausalLM", "BartConfig", OPT_LIKE | {"scale_embedding": True}),
    "biogpt": Architecture(
        "BioGptForCausalLM",
        "BioGptConfig",
        {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"},
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": HEADS},
    ),
    "codegen": _gpt_like("CodeGenForCausalLM", "CodeGenConfig", rotary_dim=4),
    "cohere": _llama_like("Cohere"),
    "ctrl": _gpt_like("CTRLLMHeadModel", "CTRLConfig", dff=FEED_FORWARD),
    "deepseek_v3": _llama_like(
        "DeepseekV3",
        num_key_value_heads=HEADS,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        "FalconConfig",
        {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS},
    ),
    "gemma": _llama_like("Gemma", head_dim=8),
    "gemma2": _llama_like("Gemma2", head_dim=8),
    "gemma3": Architecture("Gemma3ForCausalLM", "Gemma3TextConfig", LLAMA_LIKE | {"head_dim": 8}),
    "glm4": _llama_like("Glm4", head_dim=8),
    "gpt_bigcode": _gpt_like("GPTBigCodeForCausalLM", "GPTBigCodeConfig", n_inner=FEED_FORWARD),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": WIDTH,
            "num_layers": BLOCKS,
            "num_heads": HEADS,
            "attention_types": [[["global"], BLOCKS]],
            "max_position_embeddings": POSITIONS,
        },
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"},
    ),
    "gpt_oss": _llama_like("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": _gpt_like("GPT2LMHeadModel", "GPT2Config"),
    "gptj": _gpt_like("GPTJForCausalLM", "GPTJConfig", rotary_dim=4),
    "granite": _llama_like("Granite", embedding_multiplier=2.0, logits_scaling=2.0),
    "granitemoe": _llama_like("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "llama": _llama_like("Llama"),
    "llama_tied": _llama_like("Llama", tie_word_embeddings=True),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        LLAMA_LIKE
        | {
            "head_dim": 8,
            "intermediate_size_mlp": FEED_FORWARD,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
        },
    ),
    "mistral": _llama_like("Mistral"),
    "mixtral": _llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "mpt": Architecture(
        "MptForCausalLM",
        "MptConfig",
        {"d_model": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "max_seq_len": POSITIONS},
    ),
    "nemotron": _llama_like("Nemotron"),
    "olmo2": _llama_like("Olmo2"),
    "olmoe": _llama_like("Olmoe", num_experts=4, num_experts_per_tok=2),
    "openai_gpt": _gpt_like("OpenAIGPTLMHeadModel", "OpenAIGPTConfig"),
    "opt": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": WIDTH,
            "ffn_dim": FEED_FORWARD,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": WIDTH,
        },
    ),
    "phi": _llama_like("Phi"),
    "phi3": _llama_like("Phi3"),
    "qwen2_moe": _llama_like("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3": _llama_like("Qwen3", head_dim=8),
    "qwen3_moe": _llama_like("Qwen3Moe", **EXPERTS, head_dim=8),
    "smollm3": _llama_like("SmolLM3"),
    "stablelm": _llama_like("StableLm"),
    "starcoder2": _llama_like("Starcoder2"),
    "xglm": Architecture(
        "XGLMForCausalLM",
        "XGLMConfig",
        {
            "d_model": WIDTH,
            "num_layers": BLOCKS,
            "attention_heads": HEADS,
            "ffn_dim": FEED_FORWARD,
            "max_position_embeddings": POSITIONS,
        },
    ),
}
