"""Contractions are those of einsum, in orders that suit the number of inputs."""

from __future__ import annotations

import pytest
import torch

from autocompress.layers import contraction
from autocompress.layers.contraction import contract, find_plan

TRAIN = "zab,cra,drb->zcd"


@pytest.mark.parametrize("work_elements", [2**22, 200, 1])
@pytest.mark.parametrize("equation", [TRAIN, "zab,cr,dr,ra,rb->zcd"])
def test_contractions_are_those_of_einsum(
    equation: str, work_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "WORK_ELEMENTS", work_elements)
    sizes = dict(zip("abcdr", (3, 4, 5, 6, 2), strict=True))
    terms = equation.partition("->")[0].split(",")[1:]
    cores = [torch.randn([sizes[letter] for letter in term]) for term in terms]
    for count in (0, 1, 7):
        x = torch.randn(count, 3, 4)
        torch.testing.assert_close(
            contract(equation, x, *cores), torch.einsum(equation, x, *cores), rtol=1e-4, atol=1e-4
        )


def test_few_inputs_go_through_the_cores_and_many_multiply_them_out() -> None:
    shapes = (32, 64), ((128, 256, 32), (64, 256, 64))
    few, many = (find_plan(TRAIN, *shapes, batch, 2**22) for batch in (1, 1024))
    assert 0 in few.path[0]  # the inputs are part of the first pair
    assert many.path[0] == (1, 2)
    assert many.outputs < 128  # the whole matrix is never there
    assert many.largest <= 2**22
