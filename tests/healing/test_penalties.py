"""Penalties reach what is trained, and healing with them leaves ranks that can be cut."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from autocompress.errors import ConfigurationError
from autocompress.evaluation.windows import Windows
from autocompress.healing import shrink as healing_shrink
from autocompress.healing.entanglement import TURNS, EntanglementPenalty
from autocompress.healing.healer import Healer
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.methods.base import FACTOR_BITS
from autocompress.methods.cp import Cp
from autocompress.methods.keep import Keep
from autocompress.methods.penalties import Penalty
from autocompress.methods.plan import Plan
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.requests.healing import HealSettings
from autocompress.surgery.workbench import Workbench
from tests.conftest import make_tiny_model
from tests.healing.plans import building, some_ids
from tests.methods.matrices import linear_metric

FORMS = {
    **{f"svd{bits}": lambda _, bits=bits: Svd(8, bits=bits) for bits in FACTOR_BITS},
    "corrected": lambda _: QuantizePlusLowRank(2, 16, 6),
    "tensor_train": lambda spec: TensorTrain.uniform(spec.shape, order=2, rank=8, bits=8),
    "tucker": lambda spec: Tucker.uniform(spec.shape, order=2, rank=4),
    "cp": lambda spec: Cp.uniform(spec.shape, order=2, rank=12, bits=8),
}


def student_of(model, method_of):
    workbench = Workbench(model)
    plan = Plan.of({spec.name: method_of(spec) for spec in workbench.inventory.layers})
    return workbench, Student(workbench, plan, building(workbench))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_reaches_every_factor_and_descent_lowers_the_penalty(form, tiny_model):
    _, student = student_of(tiny_model("llama"), FORMS[form])
    penalty = EntanglementPenalty(student, [Penalty(weight=0.1)])
    parameters = dict(student.trained())
    before = penalty.total()
    for step in range(TURNS):
        penalty.on_step(step).backward()
    factors = ("left", "right", "core", "factors")
    for name, parameter in parameters.items():
        if any(part in name for part in factors) and not name.endswith("growth"):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert bool((parameter.grad != 0).any()), name
    for name, parameter in parameters.items():
        if parameter.grad is not None and not name.endswith("growth"):
            size = parameter.detach().square().mean().sqrt()
            parameter.data -= 0.25 * size * parameter.grad.sign()
    assert penalty.total() < before


def test_the_turns_of_the_steps_add_up_to_the_whole(tiny_model):
    _, student = student_of(tiny_model("llama"), FORMS["svd0"])
    penalty = EntanglementPenalty(student, [Penalty("*.mlp.*", weight=0.1), Penalty()])
    turns = [penalty.on_step(step) for step in range(7, 7 + TURNS)]
    assert sum(float(turn.detach()) for turn in turns) / TURNS == pytest.approx(penalty.total())


def test_layers_pay_by_the_first_entry_that_matches_and_others_nothing(tiny_model):
    mlp_only = [Penalty("*.mlp.*", "shannon", weight=0.1)]
    workbench, student = student_of(
        tiny_model("llama"), lambda spec: Svd(4) if "proj" in spec.name else Keep()
    )
    plain = EntanglementPenalty(student, mlp_only)
    assert plain.total() <= 0.1 * 6 * torch.log(torch.tensor(4.0))
    for step in range(TURNS):
        plain.on_step(step).backward()
    paying = {name for name, p in student.trained() if p.grad is not None}
    assert paying
    assert all(".mlp." in name for name in paying)
    with pytest.raises(ConfigurationError, match="penalty 1, layers"):
        EntanglementPenalty(student, [Penalty("*.embed_tokens")])
    metrics = {spec.name: linear_metric(*spec.shape) for spec in workbench.inventory.layers}
    assert EntanglementPenalty(student, mlp_only, metrics).total() != plain.total()
    assert EntanglementPenalty(student, []).on_step(0) is None


FOLDED = {
    "svd": lambda spec: Svd(min(24, *spec.shape)),
    "tensor_train": lambda spec: TensorTrain.uniform(spec.shape, order=2, rank=24),
    "tucker": lambda spec: Tucker.uniform(spec.shape, order=2, rank=6),
    "cp": lambda spec: Cp.uniform(spec.shape, order=2, rank=40),
}
KINDS = [Penalty(), Penalty(kind="shannon"), Penalty(alpha=2.0), Penalty(alpha=8.0)]


def healed(form, penalties):
    """Bytes after a cut, and how a short run on a few tokens went."""
    workbench, student = student_of(
        make_tiny_model("llama"),
        lambda spec: FOLDED[form](spec) if "up_proj" in spec.name else Keep(),
    )
    ids = some_ids(24, 12)
    settings = HealSettings(steps=40, tokens=48, rate=0.03, penalties=penalties)
    run = Healer(
        workbench.model, student, ids[:20].flatten(), Windows(ids[20:].flatten(), 12), settings
    ).run()
    layers = workbench.inventory.layers
    cut = shrink(student.plan, student.weights(), layers, {}, 0.3)
    return cut.plan.layer_bytes(layers), run


@cache
def bytes_without(form):
    size, run = healed(form, ())
    assert {check.penalty for check in run.checks} == {0.0}
    return size


@pytest.mark.parametrize(
    ("form", "penalty"),
    [*(("svd", kind) for kind in KINDS), *((form, KINDS[0]) for form in FOLDED if form != "svd")],
    ids=str,
)
def test_every_kind_leaves_ranks_that_can_be_cut(form, penalty, monkeypatch):
    monkeypatch.setattr(healing_shrink, "RANK_MULTIPLE", 1)  # these matrices are small
    size, run = healed(form, (penalty,))
    assert run.checks[-1].penalty < run.checks[0].penalty
    assert size < bytes_without(form)
    assert run.best.divergence + run.best.penalty == min(
        c.divergence + c.penalty for c in run.checks
    )
