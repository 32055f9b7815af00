"""The type of a compressed model, and what it does with casts, copies and resizing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from torch.testing import assert_close

import autocompress
from autocompress.errors import ModelError
from autocompress.layers.base import CompressedEmbedding
from autocompress.methods.registry import METHODS
from autocompress.records import Kind
from autocompress.surgery.permanent import compress_
from autocompress.surgery.workbench import Workbench
from tests.api.tiny_folders import export_to
from tests.conftest import make_tiny_model
from tests.methods.examples import EXAMPLES
from tests.methods.matrices import problem_of, spec_of
from tests.mixed_plans import builder, mixed_plan

IDS = torch.arange(3, 15).reshape(2, 6)
CASTS = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.half(),
    "float64": lambda model: model.double(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def make(family, dtype):
        place = tmp_path_factory.mktemp(f"{family} {dtype}")
        return export_to(place, make_tiny_model(family, dtype)).path

    return {
        family: make(family, dtype)
        for family, dtype in (("llama", torch.float32), ("t5", torch.float32), ("opt", torch.half))
    }


def _logits(model, ids=IDS):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("family", ["llama", "t5", "opt"])
def test_the_type_of_a_loaded_model_is_the_one_it_computes_in(family, folders):
    stored = torch.float16 if family == "opt" else torch.float32
    for dtype in (None, "bfloat16", "float32", torch.bfloat16):
        model, _ = autocompress.load(folders[family], dtype=dtype)
        wanted = {None: stored, "bfloat16": torch.bfloat16, "float32": torch.float32}.get(
            dtype, dtype
        )
        assert model.dtype == model.base_model.dtype == _logits(model).dtype == wanted
        assert model.config.dtype in (wanted, str(wanted).removeprefix("torch."))
    loader = getattr(transformers, type(model).__name__)
    for words in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {}):
        loaded = loader.from_pretrained(folders[family], **words)
        assert isinstance(loaded, loader)
        assert loaded.dtype == (torch.bfloat16 if words else stored)


@pytest.mark.parametrize("family", ["llama", "t5", "opt"])
@pytest.mark.parametrize("name", CASTS)
def test_a_cast_model_is_the_one_loaded_in_that_type(family, name, folders, tmp_path):
    cast, _ = autocompress.load(folders[family])
    before = {key: value.dtype for key, value in cast.state_dict().items()}
    assert CASTS[name](cast) is cast
    wanted, _ = autocompress.load(folders[family], dtype=name)
    assert cast.dtype == wanted.dtype == getattr(torch, name)
    states = cast.state_dict(), wanted.state_dict()
    assert {k: v.dtype for k, v in states[0].items()} == {k: v.dtype for k, v in states[1].items()}
    assert any(before[key] == value.dtype != cast.dtype for key, value in states[0].items())
    cast.save_pretrained(tmp_path)
    again = type(cast).from_pretrained(tmp_path)
    assert again.dtype == cast.dtype
    for other in (wanted, again):  # a cast narrows rotary frequencies too, as it does when dense
        assert torch.equal(_logits(CASTS[name](other)), _logits(cast))


def test_a_cast_there_and_back_computes_as_before_where_vectors_lose_nothing(folders):
    model, _ = autocompress.load(folders["llama"])
    wanted = _logits(model)
    assert torch.equal(_logits(model.double().float()), wanted)
    assert torch.equal(_logits(model.cpu().to("cpu")), wanted)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_a_cast_layer_of_any_form_is_the_one_made_for_that_type(name):
    for kind in (Kind.LINEAR, Kind.EMBEDDING):
        spec = spec_of(40, 48, kind=kind, bias=kind is Kind.LINEAR)
        method = EXAMPLES[name][0](spec.shape)
        layer = method.build(problem_of(spec))
        stored = {key: value.clone() for key, value in layer.state_dict().items()}
        narrow = spec_of(40, 48, kind=kind, bias=kind is Kind.LINEAR, dtype="bfloat16")
        twin = method.skeleton(narrow)
        twin.load_state_dict(stored, assign=True)
        if name == "keep":  # not compressed: it follows
            twin = twin.to(torch.bfloat16)
        CompressedEmbedding(layer, dtype=torch.float32).to(torch.bfloat16)
        for key, tensor in layer.state_dict().items():
            assert tensor.dtype == (torch.bfloat16 if name == "keep" else stored[key].dtype)
            assert torch.equal(tensor, twin.state_dict()[key])
        x, ids = torch.randn(3, 48, dtype=torch.bfloat16), torch.tensor([0, 39])
        assert layer.dtype == layer(x).dtype == layer.rows(ids).dtype == torch.bfloat16
        assert_close(layer(x), twin(x), rtol=0, atol=0)
        assert_close(layer.rows(ids), twin.rows(ids), rtol=0, atol=0)


def test_a_model_compressed_in_memory_has_its_type_and_is_cast(tiny_model):
    model = tiny_model("llama", torch.bfloat16)
    workbench = Workbench(model)
    build, types = builder(workbench), []
    plan = mixed_plan(workbench.inventory)
    with workbench.applied(plan, build) as applied:
        types.append(applied.dtype)
    assert type(model) is transformers.LlamaForCausalLM
    compress_(workbench, plan, build)
    assert [model.dtype, model.model.dtype, *types] == [torch.bfloat16] * 3
    assert _logits(model.float()).dtype == model.dtype == torch.float32


def test_copies_and_pickles_are_compressed_models_too(folders):
    model, _ = autocompress.load(folders["llama"])
    wanted = _logits(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is type(model)
        assert again.dtype == torch.float32
        assert again.hf_quantizer._model() is again
        assert_close(_logits(again), wanted, rtol=0, atol=0)


def test_resizing_a_compressed_embedding_is_refused_with_what_to_do(folders):
    model, _ = autocompress.load(folders["llama"])
    rows = model.get_input_embeddings().num_embeddings
    assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(ModelError, match="Resize the dense model") as refused:
        model.resize_token_embeddings(rows + 2)
    assert f"{rows + 2} tokens" in str(refused.value)
    with pytest.raises(ModelError, match="Resize the dense model"):
        model.model.resize_token_embeddings(rows, pad_to_multiple_of=64)


def test_an_embedding_that_is_dense_is_resized(tiny_model):
    model = tiny_model("llama")
    workbench = Workbench(model)
    plan = {n: m for n, m in mixed_plan(workbench.inventory).items() if "embed" not in n}
    compress_(workbench, type(mixed_plan(workbench.inventory)).of(plan), builder(workbench))
    assert model.resize_token_embeddings(100).weight.shape == (100, 32)
    assert _logits(model).shape[-1] == 100
