"""Refitting aims at the dense outputs on the inputs that a compressed model really gives."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autocompress.errors import ModelError
from autocompress.evaluation.scoring import Teacher, score
from autocompress.healing import refit as refit_module
from autocompress.healing.refit import Moments, refit
from autocompress.healing.student import Student
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.numerics.metric import Curvature, Metric
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.workbench import Workbench
from tests.healing.conftest import CONTEXT
from tests.healing.plans import building, some_ids
from tests.methods.matrices import gram, matrix, spec_of
from tests.moe_models import make_moe

OUT, IN, TOKENS = 12, 8, 200


def plain_metrics(workbench):
    return {spec.name: Metric.identity(*spec.shape) for spec in workbench.inventory.layers}


def seen():
    """Inputs in the dense model and in a compressed one, ``[tokens, in]``, with their moments."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(IN, IN, generator=generator)
    x = torch.randn(TOKENS, IN, generator=generator) @ mixing
    s = x @ (torch.eye(IN) + 0.2 * torch.randn(IN, IN, generator=generator))
    s += 0.3 * torch.randn(TOKENS, IN, generator=generator)
    return x, s, Moments(s.T @ s / TOKENS, (x - s).T @ s / TOKENS, TOKENS)


def test_the_target_is_the_least_squares_solution(monkeypatch):
    monkeypatch.setattr(refit_module, "DAMPING", 0.0)
    x, s, moments = seen()
    weight = matrix(OUT, IN)
    solution = torch.linalg.lstsq(s, x @ weight.T).solution.T
    assert_close(moments.target(weight, 1.0), solution, rtol=1e-3, atol=1e-4)
    assert_close(moments.target(weight, 0.5), (weight + solution) / 2, rtol=1e-3, atol=1e-4)


def test_the_target_of_equal_inputs_is_the_matrix():
    _, _, moments = seen()
    weight = matrix(OUT, IN)
    equal = Moments(moments.gram, torch.zeros(IN, IN), TOKENS)
    assert torch.equal(equal.target(weight, 1.0), weight)
    never = Moments(torch.zeros(IN, IN), torch.zeros(IN, IN), TOKENS)
    assert torch.equal(never.target(weight, 1.0), weight)


def test_the_error_is_that_of_the_outputs_up_to_a_constant():
    x, s, moments = seen()
    rows = gram(OUT, 3)
    metric = moments.metric(Metric((Curvature(rows, torch.ones(IN)),)))
    problem = MatrixProblem(spec_of(OUT, IN), matrix(OUT, IN), metric)

    def outright(layer):
        errors = x @ problem.weight.T - s @ layer.to_dense().T
        return 0.5 * float(((errors @ rows) * errors).sum(1).mean())

    one, other = (Quantize(bits, 0).build(problem) for bits in (2, 4))
    assert moments.error(problem, one) - moments.error(problem, other) == pytest.approx(
        outright(one) - outright(other), rel=1e-3
    )


def test_matrices_come_in_the_order_of_the_model_with_those_that_share_an_input(tiny_model):
    workbench = Workbench(tiny_model("llama_untied"))
    names = [spec.name for spec in workbench.inventory.layers]
    plan = Plan.of(dict.fromkeys(reversed(names), Svd(4)) | {names[3]: Keep()})
    groups = refit_module._in_order(workbench, plan, some_ids())
    ends = [[spec.name.rsplit(".", 1)[1] for spec in group] for group in groups]
    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names[3].endswith("v_proj")
    assert ends == [block[0][:2], *block[1:], *block]


def test_unpacked_copies_of_a_block_that_is_passed_are_dropped(workbench, healing_ids, monkeypatch):
    plan = Plan.of({spec.name: Quantize(2, 16) for spec in workbench.inventory.layers})
    copied = {}
    moments = refit_module._moments

    def seen(wanted, given, name):
        held = [
            path
            for path, part in given.model.named_modules()
            if isinstance(part, CompressedMatrix) and part.cached_bytes
        ]
        copied[name] = {path.split(".")[2] for path in held if ".layers." in path}
        return moments(wanted, given, name)

    monkeypatch.setattr(refit_module, "_moments", seen)
    batches = healing_ids.view(4, -1, CONTEXT)
    refit(workbench, plan, building(workbench), plain_metrics(workbench), batches)
    assert copied["model.layers.0.mlp.down_proj"] == {"0"}
    assert copied["model.layers.1.mlp.down_proj"] == {"1"}


def test_a_refitted_model_is_nearer_to_the_dense_one(workbench, healing_ids, selection):
    inventory = workbench.inventory
    plan = Plan.of(
        {spec.name: (Quantize(2, 16), Svd(8))[i % 2] for i, spec in enumerate(inventory.layers)}
    )
    build = building(workbench)
    dense = {name: tensor.clone() for name, tensor in workbench.model.state_dict().items()}
    built = {name: build(name, plan[name]).to_dense() for name in plan}
    batches = healing_ids.view(4, -1, CONTEXT)
    numbers = refit(workbench, plan, build, plain_metrics(workbench), batches)
    for name, tensor in workbench.model.state_dict().items():
        assert torch.equal(tensor, dense[name])
    for name, tensor in built.items():
        assert torch.equal(build(name, plan[name]).to_dense(), tensor)
    assert not any("embed_tokens" in name for name in numbers)
    assert any("layers.1.mlp.down_proj" in name for name in numbers)

    teacher = Teacher.of(workbench.model, selection)
    divergences = []
    for stored in ({}, numbers):
        student = Student(workbench, Compressed(plan, stored), build)
        with torch.no_grad():
            divergences.append(score(student.model, selection, teacher).divergence)
    assert divergences[1] < 0.9 * divergences[0]


def test_inputs_that_are_not_finite_are_told(workbench):
    plan = Plan.of({spec.name: Quantize(4, 16) for spec in workbench.inventory.layers})
    norm = workbench.model.get_submodule("model.layers.1.input_layernorm")
    with torch.no_grad():
        norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"layers\.1.*NaN or infinity"):
        refit(workbench, plan, building(workbench), plain_metrics(workbench), [some_ids()])


def test_fits_that_are_worse_than_before_are_not_taken(workbench, monkeypatch, notes):
    plan = Plan.of({spec.name: Quantize(4, 16) for spec in workbench.inventory.layers})
    monkeypatch.setattr(Moments, "target", lambda _self, weight, _strength: -weight)
    numbers = refit(
        workbench,
        plan,
        building(workbench),
        plain_metrics(workbench),
        [some_ids()],
        progress=notes,
    )
    assert numbers == {}
    assert notes.said == ["Refitting brought the outputs of 0 of 14 matrices nearer."]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_of_any_kind_keep_their_form(dtype, tiny_model):
    workbench = Workbench(tiny_model("gpt2", dtype))
    plan = Plan.of({spec.name: Svd(6) for spec in workbench.inventory.layers})
    build = building(workbench)
    numbers = refit(workbench, plan, build, plain_metrics(workbench), [some_ids()])
    before = Student(workbench, plan, build).weights()
    assert numbers
    for name, tensor in numbers.items():
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        assert name.endswith("bias") == torch.equal(tensor, before[name]), name


def test_experts_keep_their_fits():
    workbench = Workbench(make_moe("mixtral"))
    plan = Plan.of({spec.name: Quantize(2, 16) for spec in workbench.inventory.layers})
    build = building(workbench)
    numbers = refit(workbench, plan, build, plain_metrics(workbench), [some_ids()])
    assert numbers
    assert not any("experts" in name for name in numbers)
    Student(workbench, Compressed(plan, numbers), build)
