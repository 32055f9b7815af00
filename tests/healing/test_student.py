"""A student computes what would be stored, before and after training, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertLMHeadModel

from autocompress.healing.losses import Losses
from autocompress.healing.optimiser import Optimiser
from autocompress.healing.student import Student
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.registry import METHODS
from autocompress.methods.svd import Svd
from autocompress.methods.trellis import Trellis
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.permanent import compressed_copy
from autocompress.surgery.placement import prefix_of
from autocompress.surgery.workbench import Workbench
from tests.conftest import VOCABULARY
from tests.healing.plans import building, logits_of, some_ids, take_steps
from tests.methods.examples import EXAMPLES, plan_of
from tests.mixed_plans import mixed_plan
from tests.moe_models import FAMILIES as MOE_FAMILIES
from tests.moe_models import make_moe

TRAINED = [name for name in EXAMPLES if name != Keep.name]
# Of the largest logit, where products are summed in another order.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
IDS = some_ids()


def assert_same(one, other):
    limit = ROUNDING[one.dtype] * float(other.abs().max())
    assert_close(one, other, rtol=0, atol=limit)


def test_every_method_has_an_example():
    assert set(EXAMPLES) == set(METHODS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # without biases; Conv1D with biases
@pytest.mark.parametrize("name", TRAINED)
def test_a_student_computes_what_is_stored(name, family, dtype, tiny_model):
    model = tiny_model(family, dtype)
    workbench = Workbench(model)
    plan, build = plan_of(workbench.inventory, name), building(workbench)
    student = Student(workbench, plan, build)
    before = logits_of(student.model, IDS)
    assert_same(before, logits_of(compressed_copy(workbench, plan, build), IDS))
    take_steps(model, student, IDS)
    numbers = student.weights()
    after = logits_of(student.model, IDS)
    with workbench.applied(Compressed(plan, numbers), build) as applied:
        assert_same(logits_of(applied, IDS), after)
    assert (after - before).abs().max() > 2 * ROUNDING[dtype] * before.abs().max()
    prefixes = tuple(prefix_of(workbench.inventory[name]) for name in plan)
    stored = sum(tensor.nbytes for name, tensor in numbers.items() if name.startswith(prefixes))
    specs = [workbench.inventory[name] for name in plan]
    assert stored == sum(plan[spec.name].cost(spec) for spec in specs)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_all_that_is_trained(name, tiny_model):
    model = tiny_model("qwen2")  # biases in attention only, norms, a tied head
    workbench = Workbench(model)
    plan = plan_of(workbench.inventory, name)
    student = Student(workbench, plan, building(workbench))
    Losses(model, student.model).on_outputs(IDS).backward()
    trained = dict(student.trained())
    assert "model.norm.weight" in trained
    for each in student.weights():
        base, _, last = each.rpartition(".")
        place = {"codes": "latent.units", "scales": "latent.growth"}.get(last, last)
        assert (f"{base}.{place}" in trained) is (last not in ("zeros", "positions")), each
    for each, parameter in trained.items():
        if each.endswith("k_proj.bias"):  # softmax does not see it
            continue
        assert parameter.grad is not None, each
        assert torch.isfinite(parameter.grad).all(), each
        assert parameter.grad.any(), each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "gpt_neox"])
def test_the_dense_model_what_is_kept_and_built_layers_stay(family, dtype, tiny_model):
    model = tiny_model(family, dtype)
    workbench = Workbench(model)
    plan, build = mixed_plan(workbench.inventory, start=1), building(workbench)
    student = Student(workbench, plan, build)
    kept = [name for name, method in plan.items() if method == Keep()]
    layers = {name: build(name, plan[name]) for name in plan if name not in kept}
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    built = {
        (name, each): tensor.clone()
        for name, layer in layers.items()
        for each, tensor in layer.state_dict().items()
    }
    take_steps(model, student, IDS)
    assert kept
    for name in kept:
        weight = f"{name}.weight"
        assert student.model.get_parameter(weight) is model.get_parameter(weight)
        assert weight not in student.weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, dense[name]), name
    for (name, each), tensor in built.items():
        assert torch.equal(layers[name].state_dict()[each], tensor), (name, each)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_applied_numbers_are_taken_out_again(tiny_llama):
    workbench = Workbench(tiny_llama)
    plan, build = mixed_plan(workbench.inventory), building(workbench)
    student = Student(workbench, plan, build)
    take_steps(tiny_llama, student, IDS)
    before = {
        name: (id(p), p.clone()) for name, p in tiny_llama.named_parameters(remove_duplicate=False)
    }
    logits = logits_of(tiny_llama, IDS)
    with workbench.applied(Compressed(plan, student.weights()), build):
        assert not torch.equal(logits_of(tiny_llama, IDS), logits)
    after = dict(tiny_llama.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    for name, (identity, tensor) in before.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], tensor)
    assert torch.equal(logits_of(tiny_llama, IDS), logits)


def test_a_student_goes_on_from_the_numbers_of_another(tiny_llama):
    workbench = Workbench(tiny_llama)
    plan, build = mixed_plan(workbench.inventory), building(workbench)
    first = Student(workbench, plan, build)
    take_steps(tiny_llama, first, IDS)
    second = Student(workbench, Compressed(plan, first.weights()), build)
    assert_same(logits_of(second.model, IDS), logits_of(first.model, IDS))
    for name, tensor in first.weights().items():
        assert torch.equal(second.weights()[name], tensor), name


@pytest.mark.parametrize("method", [Trellis(2), Quantize(3, 16)], ids=str)
def test_an_embedding_and_its_tied_head_are_one_matrix_in_training(method, tiny_llama):
    workbench = Workbench(tiny_llama)
    plan = Plan.of({"model.embed_tokens": method})
    student = Student(workbench, plan, building(workbench))
    take_steps(tiny_llama, student, IDS)
    model = student.model
    assert model.lm_head.matrix is model.model.embed_tokens.matrix
    ids = torch.arange(8)
    table = model.model.embed_tokens.matrix.to_dense()
    assert torch.equal(model.model.embed_tokens(ids), table[ids])
    assert not any(name.startswith("lm_head") for name in student.weights())


def test_a_vector_that_modules_share_stays_one():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        is_decoder=True,
    )
    model = BertLMHeadModel(config).eval().requires_grad_(False)
    workbench = Workbench(model)
    plan, build = plan_of(workbench.inventory, "quantize"), building(workbench)
    student = Student(workbench, plan, build)
    take_steps(model, student, IDS)
    numbers = student.weights()
    assert "cls.predictions.transform.LayerNorm.bias" in numbers
    with workbench.applied(Compressed(plan, numbers), build) as applied:
        ends = applied.cls.predictions
        assert ends.decoder.bias is ends.bias
        assert_same(logits_of(applied, IDS), logits_of(student.model, IDS))


def test_biases_of_zeros_are_trained(tiny_model):
    model = tiny_model("gpt2")
    bias = "transformer.h.1.mlp.c_proj.bias"
    model.get_parameter(bias).zero_()
    workbench = Workbench(model)
    plan = plan_of(workbench.inventory, "svd")
    student = Student(workbench, plan, building(workbench))
    optimiser = Optimiser(student)
    Losses(model, student.model).on_outputs(IDS).backward()
    optimiser.step(0.01)
    moved = student.weights()[bias].abs().max()
    assert 1e-5 < moved < 1e-3


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_experts_that_are_compressed_are_trained_and_the_others_kept(family):
    model = make_moe(family)
    workbench = Workbench(model)
    first = "model.layers.0.mlp.experts"
    plan = Plan.of(
        {
            f"{first}.gate_up_proj.1": Quantize(4, 16),
            f"{first}.gate_up_proj.2": Trellis(2),
            f"{first}.down_proj.3": Svd(4),
            "model.layers.1.self_attn.o_proj": Svd(4),
        }
    )
    build = building(workbench)
    student = Student(workbench, plan, build)
    before = logits_of(student.model, IDS)
    assert_same(before, logits_of(compressed_copy(workbench, plan, build), IDS))
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_steps(model, student, IDS)
    numbers, after = student.weights(), logits_of(student.model, IDS)
    with workbench.applied(Compressed(plan, numbers), build) as applied:
        assert_same(logits_of(applied, IDS), after)
    assert not torch.equal(after, before)
    assert f"{first}.down_proj.3.left.weight" in numbers
    assert not any(name.startswith(f"{first}.gate_up_proj.0.weight") for name in numbers)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, dense[name]), name
