"""What the dense model says is computed once, in its own type, block by block where asked."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autocompress.evaluation.causal import CausalLanguage
from autocompress.evaluation.windows import Windows
from autocompress.healing.healer import Healer
from autocompress.healing.losses import Losses
from autocompress.healing.student import Student
from autocompress.healing.teacher import DenseTeacher
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.requests.healing import HealSettings
from autocompress.surgery.workbench import Workbench
from tests.healing.conftest import CONTEXT
from tests.healing.plans import building, logits_of, some_ids

IDS = some_ids()


def test_autocast_does_not_reach_the_dense_model(tiny_llama):
    wanted = DenseTeacher(tiny_llama).rows(IDS).tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found = DenseTeacher(tiny_llama).rows(IDS).tensors()
        noise = Losses(tiny_llama, tiny_llama).on_blocks(IDS)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert noise > 1e-7  # of the student's half precision, which the dense model does not share


@pytest.mark.parametrize(("vocabulary", "dtype"), [(600, torch.int16), (40_000, torch.int32)])
def test_predictions_are_kept_in_few_bytes(vocabulary, dtype):
    logits, other = torch.randn(2, 3, vocabulary, generator=torch.Generator().manual_seed(0))
    objective = CausalLanguage()
    found = objective.rows(3, vocabulary, logits.device, training=True)
    found.add(objective.prepared(logits))
    assert found.indices.dtype == dtype
    assert sum(t.nbytes for t in found.tensors().values()) == 3 * 512 * (4 + dtype.itemsize)
    chosen = found.indices.long()
    logs = torch.log_softmax(other, -1).gather(-1, chosen)
    assert_close(found.logs, torch.log_softmax(logits, -1).gather(-1, chosen))
    kept = (found.logs.exp() * (found.logs - logs)).sum(-1)
    rest, own = 1 - found.logs.exp().sum(-1), 1 - logs.exp().sum(-1)
    wanted = kept + rest * (rest / own).log()
    assert_close(found.divergence(0, objective.prepared(other)), wanted)


def test_runs_that_share_a_teacher_ask_the_dense_model_once(workbench, plan, healing_ids):
    model, teacher = workbench.model, DenseTeacher(workbench.model)
    build, selection = building(workbench), Windows(healing_ids[: 4 * CONTEXT], CONTEXT)
    settings = HealSettings(steps=4, tokens=8 * CONTEXT)
    asked, runs = [], []
    for shared in (None, teacher, teacher):
        student = Student(workbench, plan, build)
        healer = Healer(model, student, healing_ids, selection, settings, teacher=shared)
        handle = model.register_forward_hook(lambda *_: asked.append(1))
        asked.clear()
        runs.append((healer.run(), len(asked)))
        handle.remove()
    assert [count for _, count in runs] == [4, 4, 0]
    for name, tensor in runs[0][0].weights.items():
        for healed, _ in runs[1:]:
            assert torch.equal(healed.weights[name], tensor), name


def test_cores_are_not_taken_for_blocks(tiny_llama):
    workbench = Workbench(tiny_llama)
    specs = workbench.inventory.layers
    plan = Plan.of({spec.name: Svd(1) for spec in specs})
    table = TensorTrain.uniform(workbench.inventory["model.embed_tokens"].shape, order=3, rank=32)
    plan = Plan.of({**plan, "model.embed_tokens": table})
    student = Student(workbench, plan, building(workbench))
    found = Losses(tiny_llama, student.model).on_blocks(IDS)
    hidden = []
    for model in (tiny_llama, student.model):
        handles = [
            block.register_forward_hook(lambda _m, _i, output: hidden.append(output))
            for block in model.model.layers
        ]
        logits_of(model, IDS)
        for handle in handles:
            handle.remove()
    count = len(hidden) // 2
    errors = [
        (ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2))
        for theirs, ours in zip(hidden[:count], hidden[count:], strict=True)
    ]
    assert_close(found, torch.stack(errors).mean())
