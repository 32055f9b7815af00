from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.errors import ModelError
from autocompress.evaluation.latency import (
    READS,
    WARM_UP_TOKENS,
    DecodeTimer,
    FirstTokenTimer,
    Latency,
    PrefillTimer,
    describe_device,
    interleaved,
    prompt_of,
    summarise,
)
from autocompress.methods.plan import Plan
from autocompress.methods.svd import Svd
from autocompress.runtime.cache_layout import given_cache
from autocompress.runtime.kv_cache import LatentCache
from autocompress.surgery.workbench import Workbench
from autocompress.units import format_cpu
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_decoding_uses_no_deprecated_words(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecodeTimer(model, prompt_of(model, 8), tokens=2).times()
        FirstTokenTimer(model, torch.arange(8)).times()


def test_a_model_that_calls_its_cache_as_before_is_handed_it() -> None:
    def forward(input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> None: ...

    assert given_cache(SimpleNamespace(forward=forward), 7) == {"past_key_values": 7}


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


def test_a_latent_cache_is_used_where_it_is_asked_for(tiny_llama: Any) -> None:
    workbench, caches = Workbench(tiny_llama), []
    tiny_llama.register_forward_pre_hook(
        lambda _module, _arguments, options: caches.append(
            options.get("cache", options.get("past_key_values"))
        ),
        with_kwargs=True,
    )
    prompt = prompt_of(tiny_llama, 8)
    plan = Plan.of({"model.layers.0.self_attn.v_proj": Svd(4)})
    with workbench.applied(plan, builder(workbench)):
        DecodeTimer(tiny_llama, prompt, tokens=2).times()
        assert not any(isinstance(cache, LatentCache) for cache in caches)
        DecodeTimer(tiny_llama, prompt, tokens=2, make_cache=LatentCache.if_smaller).times()
        assert isinstance(caches[-1], LatentCache)
        assert caches[-1].get_seq_length() == 8 + WARM_UP_TOKENS + 2


def test_sequences_side_by_side_are_decoded_each_by_itself(tiny_llama: Any) -> None:
    seen: list[torch.Tensor] = []
    tiny_llama.register_forward_pre_hook(
        lambda _module, _arguments, options: seen.append(options["input_ids"]), with_kwargs=True
    )
    prompt = prompt_of(tiny_llama, 8)
    assert len(DecodeTimer(tiny_llama, prompt, tokens=3, batch=3).times()) == 3
    together = torch.cat(seen, 1)
    assert together.shape == (3, 8 + WARM_UP_TOKENS + 3)
    for row, number in zip(together, range(3), strict=True):
        seen.clear()
        DecodeTimer(tiny_llama, prompt.roll(number), tokens=3).times()
        torch.testing.assert_close(row[None], torch.cat(seen, 1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_is_read_as_generate_reads_it(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family)
    calls: list[Any] = []
    model.register_forward_pre_hook(
        lambda _module, _arguments, options: calls.append(options), with_kwargs=True
    )
    times = PrefillTimer(model, reads=3).times()
    assert len(times) == 3
    assert min(times) > 0
    context = model.config.get_text_config().max_position_embeddings
    assert [tuple(call["input_ids"].shape) for call in calls] == [(1, context)] * 4
    assert all(call["use_cache"] and call["logits_to_keep"] == 1 for call in calls)


def test_a_model_that_cannot_leave_out_logits_reads_a_prompt_too() -> None:
    class Plain(torch.nn.Linear):
        def forward(self, input_ids: Any, use_cache: bool) -> Any:  # type: ignore[override]
            assert use_cache
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 5))

    assert len(PrefillTimer(Plain(2, 2), torch.arange(4)).times()) == READS


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
    assert describe_device(tiny_llama) == format_cpu(torch.get_num_threads())
    assert (format_cpu(1), format_cpu(2)) == ("cpu (1 thread)", "cpu (2 threads)")
