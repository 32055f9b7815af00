from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from autocompress.errors import ModelError
from autocompress.evaluation import speed
from autocompress.evaluation.latency import WARM_UP_TOKENS, FirstTokenTimer
from autocompress.evaluation.speed import KINDS, Prompts, memory_alone, time_in_turn
from autocompress.fresh_process import answer_of, give_answer
from autocompress.progress import Silent


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_token_is_that_of_generate(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _arguments, options: lengths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    assert min(FirstTokenTimer(model, torch.arange(9), reads=2).times()) > 0
    assert lengths == [9] * 3


def test_prompts_and_timed_tokens_fit_a_short_context(tiny_llama: Any) -> None:
    tiny_llama.config.max_position_embeddings = 20
    prompts = Prompts.of(tiny_llama, (1,))
    assert prompts.prefill_ids.shape == (20,)
    assert prompts.prefill_ids[0] == prompts.decode_ids[0] == 1
    assert len(prompts.decode_ids) + WARM_UP_TOKENS + prompts.tokens == 20


def test_models_are_timed_in_turn_and_progress_counts_the_rounds(tiny_llama: Any) -> None:
    class Counting(Silent):
        done = total = 0

        def task(self, description: str, total: int | None = None) -> Any:
            self.total = total or 0
            return nullcontext(lambda steps: setattr(self, "done", self.done + steps))

    progress = Counting()
    times = time_in_turn({"a": tiny_llama, "b": tiny_llama}, Prompts.of(tiny_llama), progress, 1)
    assert progress.done == progress.total == 2 * 2 * len(KINDS)
    assert times.keys() == {"a", "b"}
    assert all(list(each) == list(KINDS) for each in times.values())


def test_memory_is_that_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = bytearray(2**20)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(speed, "give_answer", seen.update)
    speed.main("null", "{}")
    assert seen["peak_memory_bytes"] >= seen["libraries_memory_bytes"] > len(ballast)
    assert seen["accelerator_memory_bytes"] is None


def test_a_model_that_does_not_load_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ModelError, match=r"memory of x cannot be measured: .* it said nothing"):
        memory_alone("x", {}, 1)


def test_an_answer_is_the_last_marked_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_answer({"a": 1})
    printed = capsys.readouterr().out
    monkeypatch.setattr(
        "subprocess.run",
        lambda *_, **__: type("Done", (), {"stdout": f"noise\n{printed}", "returncode": 0})(),
    )
    assert answer_of("any.module", threads=1) == {"a": 1}
