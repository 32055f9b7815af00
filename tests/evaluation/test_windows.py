from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import DataError
from autocompress.evaluation.windows import Windows, context_length


@given(st.integers(2, 200), st.integers(2, 50), st.integers(1, 5))
def test_windows_and_batches_hold_each_token_once(
    count: int, context: int, windows_per_batch: int
) -> None:
    windows = Windows(torch.arange(count), context)
    kept = torch.cat(list(windows))
    left_out = count - len(kept)
    assert left_out in (0, 1)
    assert left_out == (count % context == 1)
    torch.testing.assert_close(kept, torch.arange(len(kept)))
    assert len(list(windows)) == len(windows)
    assert windows.tokens == len(kept) - len(windows)
    batches = list(windows.batches(7, logit_bytes=4 * 7 * context * windows_per_batch))
    torch.testing.assert_close(torch.cat([batch.flatten() for batch in batches]), kept)
    assert max(len(batch) for batch in batches) <= windows_per_batch


@given(st.integers(2, 200), st.integers(4, 50), st.integers(1, 3), st.integers(1, 5))
def test_behind_begin_tokens_each_token_is_predicted_once(
    count: int, context: int, begin: int, windows_per_batch: int
) -> None:
    tokens = tuple(range(900, 900 + begin))
    windows = Windows(torch.arange(count), context, tokens)
    assert windows.tokens == count
    predicted = torch.cat([window[windows.given :] for window in windows])
    torch.testing.assert_close(predicted, torch.arange(count))
    assert all(window[:begin].tolist() == list(tokens) for window in windows)
    assert max(len(window) for window in windows) <= context
    batches = list(windows.batches(7, logit_bytes=4 * 7 * context * windows_per_batch))
    torch.testing.assert_close(
        torch.cat([batch.flatten() for batch in batches]), torch.cat(list(windows))
    )
    parts = [windows.part(number, number + 1) for number in range(len(windows))]
    assert sum(part.tokens for part in parts) == count


def test_no_room_beside_begin_tokens() -> None:
    with pytest.raises(DataError, match=r"context of 3 tokens, 3 of them given.*at least 4"):
        Windows(torch.arange(20), 3, (1, 2, 3))


def test_a_window_larger_than_the_memory_limit_goes_alone() -> None:
    assert [
        batch.shape for batch in Windows(torch.arange(20), 10).batches(1000, logit_bytes=1)
    ] == [(1, 10), (1, 10)]


def test_first_windows() -> None:
    windows = Windows(torch.arange(25), 10)
    assert (
        len(windows),
        len(windows.first(2)),
        windows.first(2).tokens,
        len(windows.first(9)),
    ) == (3, 2, 18, 3)


@pytest.mark.parametrize(("count", "context"), [(0, 8), (1, 8)])
def test_too_few_tokens(count: int, context: int) -> None:
    with pytest.raises(DataError, match="too short to score"):
        Windows(torch.arange(count), context)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(max_position_embeddings=256), 256),
        (transformers.LlamaConfig(max_position_embeddings=131072), 2048),
        (transformers.GPT2Config(n_positions=1024), 1024),
        (transformers.BloomConfig(), 2048),
        (transformers.MptConfig(max_seq_len=512), 512),
    ],
)
def test_context_is_the_configs_at_most_2048(
    config: transformers.PretrainedConfig, expected: int
) -> None:
    class Model:
        pass

    model = Model()
    model.config = config  # type: ignore[attr-defined]
    assert context_length(model) == expected
    assert context_length(model, 64) == 64
