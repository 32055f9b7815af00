"""Tiny random models of the families, built from configurations: no network, no weight files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest

# Tiny tensors gain nothing from threads, and lose much to them on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The default tests ask no hub; without this a name that is no folder would wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from autocompress.evaluation import evaluator
from autocompress.progress import Notes

SHARING = ("tests/api/", "tests/tracking/")  # folders whose files share one search
VOCABULARY = 96
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "gpt_neox", "opt", "bert", "t5")
WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]


def _llama_like(config: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, config)(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **more,
    )


_CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("LlamaForCausalLM", _llama_like("LlamaConfig", tie_word_embeddings=True)),
    "llama_untied": ("LlamaForCausalLM", _llama_like("LlamaConfig", tie_word_embeddings=False)),
    "mistral": ("MistralForCausalLM", _llama_like("MistralConfig", tie_word_embeddings=False)),
    "qwen2": ("Qwen2ForCausalLM", _llama_like("Qwen2Config", tie_word_embeddings=True)),
    "mixtral": (
        "MixtralForCausalLM",
        _llama_like("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    ),
    "gemma2": ("Gemma2ForCausalLM", _llama_like("Gemma2Config", head_dim=8)),
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4
        ),
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        lambda: transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
    ),
    "opt": (
        "OPTForCausalLM",
        lambda: transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        ),
    ),
    "bert": (
        "BertForMaskedLM",
        lambda: transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        lambda: transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=1,
        ),
    ),
}


@pytest.fixture(scope="session", autouse=True)
def short_timings() -> Iterator[None]:
    """Time each plan in one round of those that a search takes: no test asserts on seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "LATENCY_ROUNDS", 1)
        patch.setattr(evaluator, "PREFILL_ROUNDS", 1)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep what shares fixtures in one process of pytest-xdist: a file, or a folder."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in SHARING if file.startswith(folder)), file)

    return ByFile(config, log)


@lru_cache
def _template(family: str) -> Any:
    architecture, config = _CONFIGS[family]
    settings = config()
    for token, index in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
        setattr(settings, token, index)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(settings).eval()
        for parameter in model.parameters():  # biases and norms that are not all zero or one
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def make_tiny_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Make a fresh tiny model of a family."""
    model = copy.deepcopy(_template(family))
    for (
        parameter
    ) in model.parameters():  # not the buffers: from_pretrained leaves rotary frequencies in fp32
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Make a fresh tiny model: ``tiny_model("llama", dtype=torch.bfloat16)``."""
    return make_tiny_model


@pytest.fixture
def tiny_llama(tiny_model: Callable[..., Any]) -> Any:
    """A Llama with two layers, whose head is tied to the embedding."""
    return tiny_model("llama")


def make_tiny_tokenizer() -> Any:
    """Make a tokenizer that knows as many words as the tiny models have tokens."""
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A tokenizer for the tiny models: ``w1 w2 w3``."""
    return make_tiny_tokenizer()


@pytest.fixture
def inputs_of() -> Callable[[Any], dict[str, Any]]:
    """Make token ids ``[2, 12]`` for a tiny model, for encoder-decoders both sides."""

    def make(model: Any) -> dict[str, Any]:
        ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids} | (
            {"decoder_input_ids": ids[:, :6]} if model.config.is_encoder_decoder else {}
        )

    return make


@pytest.fixture
def notes() -> Notes:
    return Notes()
