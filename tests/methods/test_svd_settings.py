"""Settings of the SVD that say how it is computed: random projections, a tolerance for a rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.methods.base import stored_tensors
from autocompress.methods.plan import Plan
from autocompress.methods.registry import method_from_dict
from autocompress.methods.svd import Svd
from autocompress.numerics.svd import Whitening
from autocompress.space.method_keys import MethodsKeys
from tests.methods.matrices import linear_metric, problem_of, spec_of

SPEC = spec_of(80, 64)
DRAWN = [
    Svd(8, solver="randomised"),
    Svd(8, solver="randomised", sketch="hadamard", oversampling=10, power_steps=2),
    Svd(8, "plain", 8, solver="randomised", sketch="hadamard"),
]


@pytest.mark.parametrize("method", DRAWN, ids=str)
def test_random_projections_come_near_the_exact_fit(method: Svd) -> None:
    problem = problem_of(SPEC, metric=linear_metric(80, 64))
    exact = Svd(8, method.metric, method.bits)
    least, found = (problem.loss_increase(m.build(problem).to_dense()) for m in (exact, method))
    assert found <= 1.02 * least
    again = problem_of(SPEC, metric=linear_metric(80, 64))
    Svd.prepare(again, [Svd(20, method.metric, method.bits, solver="randomised"), method])
    torch.testing.assert_close(
        method.build(again).to_dense(), method.build(problem).to_dense(), rtol=0, atol=0
    )


def test_each_setting_of_random_projections_counts() -> None:
    problem = problem_of(SPEC)
    settings: list[dict[str, Any]] = [
        {},
        {"sketch": "hadamard"},
        {"oversampling": 1},
        {"power_steps": 0},
    ]
    methods = [Svd(8), *(Svd(8, solver="randomised", **more) for more in settings)]
    dense = [method.build(problem).to_dense() for method in methods]
    assert len({str(method) for method in methods}) == 5
    assert len({tuple(matrix.flatten()[:20].tolist()) for matrix in dense}) == 5


@pytest.mark.parametrize("solver", ["exact", "randomised"])
@pytest.mark.parametrize("metric", ["plain", "two_sided"])
@pytest.mark.parametrize("tolerance", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("shape", [(80, 64), (64, 80)])
def test_a_tolerance_takes_the_smallest_rank_within_it(
    solver: Any, metric: Any, tolerance: float, shape: tuple[int, int]
) -> None:
    problem = problem_of(spec_of(*shape), metric=linear_metric(*shape))
    wanted = Svd(tolerance=tolerance, metric=metric, solver=solver)
    settled = wanted.settled(problem)
    whitening = Whitening.of(*settled._grams(problem))
    values = torch.linalg.svdvals(whitening.apply(problem.weight32))
    left = [float(values[rank:].norm() / values.norm()) for rank in range(len(values) + 1)]
    smallest = next(rank for rank, share in enumerate(left) if share <= tolerance)
    # Projections bring the spectrum near to exact, not quite to it.
    assert smallest <= settled.rank <= smallest + (0 if solver == "exact" else 1)
    layer = wanted.build(problem)
    change = whitening.apply(layer.to_dense() - problem.weight32).norm()
    assert float(change / values.norm()) <= 1.001 * tolerance
    assert layer.state_dict().keys() == settled.build(problem).state_dict().keys()


def test_a_zero_matrix_takes_rank_one() -> None:
    problem = problem_of(SPEC)
    problem.weight.zero_()
    assert Svd(tolerance=0.1).settled(problem) == Svd(1)


def test_plans_of_exact_fits_are_called_as_before() -> None:
    assert Svd(8, bits=8).to_dict() == {
        "method": "svd",
        "rank": 8,
        "metric": "two_sided",
        "bits": 8,
        "gram": "full",
    }
    assert Plan.of({"a": Svd(8)}).hash == "cd4c978b2bd6"


@pytest.mark.parametrize("method", [*DRAWN, Svd(tolerance=0.1), Svd(tolerance=0.1, bits=4)])
def test_settings_survive_a_recipe(method: Svd) -> None:
    again = method_from_dict(method.to_dict())
    assert again == method
    assert hash(again) == hash(method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "svd, rank: got 0, wanted a whole number of at least 1"),
        ({"rank": 4, "tolerance": 0.1}, "tolerance: got rank 4 beside it"),
        ({"tolerance": 1.5}, "tolerance: got 1.5, wanted a share"),
        ({"tolerance": 1}, "tolerance: got 1, wanted a share"),
        ({"rank": 4, "sketch": "hadamard"}, "sketch: .*wanted none without solver: randomised"),
        ({"rank": 4, "power_steps": 1}, "power_steps: .*without solver"),
        ({"rank": 4, "solver": "lanczos"}, "solver: got 'lanczos', wanted exact, randomised"),
        ({"rank": 4, "solver": "randomised", "sketch": "sparse"}, "gaussian, hadamard"),
        ({"rank": 4, "solver": "randomised", "oversampling": -1}, "oversampling: got -1"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Svd(**settings)


def test_bytes_of_a_tolerance_are_unknown() -> None:
    with pytest.raises(MethodError, match="bytes are unknown before it is fitted"):
        stored_tensors(Svd(tolerance=0.1), SPEC)


def test_a_space_says_how_its_fits_are_computed() -> None:
    keys = {"ranks": [8], "solver": "randomised", "sketch": "hadamard", "power_steps": 1}
    (family,) = MethodsKeys.model_validate({"svd": keys}).families()
    (method,) = family.candidates(SPEC)
    assert method == Svd(8, solver="randomised", sketch="hadamard", power_steps=1)
    with pytest.raises(ValueError, match="`solver: randomised` beside `sketch`"):
        MethodsKeys.model_validate({"svd": {"ranks": [8], "sketch": "hadamard"}})
