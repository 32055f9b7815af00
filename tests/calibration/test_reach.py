from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autocompress.calibration.reach import NO_GRADIENT, NO_INPUT, find_unreached
from autocompress.surgery.inventory import take_inventory
from tests.conftest import VOCABULARY
from tests.moe_models import make_moe

RARE = 15  # a token that the windows have once, late


class Parts(nn.Module):
    """A language model with parts that a text alone does not reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16)
        self.cross_attention = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)})
        self.adapter = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.image_positions = nn.Embedding(9, 8)
        self.empty = nn.Linear(8, 8)
        self.later_head = nn.Linear(8, 16)
        self.rare = nn.Linear(8, 8)
        self.bias_of_positions = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, input_ids, image=None):
        x = self.embed(input_ids)
        if image is not None:
            x = x + self.cross_attention["q"](x) + self.cross_attention["k"](image)
        x = x + self.empty(x[input_ids > 99]).sum()
        x = self.body(input=x)
        x = x + self.bias_of_positions(torch.ones(x.shape[1], 8))
        x = x + self.experts[0](x)
        if bool((input_ids == RARE).any()):
            x = x + self.rare(x)
        return SimpleNamespace(logits=self.head(x), later=self.later_head(x))


UNREACHED = {
    "cross_attention.q": NO_INPUT,
    "cross_attention.k": NO_INPUT,
    "adapter.0": NO_INPUT,
    "adapter.1": NO_INPUT,
    "image_positions": NO_INPUT,
    "empty": NO_INPUT,
    "later_head": NO_GRADIENT,
}


def windows(*more):
    ids = torch.arange(10)
    return [ids, ids.flip(0), *more]


def test_parts_without_an_input_or_a_way_to_the_predictions_are_found():
    model = Parts()
    specs = take_inventory(model).layers
    assert find_unreached(model, specs, windows(torch.tensor([1, RARE]))) == UNREACHED
    assert find_unreached(model, specs, windows()) == UNREACHED | {"rare": NO_INPUT}


def test_the_model_is_left_as_it_was():
    model = Parts()
    find_unreached(model, take_inventory(model).layers, windows())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_reading_ends_when_all_is_reached(tiny_llama):
    seen = []
    tiny_llama.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    work = [torch.randint(3, VOCABULARY, (60,)) for _ in range(3)]
    assert find_unreached(tiny_llama, take_inventory(tiny_llama).layers, work) == {}
    assert seen == [32]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_an_idle_expert_with_busy_siblings_is_reached(family):
    model = make_moe(family)
    specs = take_inventory(model).layers
    assert find_unreached(model, specs, [torch.tensor([3, 4])]) == {}
