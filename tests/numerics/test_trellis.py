"""Trellis codes: they decode to what was encoded, and come near to what theory allows."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress.numerics import trellis as module
from autocompress.numerics.feedback import Feedback
from autocompress.numerics.rounding import find_grid
from autocompress.numerics.trellis import (
    CHAIN_ROWS,
    STATE_BITS,
    TRELLIS_BITS,
    chain_memory,
    codes_above,
    dequantize,
    encode,
    find_scales,
    levels,
    scaled_levels,
    search_paths,
    states_of,
)
from autocompress.numerics.trellis_loops import path_search

# Mean squared error of normal numbers: 4 ** -bits is the rate-distortion bound, and the least that
# levels chosen one by one reach is that of Lloyd and Max (Max 1960, table I).
LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def encoded(weight: Tensor, bits: int, groups: int = 1, gram: Tensor | None = None) -> Tensor:
    """Values of the codes of a matrix."""
    count = weight.shape[1]
    importance = torch.ones(count) if gram is None else gram.diagonal()
    scale = find_scales(weight, groups, importance)
    feedback = None if gram is None else Feedback.of(gram)
    codes = encode(weight, scale, bits, rows=torch.ones(weight.shape[0]), feedback=feedback)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    return dequantize(codes, scale, bits)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_normal_numbers_are_coded_better_than_one_by_one_and_within_the_bound(bits: int) -> None:
    weight = normal(CHAIN_ROWS, 64)
    error = float((encoded(weight, bits) - weight).square().mean() / weight.square().mean())
    assert 4.0**-bits < error < 0.85 * LLOYD_MAX[bits]


def test_levels_are_normal_quantiles_each_once() -> None:
    assert levels().shape == (2**STATE_BITS,)
    assert len(levels().unique()) == 2**STATE_BITS
    torch.testing.assert_close(levels().mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(levels().std(), torch.tensor(1.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_a_path_is_the_best_of_all(bits: int) -> None:
    count = 6 // bits + 1
    targets = np.random.default_rng(bits).standard_normal(count).astype(np.float32)
    weights = np.linspace(0.5, 2, count, dtype=np.float32)
    codes, values = np.zeros(count, np.uint8), np.zeros(count, np.float32)
    search = path_search(bits, STATE_BITS, CHAIN_ROWS)
    search(targets, weights, codes, values, levels().numpy())
    every = torch.cartesian_prod(*[torch.arange(2**bits)] * count).T.to(torch.uint8)
    read = dequantize(every, torch.ones(count, 1, dtype=torch.float16), bits)
    costs = torch.from_numpy(weights)[:, None] * (torch.from_numpy(targets)[:, None] - read) ** 2
    best = int(costs.sum(0).argmin())
    assert every[:, best].tolist() == codes.tolist()
    torch.testing.assert_close(read[:, best], torch.from_numpy(values))


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_a_gpu_finds_the_codes_that_the_compiled_loop_finds(bits, monkeypatch):
    """Two whole chains and a part of one, in steps of tensors, on the CPU."""
    weight, gram = normal(2 * CHAIN_ROWS + 100, 6, bits), normal(40, 6, 9)
    gram = gram.T @ gram
    rows = torch.linspace(0.5, 2, len(weight))
    scale = find_scales(weight, 2, gram.diagonal())
    looped = encode(weight, scale, bits, rows=rows, feedback=Feedback.of(gram))
    steps = partial(search_paths, bits=bits)
    monkeypatch.setattr(module, "_compiled_search", lambda _bits, _pool: steps)
    assert torch.equal(encode(weight, scale, bits, rows=rows, feedback=Feedback.of(gram)), looped)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_a_code_reaches_no_further_than_its_chain_and_memory(bits: int) -> None:
    codes = torch.zeros(CHAIN_ROWS + 20, 1, dtype=torch.uint8)
    scale = torch.ones(len(codes), 1, dtype=torch.float16)
    base = dequantize(codes, scale, bits)
    for row in (3, CHAIN_ROWS - 1):
        changed = codes.clone()
        changed[row] = 2**bits - 1
        differs = (dequantize(changed, scale, bits) != base).flatten().nonzero().flatten().tolist()
        last = min(row + chain_memory(bits), CHAIN_ROWS - 1 if row < CHAIN_ROWS else len(codes))
        assert differs == list(range(row, last + 1))


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_the_compiled_loop_reads_what_tensors_read(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (CHAIN_ROWS + 30, 6), generator=generator, dtype=torch.uint8)
    scale = torch.rand(len(codes), 2, generator=generator).half()
    by_tensors = scaled_levels(states_of(codes_above(codes, bits), bits), scale)
    torch.testing.assert_close(dequantize(codes, scale, bits), by_tensors, rtol=0, atol=0)


def test_feedback_lowers_the_error_in_the_metric() -> None:
    weight = normal(64, 48)
    mix = normal(200, 48, seed=1) @ normal(48, 48, seed=2)
    gram = mix.T @ mix / 200
    with_feedback, without = encoded(weight, 2, gram=gram) - weight, encoded(weight, 2) - weight
    assert torch.trace(with_feedback @ gram @ with_feedback.T) < 0.6 * torch.trace(
        without @ gram @ without.T
    )


def test_rows_that_matter_are_coded_better() -> None:
    weight = normal(256, 8)
    rows = torch.ones(256)
    rows[::2] = 50
    scale = find_scales(weight, 1, torch.ones(8))
    codes = encode(weight, scale, 2, rows=rows)
    error = (dequantize(codes, scale, 2) - weight).square().mean(1)
    assert error[::2].mean() < 0.7 * error[1::2].mean()


def test_halves_the_error_of_a_grid_of_as_many_bits() -> None:
    weight = normal(512, 64)
    grid = find_grid(weight, bits=3, group_size=0, symmetric=True)
    nearest = grid.dequantize(grid.round(weight)) - weight
    assert (encoded(weight, 3) - weight).square().sum() < 0.6 * nearest.square().sum()


def test_threads_do_not_change_the_codes() -> None:
    weight = normal(3 * CHAIN_ROWS, 2)
    threads = torch.get_num_threads()
    alone = encoded(weight, 2)
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(encoded(weight, 2), alone, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


def test_codes_are_read_alike_whatever_the_default_type() -> None:
    weight = normal(32, 16)
    scale = find_scales(weight, 1, torch.ones(16))
    codes = encode(weight, scale, 2, rows=torch.ones(32))
    values = dequantize(codes, scale, 2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = dequantize(codes, scale, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, values)
