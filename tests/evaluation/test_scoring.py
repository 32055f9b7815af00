from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from autocompress.errors import DataError, ModelError
from autocompress.evaluation import scoring
from autocompress.evaluation.causal import CausalLanguage
from autocompress.evaluation.corpus import bundled_text
from autocompress.evaluation.divergence import TOP_K
from autocompress.evaluation.encoding import token_ids
from autocompress.evaluation.scoring import Teacher, score, scores
from autocompress.evaluation.windows import Windows, context_length
from tests.conftest import VOCABULARY, make_tiny_model
from tests.evaluation.models import BigramModel, brute_force, random_ids, random_table


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Windows]:
    """The trained model with 1,100 tokens: four windows and a short one."""
    from autocompress.surgery.loading import load_model

    loaded = load_model(None)
    ids = token_ids(bundled_text("selection"), loaded.tokenizer, limit=1100)
    return loaded.model, Windows(ids, context_length(loaded.model))


def test_uniform_predictions_have_the_vocabulary_as_perplexity() -> None:
    model = BigramModel(torch.zeros(37, 37))
    assert score(model, Windows(random_ids(101, 37), 16)).figure == pytest.approx(37, rel=1e-6)


def test_a_certain_model_has_perplexity_one() -> None:
    table = torch.full((5, 5), -1000.0)
    table[torch.arange(5), (torch.arange(5) + 1) % 5] = 1000.0
    assert score(BigramModel(table), Windows(torch.arange(50) % 5, 16)).figure == 1.0


@pytest.mark.parametrize("count", [96, 97, 98, 101])
def test_every_token_weighs_the_same_also_in_a_short_last_window(count: int) -> None:
    dense, other = BigramModel(random_table(23, 0)), BigramModel(random_table(23, 1))
    windows = Windows(random_ids(count, 23), 16)
    result = score(other, windows, Teacher.of(dense, windows))
    nll, kl = brute_force(other, windows, dense)
    assert result.loss == pytest.approx(nll, rel=1e-6)
    assert result.divergence == pytest.approx(kl, rel=1e-3)
    assert result.tokens == windows.tokens
    each = result.windows
    assert sum(each.tokens) == windows.tokens
    assert len(each.tokens) == len(each.loss) == len(windows)
    sums = (n * mean for n, mean in zip(each.tokens, each.loss, strict=True))
    assert sum(sums) == pytest.approx(nll * windows.tokens, rel=1e-6)


def test_blocks_smaller_than_a_window_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, other = BigramModel(random_table(23, 0)), BigramModel(random_table(23, 1))
    windows = Windows(random_ids(90, 23), 16)
    expected = score(other, windows, Teacher.of(dense, windows))
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", 23 * 4)
    blocked = score(other, windows, Teacher.of(dense, windows))
    assert (blocked.loss, blocked.divergence) == pytest.approx(
        (expected.loss, expected.divergence), rel=1e-6
    )


def test_trained_model_against_brute_force(bundled: tuple[Any, Windows]) -> None:
    dense, windows = bundled
    teacher = Teacher.of(dense, windows)
    assert teacher.score.loss == pytest.approx(brute_force(dense, windows)[0], rel=1e-6)
    assert abs(score(dense, windows, teacher).divergence) < 1e-6
    weight = dense.model.layers[1].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data = kept + 0.1 * kept.std() * torch.randn(
            kept.shape, generator=torch.Generator().manual_seed(0)
        )
        damaged = score(dense, windows, teacher)
        kept_kl = _fp64_divergence(dense, windows, weight, kept)
    finally:
        weight.data = kept
    assert damaged.divergence == pytest.approx(kept_kl, rel=1e-3)
    assert damaged.divergence > 1e-4


def _fp64_divergence(
    model: Any, windows: Windows, weight: torch.nn.Parameter, dense_weight: torch.Tensor
) -> float:
    """Divergence of the model as it is from itself with the dense weight put back."""
    total, damaged_weight = 0.0, weight.data
    with torch.inference_mode():
        for window in windows:
            other = torch.log_softmax(model(input_ids=window[None]).logits[0, :-1].double(), -1)
            weight.data = dense_weight
            dense = torch.log_softmax(model(input_ids=window[None]).logits[0, :-1].double(), -1)
            weight.data = damaged_weight
            total += (dense.exp() * (dense - other)).sum().item()
    return total / windows.tokens


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_largest_probabilities_give_a_lower_bound(spread: float) -> None:
    vocabulary = TOP_K + 300
    dense, other = (
        BigramModel(random_table(vocabulary, 0, spread)),
        BigramModel(random_table(vocabulary, 1, spread)),
    )
    windows = Windows(random_ids(80, vocabulary), 16)
    bounded = score(
        other, windows, Teacher.of(dense, windows, objective=CausalLanguage(0))
    ).divergence
    exact = brute_force(other, windows, dense)[1]
    assert 0.5 * exact < bounded < exact
    assert (
        abs(
            score(
                dense, windows, Teacher.of(dense, windows, objective=CausalLanguage(0))
            ).divergence
        )
        < 1e-6
    )


def test_a_bucket_of_no_tokens_is_exact() -> None:
    dense, other = BigramModel(random_table(40, 0)), BigramModel(random_table(40, 1))
    windows = Windows(random_ids(80, 40), 16)
    result = score(
        other, windows, Teacher.of(dense, windows, objective=CausalLanguage(0))
    ).divergence
    assert result == pytest.approx(brute_force(other, windows, dense)[1], rel=1e-5)


def test_divergence_of_half_precision_logits_is_zero_to_itself() -> None:
    dense = BigramModel(random_table(64, 0).bfloat16())
    windows = Windows(random_ids(80, 64), 16)
    assert abs(score(dense, windows, Teacher.of(dense, windows)).divergence) < 1e-6


def test_a_teacher_serves_its_first_windows_too() -> None:
    dense, other = BigramModel(random_table(23, 0)), BigramModel(random_table(23, 1))
    windows = Windows(random_ids(90, 23), 16)
    teacher = Teacher.of(dense, windows)
    few = score(other, windows.first(2), teacher)
    assert few.divergence == pytest.approx(brute_force(other, windows.first(2), dense)[1], rel=1e-3)
    for others in (
        Windows(windows.ids, 8),
        Windows(windows.ids, 16, (1,)),
        Windows(windows.ids[1:], 16),
        Windows(windows.ids[:24], 16),
    ):
        with pytest.raises(ValueError, match="other windows"):
            score(other, others, teacher)


@pytest.mark.parametrize("count", [96, 90])
@pytest.mark.parametrize("exact_vocabulary", [0, 23])
def test_after_each_stage_the_score_is_that_of_all_windows_so_far(
    count: int, exact_vocabulary: int
) -> None:
    dense, other = BigramModel(random_table(23, 0)), BigramModel(random_table(23, 1))
    windows = Windows(random_ids(count, 23), 16)
    teacher = Teacher.of(dense, windows, objective=CausalLanguage(exact_vocabulary))
    found = list(scores(other, windows, teacher, (1, 4)))
    for result, number in zip(found, (1, 4, len(windows)), strict=True):
        expected = score(other, windows.first(number), teacher)
        assert result.tokens == expected.tokens
        assert (result.loss, result.divergence) == pytest.approx(
            (expected.loss, expected.divergence), rel=1e-6
        )
        assert result.windows.loss == pytest.approx(expected.windows.loss, rel=1e-6)
        assert result.windows.divergence == pytest.approx(expected.windows.divergence, rel=1e-6)
        assert len(result.windows.tokens) == number


def test_stages_need_no_teacher_and_score_no_further_than_is_asked() -> None:
    model, windows = BigramModel(random_table(23, 0)), Windows(random_ids(90, 23), 16)
    steps: list[int] = []
    rising = scores(model, windows, stages=(2, 3), advance=steps.append)
    first = next(rising)
    assert sum(steps) == 2
    assert first.loss == pytest.approx(score(model, windows.first(2)).loss, rel=1e-6)
    assert math.isnan(first.divergence)
    assert [len(result.windows.tokens) for result in rising] == [3, len(windows)]
    assert sum(steps) == len(windows)


def test_progress_counts_windows() -> None:
    steps: list[int] = []
    model, windows = BigramModel(random_table(23, 0)), Windows(random_ids(90, 23), 16)
    Teacher.of(model, windows, advance=steps.append)
    score(model, windows, advance=steps.append)
    assert sum(steps) == 2 * len(windows)


def test_broken_predictions_are_outcomes() -> None:
    windows = Windows(random_ids(50, 9), 16)
    nan = score(
        BigramModel(torch.full((9, 9), math.nan)),
        windows,
        Teacher.of(BigramModel(torch.zeros(9, 9)), windows),
    )
    assert math.isnan(nan.figure)
    assert math.isnan(nan.divergence)
    table = torch.zeros(9, 9)
    table[:, 0] = 10_000.0
    assert score(BigramModel(table), windows).figure == math.inf


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_are_not_causal_are_refused(
    family: str, tiny_model: Callable[..., Any]
) -> None:
    with pytest.raises(ModelError, match="causal language model"):
        score(tiny_model(family), Windows(random_ids(40, 90), 16))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "gemma2"])
def test_causal_families_are_scored_as_by_their_own_loss(
    family: str, tiny_model: Callable[..., Any]
) -> None:
    model, ids = tiny_model(family), random_ids(32, 90)
    with torch.inference_mode():
        expected = model(input_ids=ids[None], labels=ids[None]).loss.item()
    assert score(model, Windows(ids, 32)).loss == pytest.approx(expected, rel=1e-5)


def test_a_model_without_a_head_is_refused(tiny_llama: Any) -> None:
    with pytest.raises(ModelError, match="no logits"):
        score(tiny_llama.model, Windows(random_ids(40, 90), 16))


def test_tokens_of_another_tokenizer_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(DataError, match="vocabulary of 96"):
        score(tiny_llama, Windows(torch.arange(200), 16))


def test_begin_tokens_are_given_and_not_predicted() -> None:
    model = BigramModel(random_table(23, 0))
    windows = Windows(random_ids(50, 23), 16, (7, 4))
    logs = torch.log_softmax(model.table.double(), -1)
    before = [
        token for window in windows for token in window[1:-1].tolist()
    ]  # the last begin token, then each token of the text but a window's last
    losses = [-logs[one, other].item() for one, other in zip(before, windows.ids, strict=True)]
    scored = score(model, windows, Teacher.of(BigramModel(random_table(23, 1)), windows))
    assert scored.tokens == 50
    assert scored.loss == pytest.approx(sum(losses) / 50, rel=1e-6)
    assert scored.divergence > 0


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_the_cosine_is_that_of_the_hidden_states_before_the_head(family: str) -> None:
    """Against the last of transformers' own hidden states, token by token."""
    dense, other = make_tiny_model(family), make_tiny_model(family)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    windows = Windows(random_ids(90, VOCABULARY), 16)
    result = score(other, windows, Teacher.of(dense, windows))
    cosines = []
    for window in windows:
        one, two = (
            model(window[None], output_hidden_states=True).hidden_states[-1][0, :-1]
            for model in (dense, other)
        )
        cosines.append(torch.nn.functional.cosine_similarity(one, two, dim=-1))
    assert result.cosine == pytest.approx(float(torch.cat(cosines).mean()), abs=2e-5)
    assert 0 < result.cosine < 0.9999
    itself = score(dense, windows, Teacher.of(dense, windows))
    assert itself.cosine == pytest.approx(1, abs=1e-6)
    assert math.isnan(score(dense, windows).cosine)
