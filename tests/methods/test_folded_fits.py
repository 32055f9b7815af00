"""Tensor trains, Tucker and CP: fitted in the metric, rounded core by core, whatever the shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.methods import core_fitting
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.cp import Cp
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.tucker import Tucker
from autocompress.numerics.metric import Curvature, Metric
from autocompress.records import Kind
from tests.methods.matrices import embedding_metric, gram, linear_metric, problem_of, spec_of

FORMS: list[tuple[type[Any], int]] = [(TensorTrain, 8), (Tucker, 5), (Cp, 40)]


def loss_increase(method: Method, problem: MatrixProblem) -> float:
    return problem.loss_increase(method.build(problem).to_dense())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_fitted_in_the_metric_the_loss_increase_is_a_fraction_of_the_plain_fit(
    form: Any, rank: int, order: int
) -> None:
    spec = spec_of(60, 36)
    method = form.uniform(spec.shape, order=order, rank=rank // (order - 1))
    problem = problem_of(spec, metric=linear_metric(60, 36))
    plain = problem.loss_increase(method.build(problem_of(spec)).to_dense())
    assert loss_increase(method, problem) < 0.5 * plain


@pytest.mark.parametrize("vocabulary", [101, 97])  # primes
@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_frequent_tokens_of_a_tied_embedding_are_fitted_better(
    form: Any, rank: int, vocabulary: int
) -> None:
    spec = spec_of(vocabulary, 36, kind=Kind.EMBEDDING)
    counts = torch.arange(1, vocabulary + 1).float().pow(-1.5)
    counts = counts[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))]
    columns = torch.eye(36)
    metric = Metric((Curvature(counts, columns), Curvature(0.1 * counts, columns)))
    method = form.uniform(spec.shape, order=2, rank=rank)
    problem = problem_of(spec, metric=metric)
    layer = method.build(problem)
    errors = (layer.to_dense() - problem.weight32).square().sum(1)
    plain = (method.build(problem_of(spec)).to_dense() - problem.weight32).square().sum(1)
    frequent = counts.argsort(descending=True)[:10]
    assert float(errors[frequent].sum()) < 0.5 * float(plain[frequent].sum())
    torch.testing.assert_close(layer.rows(frequent), layer.to_dense()[frequent])


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_later_cores_make_up_for_the_rounding_of_earlier_ones(
    form: Any, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(spec_of(64, 60), metric=linear_metric(64, 60))
    kept = form.uniform((64, 60), order=2, rank=2 * rank)
    rounded = form.uniform((64, 60), order=2, rank=2 * rank, bits=4)
    together = loss_increase(rounded, problem)
    monkeypatch.setattr(core_fitting, "REFIT_BITS", 0)
    nearest = loss_increase(rounded, problem)
    assert loss_increase(kept, problem) < nearest
    assert together < 0.9 * nearest


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_bits_share_one_fit(form: Any, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(spec_of(60, 36), metric=linear_metric(60, 36))
    form.uniform((60, 36), order=2, rank=rank).build(problem)
    monkeypatch.setattr(core_fitting, "best_start", lambda *_: pytest.fail("fitted again"))
    form.uniform((60, 36), order=2, rank=rank, bits=8).build(problem)


RANK_ONE = torch.outer(torch.arange(36.0), torch.arange(36.0))


@pytest.mark.parametrize("columns", [torch.zeros(36, 36), torch.zeros(36), RANK_ONE])
@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_singular_and_zero_metrics_are_fitted_in(
    form: Any, rank: int, columns: torch.Tensor
) -> None:
    problem = problem_of(spec_of(60, 36), metric=Metric((Curvature(gram(60, 1), columns),)))
    dense = form.uniform((60, 36), order=2, rank=rank, bits=4).build(problem).to_dense()
    assert torch.isfinite(dense).all()
    assert problem.loss_increase(dense) <= problem.loss_increase(torch.zeros(60, 36))


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_metrics_that_are_not_finite_are_refused(form: Any, rank: int) -> None:
    metric = embedding_metric(60, 36)
    metric.terms[1].columns[3, 4] = float("nan")
    problem = problem_of(spec_of(60, 36), metric=metric)
    with pytest.raises(MethodError, match=r"layer block\.matrix \[60 x 36\].*finite"):
        form.uniform((60, 36), order=2, rank=rank).build(problem)


def test_a_cp_rank_above_every_tensors_is_refused() -> None:
    with pytest.raises(MethodError, match="rank: got 257, wanted at most 256"):
        Cp(257, (8, 8), (4, 9)).check(spec_of(64, 36))
    with pytest.raises(MethodError, match=r"in_modes do not fit the side of 36: .*\[4, 9\]"):
        Cp(25, (8, 8), (4, 8)).check(spec_of(64, 36))
    assert Cp(36, (8, 8), (4, 9)).rank_share(spec_of(64, 36)) == pytest.approx(36 * 29 / 64 / 36)
