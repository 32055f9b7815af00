from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from autocompress.errors import AutocompressError, RecipeError
from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.surgery.inventory import stored_bytes, take_inventory
from autocompress.surgery.placement import read_bias, read_weight
from autocompress.surgery.tied import TiedEmbedding
from autocompress.surgery.workbench import Workbench
from tests.conftest import FAMILIES
from tests.mixed_plans import builder, mixed_plan


def _snapshot(model):
    """The very objects of a model, and their bits."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers()),
    }
    modules = dict(model.named_modules(remove_duplicate=False))
    return (
        list(modules),
        {k: id(m) for k, m in modules.items()},
        {k: (id(t), t.clone()) for k, t in tensors.items()},
    )


def _assert_same(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert before[2].keys() == after[2].keys()
    for name, (identity, tensor) in before[2].items():
        assert after[2][name][0] == identity
        assert torch.equal(after[2][name][1], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "llama_untied", "mixtral", "gemma2"])
def test_applied_changes_the_outputs_and_restores_the_model(family, dtype, tiny_model, inputs_of):
    model = tiny_model(family, dtype)
    inputs, before = inputs_of(model), _snapshot(model)
    with torch.no_grad():
        dense = model(**inputs).logits
        workbench = Workbench(model)
        plan = mixed_plan(workbench.inventory)
        with workbench.applied(plan, builder(workbench)) as applied:
            assert applied is model
            compressed = model(**inputs).logits
            assert stored_bytes(model) == workbench.inventory.plan_bytes(plan)
        again = model(**inputs).logits
    assert compressed.dtype == dtype
    assert torch.isfinite(compressed).all()
    assert (compressed - dense).abs().max() > 1e-3
    assert torch.equal(again, dense)
    _assert_same(before, _snapshot(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_applied_model_computes_with_the_dense_forms_of_its_layers(
    family, tiny_model, inputs_of
):
    """Oracle: a dense copy whose weights are replaced by ``to_dense()``, tied ones included."""
    model = tiny_model(family)
    workbench, oracle = Workbench(model), copy.deepcopy(model)
    plan = mixed_plan(workbench.inventory, start=1)
    build = builder(workbench)
    for name, method in plan.items():
        spec = workbench.inventory[name]
        read_weight(oracle, spec).copy_(build(name, method).to_dense())
    with torch.no_grad(), workbench.applied(plan, build):
        assert_close(
            model(**inputs_of(model)).logits,
            oracle(**inputs_of(oracle)).logits,
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_plan_of_kept_layers_touches_nothing(tiny_llama):
    workbench, before = Workbench(tiny_llama), _snapshot(tiny_llama)
    kept = Plan.of({spec.name: Keep() for spec in workbench.inventory.layers})
    with workbench.applied(kept, builder(workbench)):
        _assert_same(before, _snapshot(tiny_llama))


def test_an_exception_inside_restores(tiny_llama):
    workbench, before = Workbench(tiny_llama), _snapshot(tiny_llama)
    with (
        pytest.raises(ZeroDivisionError),
        workbench.applied(mixed_plan(workbench.inventory), builder(workbench)),
    ):
        raise ZeroDivisionError
    _assert_same(before, _snapshot(tiny_llama))


def test_a_build_that_fails_half_way_restores(tiny_llama):
    workbench, before, built = Workbench(tiny_llama), _snapshot(tiny_llama), []

    def build(name, method):
        built.append(name)
        if len(built) > 4:
            raise KeyboardInterrupt
        return builder(workbench)(name, method)

    with (
        pytest.raises(KeyboardInterrupt),
        workbench.applied(mixed_plan(workbench.inventory), build),
    ):
        pass
    _assert_same(before, _snapshot(tiny_llama))
    with workbench.applied(mixed_plan(workbench.inventory), builder(workbench)):
        pass


def test_plans_do_not_nest(tiny_llama):
    workbench = Workbench(tiny_llama)
    plan, build = mixed_plan(workbench.inventory), builder(workbench)
    with workbench.applied(plan, build):
        with (
            pytest.raises(AutocompressError, match="already applied"),
            workbench.applied(plan, build),
        ):
            pass
        assert isinstance(tiny_llama.model.embed_tokens, CompressedEmbedding)
    assert type(tiny_llama.model.embed_tokens) is torch.nn.Embedding


def test_a_plan_for_another_model_is_refused_before_anything_is_done(tiny_llama):
    workbench, before = Workbench(tiny_llama), _snapshot(tiny_llama)
    wrong = Plan.of(
        {
            "model.layers.0.self_attn.q_proj": Quantize(4, 16),
            "model.layers.7.mlp.up_proj": Quantize(4, 16),
        }
    )
    with (
        pytest.raises(RecipeError, match=r"model\.layers\.7\.mlp\.up_proj"),
        workbench.applied(wrong, builder(workbench)),
    ):
        pass
    _assert_same(before, _snapshot(tiny_llama))


def test_problems_are_dense_while_a_plan_is_applied(tiny_model):
    workbench = Workbench(tiny_model("gpt2"))
    name = "transformer.h.0.mlp.c_fc"
    spec = workbench.inventory[name]
    weight, bias = (
        read_weight(workbench.model, spec).clone(),
        read_bias(workbench.model, spec).clone(),
    )
    assert weight.shape == spec.shape
    with workbench.applied(mixed_plan(workbench.inventory), builder(workbench)):
        problem = workbench.problem(name)
        assert isinstance(workbench.model.get_submodule(name), CompressedMatrix)
        assert torch.equal(problem.weight, weight)
        assert torch.equal(problem.bias, bias)


def test_one_matrix_serves_every_tied_module(tiny_model):
    workbench = Workbench(tiny_model("t5"))
    plan = Plan.of({"shared": Quantize(4, 16)})
    with workbench.applied(plan, builder(workbench)) as model:
        parts = (model.encoder.embed_tokens, model.decoder.embed_tokens, model.lm_head)
        assert [type(part) for part in parts] == [TiedEmbedding, TiedEmbedding, TiedHead]
        assert all(part.matrix is model.shared.matrix for part in parts)
        assert parts[0].num_embeddings == 96
        assert parts[0].embedding_dim == 32
        assert not any(
            key.startswith(("encoder.embed", "decoder.embed", "lm_head"))
            for key in model.state_dict()
        )


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_copy_of_an_applied_model_stands_on_its_own(family, tiny_model, inputs_of):
    model = tiny_model(family)
    workbench = Workbench(model)
    with torch.no_grad():
        with workbench.applied(mixed_plan(workbench.inventory), builder(workbench)):
            twin, compressed = copy.deepcopy(model), model(**inputs_of(model)).logits
        assert torch.equal(twin(**inputs_of(twin)).logits, compressed)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert not shared
    skipped = {each.name: each.reason for each in take_inventory(twin).skipped}
    assert "already compressed" in skipped.values()


def test_generation_with_a_cache_while_applied(tiny_llama):
    workbench = Workbench(tiny_llama)
    ids = torch.arange(3, 9)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with workbench.applied(mixed_plan(workbench.inventory), builder(workbench)) as model:
        with_cache = model.generate(ids, use_cache=True, **options)
        without = model.generate(ids, use_cache=False, **options)
    assert torch.equal(with_cache, without)
