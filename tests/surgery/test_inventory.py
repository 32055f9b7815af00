from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.errors import ModelError, RecipeError
from autocompress.methods.plan import Plan
from autocompress.records import Kind, Role
from autocompress.surgery.inventory import stored_bytes, take_inventory
from tests.conftest import FAMILIES

BLOCK_ROLES = {
    "llama": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.GATE, Role.UP, Role.DOWN},
    "mistral": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.GATE, Role.UP, Role.DOWN},
    "qwen2": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.GATE, Role.UP, Role.DOWN},
    "gpt2": {Role.QKV, Role.OUTPUT, Role.UP, Role.DOWN},
    "gpt_neox": {Role.QKV, Role.OUTPUT, Role.UP, Role.DOWN},
    "opt": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.UP, Role.DOWN},
    "bert": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.UP, Role.DOWN},
    "t5": {Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT, Role.UP, Role.DOWN},
}
TIED = {
    "llama": ("model.embed_tokens", ("lm_head",)),
    "gpt2": ("transformer.wte", ("lm_head",)),
    "opt": ("model.decoder.embed_tokens", ("lm_head",)),
    "bert": ("bert.embeddings.word_embeddings", ("cls.predictions.decoder",)),
    "t5": ("shared", ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_in_a_block_has_its_role_and_depth(family, tiny_model):
    layers = take_inventory(tiny_model(family)).layers
    in_blocks = [spec for spec in layers if spec.depth is not None]
    assert {spec.role for spec in in_blocks} == BLOCK_ROLES[family]
    assert {spec.depth for spec in in_blocks} == {0, 1}
    counts = [sum(spec.depth == depth for spec in in_blocks) for depth in (0, 1)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_and_head_are_found(family, tiny_model):
    layers = take_inventory(tiny_model(family)).layers
    (embedding,) = [spec for spec in layers if spec.role is Role.EMBEDDING]
    assert embedding.kind is Kind.EMBEDDING
    assert embedding.shape == (96, 32)
    heads = [spec.name for spec in layers if spec.role is Role.HEAD]
    if family in TIED:
        assert (embedding.name, embedding.tied) == TIED[family]
    assert bool(heads) is not bool(embedding.tied)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_bytes_are_those_of_the_file(family, tiny_model, tmp_path):
    model = tiny_model(family, dtype=torch.bfloat16)
    inventory = take_inventory(model)
    model.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    names = 16 if family == "gpt_neox" else 0  # transformers renames its head in the file
    assert inventory.dense_bytes == stored_bytes(model) == written - names
    assert inventory.plan_bytes(Plan(())) == inventory.bf16_bytes == inventory.dense_bytes
    assert 0 < inventory.rest_bytes < inventory.dense_bytes


def test_shapes_and_biases_of_a_transposed_layer(tiny_model):
    spec = take_inventory(tiny_model("gpt2"))["transformer.h.1.mlp.c_fc"]
    assert (spec.kind, spec.shape, spec.bias, spec.depth, spec.dtype) == (
        Kind.CONV1D,
        (128, 32),
        True,
        1,
        "float32",
    )


def test_a_model_on_the_meta_device_has_the_same_inventory(tiny_model):
    model = tiny_model("t5")
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert take_inventory(empty) == take_inventory(model)


def test_positions_are_no_token_embedding(tiny_model):
    assert take_inventory(tiny_model("gpt2"))["transformer.wpe"].role is Role.OTHER


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        (
            "opt",
            "model.decoder.embed_positions.weight",
            "OPTLearnedPositionalEmbedding is a subclass of Embedding that computes something else",
        ),
        ("bert", "bert.embeddings.token_type_embeddings", "a side shorter than 8"),
        (
            "t5",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "a side shorter than 8",
        ),
        ("mixtral", "model.layers.1.mlp.gate.weight", "MixtralTopKRouter"),
    ],
)
def test_what_is_left_alone_is_reported_with_its_reason(family, name, reason, tiny_model):
    inventory = take_inventory(tiny_model(family))
    reasons = {skipped.name: skipped.reason for skipped in inventory.skipped}
    assert reason in reasons[name]
    assert name not in inventory


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 16)
        self.gate = nn.Linear(16, 16)
        self.experts = nn.ModuleList([nn.Linear(16, 16)])
        self.whole = nn.Linear(16, 16)
        self.whole.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
        self.scaled = nn.Embedding(16, 16, max_norm=1.0)
        self.relative_attention_bias = nn.Embedding(32, 16)
        self.twice = nn.Linear(16, 16)
        self.again = self.twice
        self.left = nn.Linear(16, 16)
        self.right = nn.Linear(16, 16)
        self.right.bias = self.left.bias


def test_odd_modules_are_skipped():
    inventory = take_inventory(_Odd())
    reasons = {skipped.name: skipped.reason for skipped in inventory.skipped}
    assert [spec.name for spec in inventory.layers] == ["experts.0"]
    assert "router" in reasons["router"]
    assert "router" in reasons["gate"]
    assert "int8" in reasons["whole"]
    assert "renormalises" in reasons["scaled"]
    assert "reads itself" in reasons["relative_attention_bias"]
    assert reasons["twice"] == reasons["again"] == "one module at several places"
    assert reasons["left"] == "its bias is shared with right"
    assert inventory.plan_bytes(Plan(())) == stored_bytes(_Odd())


def test_nothing_to_compress():
    with pytest.raises(ModelError, match="nothing to compress"):
        take_inventory(nn.LayerNorm(4))
    with pytest.raises(ModelError, match="a side shorter than 8"):
        take_inventory(nn.Sequential(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.self_attn.q_prj", "nearest name is 'model.layers.0.self_attn.q_proj'"),
        ("lm_head", "tied to 'model.embed_tokens'"),
        ("something else", "another model"),
    ],
)
def test_unknown_names_are_explained(name, hint, tiny_llama):
    with pytest.raises(RecipeError, match=hint):
        take_inventory(tiny_llama)[name]


def test_the_reason_of_a_skipped_layer_is_told(tiny_model):
    with pytest.raises(RecipeError, match="a side shorter than 8"):
        take_inventory(tiny_model("bert"))["bert.embeddings.token_type_embeddings"]
