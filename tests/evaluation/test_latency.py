from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.errors import ModelError
from autocompress.evaluation.latency import (
    WARM_UP_TOKENS,
    DecodeTimer,
    Latency,
    decode_latency,
    describe_device,
    interleaved,
    prompt_of,
    summarise,
)
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.surgery.kv_cache import LatentCache
from autocompress.surgery.workbench import Workbench
from tests.mixed_plans import builder


def test_summary_is_the_median_and_half_the_interquartile_range() -> None:
    assert summarise([5.0, 1.0, 2.0, 4.0, 3.0]) == Latency(3.0, 1.0)
    assert summarise([1.0, 1.0, 1.0, 1.0, 100.0]) == Latency(1.0, 0.0)
    assert summarise([7.0]) == Latency(7.0, 0.0)
    with pytest.raises(ValueError, match="no times"):
        summarise([])


def test_rounds_take_turns_and_the_first_of_each_is_dropped() -> None:
    order: list[str] = []

    def run(name: str, first: float, later: float) -> Callable[[], list[float]]:
        def times() -> list[float]:
            order.append(name)
            return [first if order.count(name) == 1 else later]

        return times

    result = interleaved(
        {"dense": run("dense", 90.0, 4.0), "other": run("other", 80.0, 2.0)}, rounds=2
    )
    assert order == ["dense", "other"] * 3
    assert result == {"dense": Latency(4.0, 0.0), "other": Latency(2.0, 0.0)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_timed_token_is_one_step_with_the_cache(
    family: str, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model(family)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _arguments, options: lengths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    times = DecodeTimer(model, prompt_of(model, 8), tokens=5).times()
    assert len(times) == 5
    assert min(times) > 0
    assert lengths == [8] + [1] * (WARM_UP_TOKENS + 5)


def test_decoding_is_greedy_generation(tiny_llama: Any) -> None:
    prompt = prompt_of(tiny_llama, 8)
    seen: list[int] = []
    tiny_llama.register_forward_pre_hook(
        lambda _module, _arguments, options: seen.append(int(options["input_ids"][0, -1])),
        with_kwargs=True,
    )
    DecodeTimer(tiny_llama, prompt, tokens=3).times()
    decoded = seen[1:]
    expected = tiny_llama.generate(
        prompt[None], max_new_tokens=5, min_new_tokens=5, do_sample=False
    )[0, 8:]
    assert decoded == expected.tolist()


def test_low_rank_values_are_decoded_with_a_latent_cache(tiny_llama: Any) -> None:
    workbench, caches = Workbench(tiny_llama), []
    tiny_llama.register_forward_pre_hook(
        lambda _module, _arguments, options: caches.append(options["past_key_values"]),
        with_kwargs=True,
    )
    timer = DecodeTimer(tiny_llama, prompt_of(tiny_llama, 8), tokens=2)
    timer.times()
    assert not any(isinstance(cache, LatentCache) for cache in caches)
    plan = Plan.of({"model.layers.0.self_attn.v_proj": Svd(4)})
    with workbench.applied(plan, builder(workbench)):
        timer.times()
        assert isinstance(caches[-1], LatentCache)
        assert caches[-1].get_seq_length() == 8 + WARM_UP_TOKENS + 2
        DecodeTimer(tiny_llama, prompt_of(tiny_llama, 8), 2, make_cache=lambda _: None).times()
    assert not isinstance(caches[-1], LatentCache)


def test_a_slower_model_is_seen_to_be_slower(tiny_model: Callable[..., Any]) -> None:
    fast, slow = tiny_model("llama"), tiny_model("llama")
    ballast = torch.ones(400, 400)

    def waste_time(*_: Any) -> None:
        for _step in range(10):
            ballast @ ballast

    slow.model.layers[0].register_forward_pre_hook(waste_time)
    timers = {
        name: DecodeTimer(model, prompt_of(model, 8), 5).times
        for name, model in (("f", fast), ("s", slow))
    }
    result = interleaved(timers, rounds=3)
    assert result["s"].median_ms > result["f"].median_ms


def test_one_model_alone(tiny_llama: Any) -> None:
    assert decode_latency(tiny_llama, tokens=3, rounds=1).median_ms > 0


def test_a_model_without_cache_is_refused() -> None:
    class Uncached(torch.nn.Linear):
        def forward(self, **_: Any) -> Any:  # type: ignore[override]
            return SimpleNamespace(logits=torch.zeros(1, 4, 5), past_key_values=None)

    with pytest.raises(ModelError, match="no key-value cache"):
        DecodeTimer(Uncached(2, 2), torch.arange(4)).times()


def test_prompts_are_the_same_every_time_and_in_the_vocabulary(tiny_llama: Any) -> None:
    prompt = prompt_of(tiny_llama, 40)
    torch.testing.assert_close(prompt, prompt_of(tiny_llama, 40))
    assert prompt.max() < 96
    assert len(prompt.unique()) == 40


def test_device_is_described(tiny_llama: Any) -> None:
    assert describe_device(tiny_llama) == f"cpu ({torch.get_num_threads()} threads)"
