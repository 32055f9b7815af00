"""Tiny dense models and exported folders of them on disk, with a text in their words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from autocompress.methods.plan import Plan
from autocompress.surgery.loading import load_model
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY, make_tiny_tokenizer
from tests.deploy.exporting import export_checkpoint
from tests.mixed_plans import builder, mixed_plan

TOKENS = 4_000


class TinyFolder(NamedTuple):
    """An exported folder, its plan, and a text to use with it."""

    path: Path
    plan: Plan
    text: Path


def export_to(place: Path, model: Any) -> TinyFolder:
    """Save a dense model as ``dense`` and export a mixed plan of it as ``small``."""
    dense, small, text = place / "dense", place / "small", place / "text.txt"
    model.save_pretrained(dense)
    make_tiny_tokenizer().save_pretrained(dense)
    words = random.Random(0).choices(range(VOCABULARY - 3), k=TOKENS)
    text.write_text("\n".join(f"w{word}" for word in words))
    loaded = load_model(str(dense))
    workbench = Workbench(loaded.model)
    plan = mixed_plan(workbench.inventory)
    export_checkpoint(loaded, plan, builder(workbench), small)
    return TinyFolder(small, plan, text)


def deepseek() -> Any:
    """A mixture of experts whose router has a vector that is a buffer."""
    config = transformers.DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
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
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.DeepseekV3ForCausalLM(config).eval().requires_grad_(False)
