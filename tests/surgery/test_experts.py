from __future__ import annotations

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from autocompress.calibration.statistics import collect_statistics
from autocompress.layers.dense import DenseMatrix
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import Kind, Role
from autocompress.surgery.experts import LoopedExperts, slot_of, stacks_of, taken_apart
from autocompress.surgery.inventory import stored_bytes, take_inventory
from autocompress.surgery.placement import read_bias, read_weight
from autocompress.surgery.workbench import Workbench
from tests.architectures import ARCHITECTURES
from tests.deploy.exporting import export_tiny
from tests.mixed_plans import builder, mixed_plan
from tests.moe_models import EXPERTS, FAMILIES, make_moe

FIRST = "model.layers.0.mlp.experts"
SOME = Plan.of({f"{FIRST}.gate_up_proj.1": Quantize(4, 16), f"{FIRST}.down_proj.3": Svd(4)})


def _logits(model, inputs_of):
    with torch.no_grad():
        return model(**inputs_of(model)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_has_its_matrices_in_the_inventory(family):
    model = make_moe(family)
    inventory = take_inventory(model)
    experts = [spec for spec in inventory.layers if ".experts." in spec.name]
    assert len(experts) == 2 * 2 * EXPERTS
    spec = inventory[f"{FIRST}.gate_up_proj.3"]
    assert (spec.shape, spec.role, spec.depth) == ((96, 32), Role.UP, 0)
    assert spec.bias is (family == "gpt_oss")
    assert spec.kind is (Kind.CONV1D if family == "gpt_oss" else Kind.LINEAR)
    spec = inventory["model.layers.1.mlp.experts.down_proj.0"]
    assert (spec.shape, spec.role, spec.depth) == ((32, 48), Role.DOWN, 1)
    assert not any(".experts." in skipped.name for skipped in inventory.skipped)
    assert inventory.plan_bytes(Plan(())) == inventory.dense_bytes == stored_bytes(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrix_of_an_expert_is_a_view(family):
    model = make_moe(family)
    spec = take_inventory(model)[f"{FIRST}.gate_up_proj.2"]
    stack = model.get_parameter(f"{FIRST}.gate_up_proj")[2]
    weight = read_weight(model, spec)
    assert weight.shape == spec.shape
    assert weight.data_ptr() == stack.data_ptr()
    assert torch.equal(weight, stack.T if family == "gpt_oss" else stack)
    if family == "gpt_oss":
        biases = model.get_parameter(f"{FIRST}.gate_up_proj_bias")
        assert torch.equal(read_bias(model, spec), biases[2])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_taken_apart_compute_the_same(family, implementation):
    model = make_moe(family)
    model.set_experts_implementation(implementation)
    dense = model.get_submodule(FIRST)
    apart = LoopedExperts(dense)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 32, generator=generator)
    chosen = torch.rand(9, EXPERTS, generator=generator).topk(2).indices
    weights = torch.rand(9, 2, generator=generator)
    assert_close(apart(x, chosen, weights), dense(x, chosen, weights))
    assert apart(x[:0], chosen[:0], weights[:0]).shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_some_experts_of_a_layer_are_compressed_and_put_back(family, dtype, inputs_of):
    model = make_moe(family, dtype)
    workbench, dense = Workbench(model), _logits(model, inputs_of)
    module, tensors = model.get_submodule(FIRST), dict(model.state_dict(keep_vars=True))
    with workbench.applied(SOME, builder(workbench)):
        experts = model.get_submodule(FIRST)
        assert isinstance(experts, LoopedExperts)
        assert isinstance(experts.gate_up_proj[0], DenseMatrix)
        assert isinstance(model.get_submodule("model.layers.1.mlp.experts"), type(module))
        assert stored_bytes(model) == workbench.inventory.plan_bytes(SOME)
        assert (_logits(model, inputs_of) - dense).abs().max() > 1e-3
        problem = workbench.problem(f"{FIRST}.down_proj.3")  # dense, also while it is replaced
        assert problem.weight.data_ptr() == module.down_proj[3].data_ptr()
    assert model.get_submodule(FIRST) is module
    again = model.state_dict(keep_vars=True)
    assert list(again) == list(tensors)
    assert all(again[name] is tensor for name, tensor in tensors.items())
    assert torch.equal(_logits(model, inputs_of), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_applied_model_computes_with_the_dense_forms_of_its_experts(family, inputs_of):
    model = make_moe(family)
    workbench, oracle = Workbench(model), copy.deepcopy(model)
    plan, build = mixed_plan(workbench.inventory, start=2), builder(Workbench(model))
    for name, method in plan.items():
        read_weight(oracle, workbench.inventory[name]).copy_(build(name, method).to_dense())
    with workbench.applied(plan, build):
        compressed = _logits(model, inputs_of)
    assert_close(compressed, _logits(oracle, inputs_of), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", [None, SOME])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_loads_again_and_again(family, plan, inputs_of, tiny_tokenizer, tmp_path):
    model = make_moe(family, torch.bfloat16)
    tiny = export_tiny(model, tiny_tokenizer, inputs_of(model), tmp_path / "first", plan)
    assert tiny.report.weight_bytes == tiny.inventory.plan_bytes(tiny.plan)
    for folder in (tmp_path / "first", tmp_path / "second"):
        loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(_logits(loaded, inputs_of), tiny.logits)
        assert stored_bytes(loaded) == tiny.report.weight_bytes
        loaded.save_pretrained(tmp_path / "second")


def test_a_loader_that_knows_no_autocompress_stops(inputs_of, tiny_tokenizer, tmp_path):
    model = make_moe("mixtral")
    export_tiny(model, tiny_tokenizer, inputs_of(model), tmp_path / "first", SOME)
    type(model).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    stored = load_file(tmp_path / "second" / "model.safetensors")
    assert stored[f"{FIRST}.gate_up_proj"].numel() == 0
    with pytest.raises(RuntimeError, match="size"):
        transformers.MixtralForCausalLM.from_pretrained(
            tmp_path / "second", config=copy.deepcopy(model.config)
        )


def test_a_copy_stands_on_its_own(inputs_of):
    model = make_moe("qwen3_moe")
    workbench = Workbench(model)
    with workbench.applied(SOME, builder(workbench)):
        twin, compressed = copy.deepcopy(model), _logits(model, inputs_of)
    assert torch.equal(_logits(twin, inputs_of), compressed)
    model.get_parameter(f"{FIRST}.gate_up_proj").zero_()
    assert torch.equal(_logits(twin, inputs_of), compressed)


def test_generation_while_experts_are_compressed():
    model = make_moe("mixtral")
    workbench, ids = Workbench(model), torch.arange(3, 9)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with workbench.applied(SOME, builder(workbench)):
        with_cache = model.generate(ids, use_cache=True, **options)
        assert torch.equal(with_cache, model.generate(ids, use_cache=False, **options))


def test_stacks_of_another_kind_are_left_with_the_reason():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stacked = nn.Parameter(torch.zeros(4, 16, 16))
            self.linear = nn.Linear(16, 16)

    reasons = {skipped.name: skipped.reason for skipped in take_inventory(Own()).skipped}
    assert reasons == {".stacked": "Own stacks matrices in a way of its own"}


def test_the_experts_of_llama_4_compute_the_same_apart():
    model = ARCHITECTURES["llama4"].make()
    dense = model.get_submodule("model.layers.0.feed_forward.experts")
    apart = taken_apart(dense)
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))
    x[1] = 0.0  # an expert that no token has chosen
    x[2, 3] = 0.0
    assert_close(apart(x.view(-1, 32)), dense(x.view(-1, 32)))
    metrics = collect_statistics(model, take_inventory(model).layers, [torch.arange(3, 30)[None]])
    tokens = {
        name: metric.terms[0].tokens for name, metric in metrics.items() if ".experts." in name
    }
    assert sum(tokens.values()) == 2 * 2 * 27  # each token has one expert, with two matrices


def test_only_experts_have_slots():
    model = make_moe("mixtral")
    slot = slot_of(model, f"{FIRST}.gate_up_proj.3")
    assert (slot.experts, slot.stack, slot.index) == (FIRST, "gate_up_proj", 3)
    for name in (
        "model.layers.0",
        "model.layers.0.self_attn.q_proj",
        "no.such.module.3",
        "lm_head",
    ):
        assert slot_of(model, name) is None
    assert stacks_of(model.model.layers[0]) == ()
