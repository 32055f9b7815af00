"""What a matrix does in a transformer, told from the path of its module."""

from __future__ import annotations

from collections.abc import Callable

from autocompress.records import Role

# Last part of the module's path, as the families name it: Llama and its descendants, GPT-2, GPT-J,
# GPT-NeoX, Falcon, OPT, BART, BERT, DistilBERT, T5, Phi-3, MPT, Qwen.
_ATTENTION = {
    **dict.fromkeys(("q_proj", "query", "q", "q_lin", "q_attn", "wq"), Role.QUERY),
    **dict.fromkeys(("k_proj", "key", "k", "k_lin", "wk"), Role.KEY),
    **dict.fromkeys(("v_proj", "value", "v", "v_lin", "wv"), Role.VALUE),
    **dict.fromkeys(
        ("c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "in_proj", "W_pack"), Role.QKV
    ),
    **dict.fromkeys(("o_proj", "out_proj", "o", "out_lin", "dense", "c_proj", "wo"), Role.OUTPUT),
}
_MLP = {
    **dict.fromkeys(("gate_proj", "wi_0", "w1"), Role.GATE),
    **dict.fromkeys(
        ("up_proj", "wi_1", "wi", "w3", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "lin1"), Role.UP
    ),
    **dict.fromkeys(("gate_up_proj",), Role.UP),  # gate and up in one matrix
    **dict.fromkeys(
        ("down_proj", "wo", "w2", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "lin2"), Role.DOWN
    ),
}
_HEADS = ("lm_head", "embed_out", "vocab_projector")
_TOKEN_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "shared",
    "embed_in",
    "tok_embeddings",
)


def depth_of(path: str) -> int | None:
    """Index of the transformer block within its stack, or ``None`` outside the blocks."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def role_of(path: str) -> Role:
    """Role of the linear map at a module path, ``OTHER`` when its name says nothing."""
    *parents, leaf = path.split(".")
    if leaf.isdigit() and parents[-1:] and parents[-1] in _MLP:
        *parents, leaf = parents  # one of the matrices that the experts of a layer stack
    if leaf in _HEADS or (leaf == "decoder" and parents[-1:] in (["predictions"], ["lm_head"])):
        return Role.HEAD
    if depth_of(path) is None:
        return Role.OTHER
    if leaf == "dense":
        return _role_of_dense(parents)
    if any(_is_attention(parent) for parent in parents):
        return _ATTENTION.get(leaf, Role.OTHER)
    return _MLP.get(leaf, Role.OTHER)


def embedding_role(path: str) -> Role:
    """Role of the lookup table at a path: the tokens', or ``OTHER`` (positions, token types)."""
    return Role.EMBEDDING if path.rpartition(".")[2] in _TOKEN_EMBEDDINGS else Role.OTHER


def is_router(path: str, has_module: Callable[[str], bool]) -> bool:
    """Whether a linear map chooses among experts; ``has_module`` tells whether a path exists."""
    parent, _, leaf = path.rpartition(".")
    if any(part in ("router", "gating") for part in path.split(".")):
        return True
    return leaf == "gate" and has_module(f"{parent}.experts" if parent else "experts")


def _is_attention(part: str) -> bool:
    part = part.lower()
    return part.startswith("attn") or part.endswith("attn") or "attention" in part


def _role_of_dense(parents: list[str]) -> Role:
    # BERT: attention.output.dense, intermediate.dense, output.dense; GPT-NeoX, Phi, Falcon:
    # <attention>.dense
    if parents[-1:] == ["intermediate"]:
        return Role.UP
    if any(_is_attention(parent) for parent in parents):
        return Role.OUTPUT
    return Role.DOWN if parents[-1:] == ["output"] else Role.OTHER
