"""What subclasses compute is found out by trying: linear maps, and lookups times a constant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers.pytorch_utils import Conv1D

from autocompress.records import Kind
from autocompress.surgery.forms import Form, form_of
from autocompress.surgery.inventory import take_inventory
from tests.architectures import ARCHITECTURES


class Renamed(nn.Linear):
    pass


class ByHand(nn.Linear):
    def forward(self, input):
        return input @ self.weight.T + self.bias


class Clipped(nn.Linear):
    def forward(self, input):
        return super().forward(input.clamp(-10, 10))


class Rounded(nn.Linear):
    def forward(self, input):
        return nn.functional.linear(input, self.weight.sign(), self.bias)


class Shifted(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


class Choosing(nn.Linear):
    def forward(self, input):
        return super().forward(input).topk(2)


class Adapted(nn.Linear):
    """As an adapter begins: it adds nothing yet."""

    def __init__(self, *sides) -> None:
        super().__init__(*sides)
        self.lora_A = nn.Parameter(torch.randn(2, sides[0]))
        self.lora_B = nn.Parameter(torch.zeros(sides[1], 2))

    def forward(self, input):
        return super().forward(input) + input @ self.lora_A.T @ self.lora_B.T


class Remembering(nn.Linear):
    def __init__(self, *sides) -> None:
        super().__init__(*sides)
        self.register_buffer("seen", torch.zeros(1))


class Transposed(Conv1D):
    pass


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * math.sqrt(2.0)


class Positions(nn.Embedding):
    def forward(self, ids):
        return super().forward(torch.arange(ids.shape[1])).expand(*ids.shape, -1)


class Offset(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 1.0


class Normed(nn.Embedding):
    def forward(self, ids):
        return nn.functional.normalize(super().forward(ids))


LINEAR = Form(Kind.LINEAR)
HALF = torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("kind", [Renamed, ByHand])
def test_a_subclass_that_computes_the_same_is_linear(kind, dtype):
    assert form_of(kind(24, 16).to(dtype)) == LINEAR
    with torch.device("meta"):
        assert form_of(kind(24, 16, dtype=dtype)) == LINEAR


@pytest.mark.parametrize("kind", [Clipped, Rounded, Shifted, Choosing, Adapted, Remembering])
def test_a_subclass_that_computes_or_stores_something_else_is_not(kind):
    assert form_of(kind(24, 16)) is None


def test_a_transposed_one_and_the_classes_themselves():
    assert form_of(Transposed(16, 24)) == form_of(Conv1D(16, 24)) == Form(Kind.CONV1D)
    assert form_of(nn.Linear(24, 16)) == LINEAR
    assert form_of(nn.Embedding(24, 16)) == Form(Kind.EMBEDDING)
    assert form_of(nn.LayerNorm(8)) is None


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_the_factor_of_an_embedding_is_exact(dtype):
    module = Scaled(24, 16).to(dtype)
    form = form_of(module)
    ids = torch.arange(24)[None]
    assert torch.equal(module.weight[ids] * form.factor, module(ids))
    assert form.factor == pytest.approx(2**0.5, rel=1e-6)


@pytest.mark.parametrize("kind", [Positions, Offset, Normed])
def test_a_table_that_is_read_in_another_way_is_no_embedding(kind):
    assert form_of(kind(24, 16)) is None


def test_hooks_and_weights_of_the_module_play_no_part():
    module = ByHand(24, 16)
    nn.init.zeros_(module.weight)
    module.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    assert form_of(module) == LINEAR
    assert not module.weight.any()


def test_weights_that_are_made_of_other_parameters_are_left():
    model = nn.ModuleDict(
        {"parametrized": parametrizations.weight_norm(nn.Linear(16, 16)), "plain": ByHand(16, 16)}
    )
    parametrize.register_parametrization(model["plain"], "weight", nn.Identity())
    model["dense"] = nn.Linear(16, 16)
    assert [spec.name for spec in take_inventory(model).layers] == ["dense"]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "xglm", "bart", "biogpt"])
def test_scaled_token_vectors_have_their_factor(name, dtype):
    model = ARCHITECTURES[name].make().to(dtype)
    inventory = take_inventory(model)
    embedding = model.get_input_embeddings()
    ids = torch.arange(20)[None]
    ((spec, factor),) = [(spec, factor) for spec in inventory.layers for _, factor in spec.factors]
    assert model.get_submodule(spec.name) is embedding
    assert torch.equal(embedding.weight[ids] * factor, embedding(ids))
    assert factor != 1.0
