"""The matrices of a small Llama with a tied head, without the model."""

from __future__ import annotations

from autocompress.records import Kind, LayerSpec, Role

_BLOCK = (
    ("self_attn.q_proj", Role.QUERY, 256, 256),
    ("self_attn.k_proj", Role.KEY, 128, 256),
    ("self_attn.v_proj", Role.VALUE, 128, 256),
    ("self_attn.o_proj", Role.OUTPUT, 256, 256),
    ("mlp.gate_proj", Role.GATE, 704, 256),
    ("mlp.up_proj", Role.UP, 704, 256),
    ("mlp.down_proj", Role.DOWN, 256, 704),
)


def llama_specs(blocks: int = 2) -> tuple[LayerSpec, ...]:
    """Embedding first, as in the model."""
    embedding = LayerSpec(
        "model.embed_tokens", Role.EMBEDDING, Kind.EMBEDDING, 4096, 256, tied=("lm_head",)
    )
    layers = [
        LayerSpec(f"model.layers.{depth}.{name}", role, Kind.LINEAR, rows, columns, depth=depth)
        for depth in range(blocks)
        for name, role, rows, columns in _BLOCK
    ]
    return (embedding, *layers)
