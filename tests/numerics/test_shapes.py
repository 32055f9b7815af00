from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.numerics.shapes import (
    balanced_modes,
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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 97, 256, 704, 4099, 50257])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_skewed_modes_fit_every_size(size: int, order: int) -> None:
    modes = skewed_modes(size, order)
    assert len(modes) == order
    assert fits(size, modes)
    if size >= 2 ** (order + 1):
        assert modes[:-1] == (2,) * (order - 1)
        assert math.prod(modes) - size < 2 ** (order - 1)
