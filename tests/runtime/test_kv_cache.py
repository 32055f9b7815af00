from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from autocompress.layers.low_rank import LowRankMatrix
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.records import Role
from autocompress.runtime.kv_cache import LatentCache, Subspace, cache_bytes_per_token
from autocompress.surgery.workbench import Workbench
from tests.mixed_plans import builder
from tests.moe_models import make_moe

RANK, WIDTH, LAYERS = 6, 16, 2  # width: two key-value heads of eight
ANGLES = 8  # four cosines and four sines a token, once for all layers


def _low_rank(model, method=None, roles=(Role.KEY, Role.VALUE)):
    """The model with its key and value projections at a low rank, as a context."""
    workbench = Workbench(model)
    chosen = [spec.name for spec in workbench.inventory.layers if spec.role in roles]
    return workbench.applied(
        Plan.of(dict.fromkeys(chosen, method or Svd(RANK))), builder(workbench)
    )


def _step_by_step(model, cache, ids, prompt=5, **more):
    """Logits of a prompt read at once and of the tokens after it, read one by one."""
    logits, start = [], 0
    with torch.no_grad():
        for stop in range(prompt, ids.shape[1] + 1):
            mask = {name: each[:, :stop] for name, each in more.items()}
            out = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, **mask)
            logits.append(out.logits)
            start = stop
    return torch.cat(logits, 1)


@pytest.fixture
def ids():
    return torch.randint(3, 96, (2, 14), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "opt"])
def test_decoding_gives_the_same_logits(family, tiny_model, ids):
    model = tiny_model(family)
    with _low_rank(model):
        usual = _step_by_step(model, DynamicCache(config=model.config), ids)
        cache = LatentCache.for_model(model)
        assert_close(_step_by_step(model, cache, ids), usual, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 14
    held = [(layer.keys.shape, layer.values.shape) for layer in cache.layers]
    assert held[:LAYERS] == [((2, 1, 14, RANK), (2, 1, 14, RANK))] * LAYERS
    angles = [] if family == "opt" else [((2, 1, 14, ANGLES // 2),) * 2]
    assert held[LAYERS:] == angles


def test_bfloat16_loses_no_more_than_the_usual_cache(tiny_model, ids):
    """Against fp32, the rounded coordinates are no worse than rounded values, within a factor."""
    model, wide = tiny_model("qwen2", torch.bfloat16), tiny_model("qwen2")
    with _low_rank(model), _low_rank(wide):
        exact = _step_by_step(wide, None, ids)
        usual = _step_by_step(model, DynamicCache(config=model.config), ids).float()
        latent = _step_by_step(model, LatentCache.for_model(model), ids)
        assert latent.dtype == torch.bfloat16
    assert (latent.float() - exact).square().mean() < 1.5 * (usual - exact).square().mean()


def test_a_padded_batch(tiny_llama, ids):
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with _low_rank(tiny_llama):
        usual = _step_by_step(tiny_llama, DynamicCache(), ids, attention_mask=mask)
        cache = LatentCache.for_model(tiny_llama)
        latent = _step_by_step(tiny_llama, cache, ids, attention_mask=mask)
    assert_close(latent[:, 3:], usual[:, 3:], rtol=1e-4, atol=1e-4)


def test_a_sliding_window(ids):
    model = make_moe("gpt_oss")  # every other layer looks back 16 tokens; biases
    ids = torch.cat([ids, ids], 1)
    with _low_rank(model):
        usual = _step_by_step(model, DynamicCache(config=model.config), ids)
        cache = LatentCache.for_model(model)
        assert_close(_step_by_step(model, cache, ids), usual, rtol=1e-4, atol=1e-4)
    held = [(layer.keys.shape[2:], layer.values.shape[2:]) for layer in cache.layers]
    assert held == [((15, RANK),) * 2, ((28, RANK),) * 2, ((28, ANGLES // 2),) * 2]


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}]
)
def test_generation(options, tiny_llama, ids):
    options = options | {"max_new_tokens": 8, "attention_mask": torch.ones_like(ids)[:1]}
    with _low_rank(tiny_llama):
        latent = tiny_llama.generate(
            ids[:1], past_key_values=LatentCache.for_model(tiny_llama), **options
        )
        assert torch.equal(latent, tiny_llama.generate(ids[:1], **options))


def test_generation_for_a_padded_batch(tiny_llama, ids):
    """Positions, and so the angles of the keys, differ between the texts of a batch."""
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    with _low_rank(tiny_llama):
        cache = LatentCache.for_model(tiny_llama)
        latent = tiny_llama.generate(ids, past_key_values=cache, **options)
        assert torch.equal(latent, tiny_llama.generate(ids, **options))
    cosines = cache.layers[LAYERS].keys
    assert not torch.equal(cosines[0], cosines[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_that_the_cache_holds(dtype, tiny_model, ids):
    for family, whole, latent in (
        ("llama", 4 * WIDTH, 4 * RANK + ANGLES),
        ("opt", 4 * 32, 4 * RANK),
        ("gpt2", 4 * 32, 4 * 32),
    ):
        model = tiny_model(family, dtype)
        assert cache_bytes_per_token(model) == whole * dtype.itemsize
        with _low_rank(model):
            cache = LatentCache.for_model(model)
            _step_by_step(model, cache, ids)
            held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
            assert cache_bytes_per_token(model) == held / ids.numel()
            assert held / ids.numel() == latent * dtype.itemsize


@pytest.mark.parametrize(
    ("method", "latent"),
    [
        (Svd(RANK, bits=8), True),
        (Svd(WIDTH - 1), True),
        (Svd(WIDTH), False),
        (Quantize(4, 16), False),
    ],
)
def test_only_what_saves_bytes_is_latent(method, latent, tiny_model):
    model = tiny_model("llama")
    whole = cache_bytes_per_token(model)
    with _low_rank(model, method):
        assert (cache_bytes_per_token(model) < whole) is latent
        assert (LatentCache.if_smaller(model) is not None) is latent
        assert type(LatentCache.for_model(model)) is LatentCache
    assert LatentCache.if_smaller(model) is None


def test_one_layer_alone(tiny_model, ids):
    model = tiny_model("llama")
    workbench = Workbench(model)
    plan = Plan.of({"model.layers.1.self_attn.v_proj": Svd(RANK)})
    with workbench.applied(plan, builder(workbench)):
        cache = LatentCache.for_model(model)
        _step_by_step(model, cache, ids)
    assert [layer.values.shape[1:] for layer in cache.layers] == [(2, 14, 8), (1, 14, RANK)]


def test_angles_that_take_more_than_keys_save_leave_the_keys_whole(tiny_llama):
    name, whole = "model.layers.1.self_attn.k_proj", cache_bytes_per_token(tiny_llama)
    workbench = Workbench(tiny_llama)
    for rank, saved in ((WIDTH - ANGLES, 0), (WIDTH - ANGLES - 1, 1)):
        with workbench.applied(Plan.of({name: Svd(rank)}), builder(workbench)):
            assert cache_bytes_per_token(tiny_llama) == whole - 4 * saved
            assert (LatentCache.if_smaller(tiny_llama) is not None) is bool(saved)


def test_normalised_keys_and_low_rank_matrices_elsewhere_stay_out_of_it():
    model = make_moe("qwen3_moe")
    with _low_rank(model, roles=(Role.KEY, Role.QUERY, Role.OUTPUT, Role.DOWN)):
        assert cache_bytes_per_token(model) == LAYERS * 2 * WIDTH * 4
        assert LatentCache.if_smaller(model) is None


def test_models_that_cache_nothing(tiny_model):
    for family in ("bert", "t5"):
        assert cache_bytes_per_token(tiny_model(family)) is None
        assert LatentCache.if_smaller(tiny_model(family)) is None
    assert cache_bytes_per_token(tiny_model("llama").model) is None
    assert LatentCache.if_smaller(torch.nn.Linear(2, 2)) is None


def test_a_copied_cache_goes_its_own_way(tiny_llama, ids):
    """As prompts that are read once and continued in several ways."""
    with _low_rank(tiny_llama):
        usual = _step_by_step(tiny_llama, DynamicCache(), ids)
        cache = LatentCache.for_model(tiny_llama)
        _step_by_step(tiny_llama, cache, ids[:, :8])
        twin = copy.deepcopy(cache)
        _step_by_step(tiny_llama, cache, ids[:, 8:].flip(1), prompt=1)
        with torch.no_grad():
            again = tiny_llama(input_ids=ids[:, 8:], past_key_values=twin).logits
    assert_close(again, usual[:, 8:], rtol=1e-4, atol=1e-4)
    assert (twin.get_seq_length(), cache.get_seq_length()) == (14, 14)


def test_the_model_is_listened_to_as_long_as_the_cache_lives(tiny_llama):
    def hooks():
        return sum(len(module._forward_hooks) for module in tiny_llama.modules())

    with _low_rank(tiny_llama):
        cache_bytes_per_token(tiny_llama)
        assert hooks() == 0
        cache = LatentCache.for_model(tiny_llama)
        assert hooks() == 1
        del cache
        assert hooks() == 0


def test_a_subspace_keeps_what_lies_in_it_even_if_its_factor_is_ill_conditioned():
    matrix = LowRankMatrix(16, 8, rank=3, bits=0, bias=True, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[1e3], [1.0], [1e-3]])
    matrix.left.weight.copy_(torch.randn(3, 16, generator=generator) * scales)
    matrix.right.weight.copy_(torch.randn(3, 8, generator=generator) / scales)
    matrix.bias.copy_(torch.randn(16, generator=generator))
    y = matrix(torch.randn(2, 5, 8, generator=generator))
    states = y.unflatten(-1, (4, 4)).transpose(1, 2)
    subspace = Subspace(matrix, torch.float32)
    coordinates = subspace.coordinates(states)
    assert coordinates.shape == (2, 1, 5, 3)
    assert_close(subspace.states(coordinates, 4), states)
    outside = subspace.states(subspace.coordinates(states + 1), 4)
    assert (outside - states - 1).abs().max() > 0.1
