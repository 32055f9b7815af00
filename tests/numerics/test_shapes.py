from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.tensors.shapes import (
    balanced_modes,
    feasible_train_ranks,
    feasible_tucker_ranks,
    fits,
    nearest_modes,
    skewed_modes,
    train_rank_limits,
    tucker_rank_limits,
)


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 60_000), order=st.integers(1, 4))
def test_balanced_modes_cover_the_side_without_waste(size: int, order: int) -> None:
    modes = balanced_modes(size, order)
    assert len(modes) == order
    assert fits(size, modes)
    assert list(modes) == sorted(modes)
    if size >= 2**order:
        assert modes[-1] <= 2.01 * size ** (1 / order) + 1


@pytest.mark.parametrize(
    ("size", "order", "modes"),
    [
        (4096, 3, (16, 16, 16)),
        (4096, 2, (64, 64)),
        (704, 3, (8, 8, 11)),
        (256, 2, (16, 16)),
        (768, 3, (8, 8, 12)),
    ],
)
def test_known_factorisations(size: int, order: int, modes: tuple[int, ...]) -> None:
    assert balanced_modes(size, order) == modes


def test_vocabularies_are_padded_by_little() -> None:
    for size in (50257, 32003, 49152, 128256, 151936, 250112):
        for order in (2, 3, 4):
            assert math.prod(balanced_modes(size, order)) <= size * 1.001


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 6000), wanted=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_corrected_modes_fit(size: int, wanted: list[int]) -> None:
    modes = nearest_modes(size, tuple(wanted))
    assert len(modes) == len(wanted)
    assert fits(size, modes)
    assert nearest_modes(size, modes) == modes


@pytest.mark.parametrize(
    ("size", "wanted", "modes"),
    [
        (4096, (16, 16, 16), (16, 16, 16)),
        (4096, (16, 16, 15), (16, 16, 16)),
        (4096, (16, 16, 32), (16, 16, 16)),
    ],
)
def test_corrected_modes_stay_near(
    size: int, wanted: tuple[int, ...], modes: tuple[int, ...]
) -> None:
    assert sorted(nearest_modes(size, wanted)) == sorted(modes)


@pytest.mark.parametrize(
    ("size", "modes", "covers"),
    [
        (12, (3, 4), True),
        (11, (3, 4), True),
        (8, (3, 4), False),
        (13, (3, 4), False),
        (1, (1,), True),
    ],
)
def test_fits(size: int, modes: tuple[int, ...], covers: bool) -> None:
    assert fits(size, modes) is covers


def test_rank_limits() -> None:
    assert train_rank_limits((4, 6, 5)) == (4, 5)
    assert tucker_rank_limits((2, 3, 50)) == (2, 3, 6)


def singular_ranks(ranks: tuple[int, ...], modes: tuple[int, ...]) -> tuple[int, ...]:
    """Ranks of the unfoldings of a train with random cores: what it can hold at these ranks."""
    shapes = zip((1, *ranks), modes, (*ranks, 1), strict=True)
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensor = reduce(lambda a, b: torch.tensordot(a, b, dims=1), cores).reshape(modes)
    return tuple(
        int(torch.linalg.matrix_rank(tensor.reshape(math.prod(modes[:k]), -1)))
        for k in range(1, len(modes))
    )


@settings(max_examples=40, deadline=None)
@given(
    modes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    ranks=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_feasible_train_ranks_are_those_that_random_cores_have(
    modes: list[int], ranks: tuple[int, ...]
) -> None:
    wanted = ranks[: len(modes) - 1]
    assert feasible_train_ranks(wanted, tuple(modes)) == singular_ranks(wanted, tuple(modes))


@settings(max_examples=40, deadline=None)
@given(
    modes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    ranks=st.tuples(*[st.integers(1, 6)] * 4),
)
def test_feasible_tucker_ranks_are_those_that_random_cores_have(
    modes: list[int], ranks: tuple[int, ...]
) -> None:
    wanted = ranks[: len(modes)]
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(wanted, generator=generator, dtype=torch.float64)
    for k, (rank, mode) in enumerate(zip(wanted, modes, strict=True)):
        factor = torch.randn(mode, rank, generator=generator, dtype=torch.float64)
        tensor = torch.tensordot(tensor, factor, dims=([k], [1])).movedim(-1, k)
    held = tuple(
        int(torch.linalg.matrix_rank(tensor.movedim(k, 0).flatten(1))) for k in range(len(modes))
    )
    assert feasible_tucker_ranks(wanted, tuple(modes)) == held


@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 97, 256, 704, 4099, 50257])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_skewed_modes_fit_every_size(size: int, order: int) -> None:
    modes = skewed_modes(size, order)
    assert len(modes) == order
    assert fits(size, modes)
    if size >= 2 ** (order + 1):
        assert modes[:-1] == (2,) * (order - 1)
        assert math.prod(modes) - size < 2 ** (order - 1)
