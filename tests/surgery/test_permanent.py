from __future__ import annotations

import pytest
import torch

from autocompress.methods.keep import Keep
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import is_exported
from autocompress.surgery.permanent import compress_, compressed_copy
from autocompress.surgery.workbench import Workbench
from tests.conftest import FAMILIES
from tests.mixed_plans import builder, mixed_plan

WAYS = pytest.mark.parametrize("way", [compressed_copy, compress_])


class Trial:
    """A tiny model, a plan, and what the model computes under it."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        self.workbench = Workbench(model)
        self.plan = mixed_plan(self.workbench.inventory)
        build, built = builder(self.workbench), {}
        self.build = lambda *key: built.setdefault(key, build(*key))
        self.dense = self.logits(model)
        with self.workbench.applied(self.plan, self.build):
            self.wanted = self.logits(model)

    def logits(self, model):
        with torch.no_grad():
            return model(**self.inputs).logits


@pytest.fixture
def trial(tiny_model, inputs_of):
    def make(family):
        model = tiny_model(family)
        return Trial(model, inputs_of(model))

    return make


@WAYS
@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_the_result_computes_saves_and_loads_like_an_exported_model(way, family, trial, tmp_path):
    case = trial(family)
    model = way(case.workbench, case.plan, case.build)
    torch.testing.assert_close(case.logits(model), case.wanted, rtol=0, atol=0)
    assert is_exported(model)
    assert stored_bytes(model) == case.workbench.inventory.plan_bytes(case.plan)
    model.save_pretrained(tmp_path)
    again = type(case.model).from_pretrained(tmp_path)
    torch.testing.assert_close(case.logits(again), case.wanted, rtol=0, atol=0)
    assert stored_bytes(again) == stored_bytes(model)


@WAYS
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_result_generates(way, family, trial):
    case = trial(family)
    model = way(case.workbench, case.plan, case.build)
    made = model.generate(**case.inputs, max_new_tokens=3, do_sample=False)
    assert made.shape[0] == len(case.inputs["input_ids"])


def test_a_copy_leaves_the_model_dense_and_shares_what_stays(trial):
    case = trial("llama_untied")
    before = dict(case.model.named_parameters())
    model = compressed_copy(case.workbench, case.plan, case.build)
    assert model is not case.model
    assert not is_exported(case.model)
    assert getattr(case.model.config, "quantization_config", None) is None
    torch.testing.assert_close(case.logits(case.model), case.dense, rtol=0, atol=0)
    assert all(tensor is before[name] for name, tensor in case.model.named_parameters())
    kept = [f"{name}.weight" for name, method in case.plan.items() if method == Keep()]
    after = dict(model.named_parameters())
    assert kept
    for name in [*kept, "model.norm.weight"]:
        assert after[name] is before[name]


def test_in_place_it_is_the_same_object_without_its_dense_matrices(trial):
    case = trial("llama")
    assert compress_(case.workbench, case.plan, case.build) is case.model
    changed = {f"{name}.weight" for name, method in case.plan.items() if method != Keep()}
    assert not changed & set(case.model.state_dict())


def test_tied_matrices_stay_one(trial):
    case = trial("llama")
    model = compressed_copy(case.workbench, case.plan, case.build)
    assert model.lm_head.matrix is model.get_input_embeddings().matrix
    assert model.lm_head.matrix is not None
    model.tie_weights()  # transformers does so now and then
    torch.testing.assert_close(case.logits(model), case.wanted, rtol=0, atol=0)
