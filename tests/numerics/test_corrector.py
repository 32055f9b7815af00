"""Codes and a low-rank corrector, fitted to each other."""

from __future__ import annotations

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.layers.corrected import CorrectedMatrix
from autocompress.methods.quantize import Quantize
from autocompress.methods.quantize_plus_low_rank import QuantizePlusLowRank
from autocompress.numerics.corrector import fit_codes_and_factors, product
from autocompress.numerics.metric import Curvature, Metric
from autocompress.numerics.rounding import Grid, find_grid
from tests.methods.matrices import gram, linear_metric, problem_of, spec_of


@pytest.mark.parametrize("bits", [2, 3])
def test_correctors_lower_the_loss_increase_the_more_the_higher_their_rank(bits: int) -> None:
    spec, metric = spec_of(64, 48), linear_metric(64, 48)
    problem = problem_of(spec, metric=metric)
    methods = [Quantize(bits, 0), *(QuantizePlusLowRank(bits, 0, rank) for rank in (4, 8, 16))]
    loss_increases = [problem.loss_increase(method.build(problem).to_dense()) for method in methods]
    assert loss_increases == sorted(loss_increases, reverse=True)
    assert loss_increases[-1] < 0.5 * loss_increases[0]


def test_each_step_is_given_what_the_other_leaves() -> None:
    """With a scalar for codes and one for factors the alternation is arithmetic."""
    seen: list[float] = []

    def whole(x: torch.Tensor) -> tuple[Grid, torch.Tensor]:
        seen.append(float(x))
        grid = find_grid(torch.full((1, 1), 255.0), bits=8, group_size=0, symmetric=False)
        return grid, grid.round(x)

    def factors(x: torch.Tensor) -> tuple[tuple[Grid, torch.Tensor], tuple[Grid, torch.Tensor]]:
        one = Grid(torch.ones(1, 1).half(), torch.zeros(1, 1, dtype=torch.uint8), 8)
        return (one, one.round(x)), (one, one.round(torch.ones(1, 1)))

    weight = torch.full((1, 1), 7.0)
    (grid, codes), found = fit_codes_and_factors(weight, whole, factors, alternations=2)
    assert seen == [0.0, 0.0]
    assert float(product(*found)) == 7.0
    assert float(grid.dequantize(codes)) == 0.0


def test_matrix_is_the_sum_and_is_not_built_to_multiply() -> None:
    spec = spec_of(40, 48)
    layer = QuantizePlusLowRank(3, 8, 4).build(problem_of(spec, metric=linear_metric(40, 48)))
    assert isinstance(layer, CorrectedMatrix)
    parts = layer.codes.to_dense() + layer.corrector.to_dense()
    torch.testing.assert_close(layer.to_dense(), parts)
    layer.corrector.to_dense = None  # type: ignore[method-assign,assignment]
    assert layer(torch.ones(2, 48)).shape == (2, 40)


def test_bytes_are_those_of_both_parts() -> None:
    spec = spec_of(64, 128)
    factors = 4 * (64 + 128) + 2 * 2 * 4  # int8, an fp16 scale per rank vector
    assert QuantizePlusLowRank(2, 32, 4).cost(spec) == Quantize(2, 32).cost(spec) + factors


def test_what_does_not_fit_is_refused() -> None:
    spec = spec_of(40, 48)
    with pytest.raises(MethodError, match="at most 40"):
        QuantizePlusLowRank(2, 8, 41).check(spec)
    with pytest.raises(MethodError, match="does not divide"):
        QuantizePlusLowRank(2, 7, 4).check(spec)
    with pytest.raises(MethodError, match="one of 8, 4"):
        QuantizePlusLowRank(2, 8, 4, factor_bits=2)
    columns = torch.eye(48)
    columns[0, 1] = columns[1, 0] = 2.0
    indefinite = Metric((Curvature(gram(40, 1), columns),))
    with pytest.raises(MethodError, match=r"layer block.matrix.*negative eigenvalues"):
        QuantizePlusLowRank(2, 8, 4).build(problem_of(spec, metric=indefinite))
