from __future__ import annotations

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import DynamicCache

from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.records import Role
from autocompress.runtime.cache_layout import cache_layout
from autocompress.runtime.kv_cache import LatentCache
from autocompress.runtime.rotary import (
    Angles,
    back,
    each_once,
    every_other,
    find_rotation,
    first_half,
    rotary_modules,
    turn_halves,
    turn_neighbours,
)
from autocompress.surgery.workbench import Workbench
from tests.mixed_plans import builder
from tests.moe_models import make_moe

STYLES = {
    "Llama": (first_half, turn_halves),
    "Phi": (first_half, turn_halves),  # half of a head is left as it is
    "Glm": (first_half, turn_neighbours),
    "Cohere": (every_other, turn_neighbours),
    "gpt_oss": (each_once, turn_halves),
}


def _model(family):
    if family == "gpt_oss":
        return make_moe(family)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)


@pytest.fixture
def low_rank():
    def make(family):
        model = _model(family)
        workbench = Workbench(model)
        names = [spec.name for spec in workbench.inventory.layers if spec.role is Role.KEY]
        return model, workbench.applied(Plan.of(dict.fromkeys(names, Svd(5))), builder(workbench))

    return make


@pytest.mark.parametrize("family", STYLES)
def test_the_style_of_a_family_is_found_and_keys_are_rebuilt(family, low_rank):
    model, applied = low_rank(family)
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    with applied, torch.no_grad():
        (rotation,) = cache_layout(model).rotations
        assert (rotation.distinct, rotation.turn) == STYLES[family]
        ends = []
        for cache in (DynamicCache(config=model.config), LatentCache.for_model(model)):
            model(input_ids=ids[:, :12], past_key_values=cache)
            ends.append(model(input_ids=ids[:, 12:], past_key_values=cache).logits)
    assert cache.layers[0].keys.shape[-1] == 5
    assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turn", [turn_halves, turn_neighbours])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_turning_there_and_back(turn, scale):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 5, 10, generator=generator)
    angles = torch.randn(2, 1, 5, 4, generator=generator)
    cos, sin = scale * angles.cos(), scale * angles.sin()
    turned = turn(states, cos, sin)
    assert_close(turned[..., 8:], states[..., 8:])
    assert_close(turned[..., :8].norm(dim=-1), scale * states[..., :8].norm(dim=-1))
    assert_close(turn(turned, *back(cos, sin)), states)


def test_keys_that_are_something_else_have_no_rotation():
    model = _model("Llama")
    (module,) = rotary_modules(model)
    angles = Angles(module)
    before = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    assert find_rotation(before, before, [angles]) is None  # nothing has been computed yet
    module(before, torch.arange(6)[None])
    cos, sin = (first_half(table)[:, None] for table in angles.latest)
    turned = turn_halves(before, cos, sin)
    assert find_rotation(before, turned, [angles]).turn is turn_halves
    assert find_rotation(before, 1.01 * turned, [angles]) is None
    assert find_rotation(before, turned.flip(2), [angles]) is None
    assert find_rotation(before[:, :, 1:], turned[:, :, 1:], [angles]) is None
