"""What is stored of a sparse matrix, what is refused, and that fits share their work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autocompress.errors import MethodError
from autocompress.layers.packed import PackedTable
from autocompress.layers.sparse import ROWS_AT_ONCE, pack_positions
from autocompress.methods import sparse
from autocompress.methods.registry import method_from_dict
from autocompress.methods.sparse import Sparse
from autocompress.numerics.metric import Curvature, Metric
from tests.methods.matrices import gram, linear_metric, matrix, problem_of, spec_of

SPEC = spec_of(40, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "4:8"}, "wanted 2:4, unstructured"),
        ({"pattern": "2:4", "density": 0.4}, "2:4 keeps a half"),
        ({"pattern": "unstructured", "density": 1.0}, "between 0 and 1"),
        ({"pattern": "unstructured", "density": 1}, "between 0 and 1"),
        ({"pattern": "unstructured", "density": 0.0}, "between 0 and 1"),
        ({"pattern": "unstructured", "density": float("nan")}, "between 0 and 1"),
        ({"pattern": "2:4", "bits": 3}, "one of 0, 8, 4"),
        ({"density": 0.5}, "pattern"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_from_dict({"method": "sparse", **settings})


@pytest.mark.parametrize(
    ("method", "width", "message"),
    [
        (Sparse("2:4"), 50, "columns: got 50, wanted a multiple of 4"),
        (Sparse("unstructured", 0.01), 50, "none of 50"),
    ],
)
def test_matrices_that_do_not_fit_are_named(method: Sparse, width: int, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method.build(problem_of(spec_of(8, width)))
    with pytest.raises(MethodError, match=r"layer block\.matrix"):
        method.cost(spec_of(8, width))


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (Sparse("2:4"), 40 * (24 * 2 + 48 // 2 * 2 // 8)),
        (Sparse("2:4", bits=8), 40 * (24 + 2 + 6)),
        (Sparse("2:4", bits=4), 40 * (12 + 2 + 6)),
        (Sparse("unstructured", 0.4), 40 * (16 * 2 + 48 // 8)),
        (Sparse("unstructured", 0.1, 8), 40 * (4 + 2 + 6)),
    ],
)
def test_bytes_in_closed_form(method: Sparse, size: int) -> None:
    assert method.cost(spec_of(40, 48, dtype="bfloat16")) == size


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_a_matrix_that_is_sparse_already_is_kept_up_to_rounding(pattern: Any, bits: int) -> None:
    problem = problem_of(SPEC)
    keep = torch.tensor([1, 0, 0, 1]).bool().repeat(12)
    problem.weight[:, ~keep] = 0
    dense = Sparse(pattern, bits=bits).build(problem).to_dense()
    assert not dense[:, ~keep].any()
    largest = problem.weight.abs().amax(1, keepdim=True)
    step = 0.0 if bits == 0 else 2.0 / 2**bits
    assert ((dense - problem.weight).abs() <= step * largest + 1e-6).all()


def test_fitting_in_the_metric_beats_fitting_without() -> None:
    metric = linear_metric(40, 48)
    blind = problem_of(SPEC)
    for method in (Sparse("2:4"), Sparse("unstructured", 0.4), Sparse("2:4", bits=4)):
        seeing = problem_of(SPEC, metric=metric)
        with_metric, without = (
            seeing.loss_increase(method.build(problem).to_dense()) for problem in (seeing, blind)
        )
        assert with_metric < 0.5 * without


def test_one_choice_of_what_is_kept_serves_all_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(SPEC, metric=linear_metric(40, 48))
    layers = [Sparse("2:4").build(problem)]
    monkeypatch.setattr(sparse, "prune", lambda *_: pytest.fail("chosen again"))
    layers += [Sparse("2:4", bits=bits).build(problem) for bits in (8, 4)]
    assert all(torch.equal(layer.positions, layers[0].positions) for layer in layers)


def test_error_feedback_rounds_better_than_to_the_nearest() -> None:
    metric = Metric((Curvature(torch.ones(40), gram(48, 1, decay=0.3)),))
    method, problem = Sparse("unstructured", 0.5, 4), problem_of(SPEC, metric=metric)
    fed_back = problem.loss_increase(method.build(problem).to_dense())
    nearest = problem_of(SPEC, metric=metric)
    nearest.once(("feedback", "full"), lambda: None)
    unrounded = problem.loss_increase(Sparse("unstructured").build(problem).to_dense())
    assert unrounded < fed_back < nearest.loss_increase(method.build(nearest).to_dense())


@pytest.mark.parametrize("method", [Sparse("2:4", bits=4), Sparse("unstructured", 0.3, 8)])
def test_products_take_a_few_rows_at_a_time(
    method: Sparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = method.build(problem_of(spec_of(2 * ROWS_AT_ONCE + 5, 16)))
    x = torch.randn(3, 16)
    wanted = x @ layer.to_dense().T
    monkeypatch.setattr(PackedTable, "read", lambda *_: pytest.fail("unpacked everything"))
    torch.testing.assert_close(layer(x), wanted)


def test_positions_of_a_mask() -> None:
    mask = torch.tensor([[1, 0, 0, 1, 0, 1, 1, 0]]).bool()
    places = pack_positions(mask, None)  # of 4 codes, each in a segment of its own
    assert places.tolist() == [[0 + (3 << 2) + (1 << 4) + (2 << 6)]]
    assert pack_positions(mask, 4).tolist() == [[0b01101001]]


@pytest.mark.parametrize(
    ("method", "label", "form"),
    [
        (Sparse("2:4"), "sparse 2:4", "2:4 sparse"),
        (Sparse("unstructured", 0.25, 4), "sparse 0.25 4 bit", "4 bit sparse"),
    ],
)
def test_labels_and_forms(method: Sparse, label: str, form: str) -> None:
    assert (str(method), method.form) == (label, form)


def test_elements_kept_are_a_multiple_of_eight_where_there_are_so_many() -> None:
    counts = [Sparse("unstructured", share).kept(spec_of(8, 100)) for share in (0.5, 0.29, 0.07)]
    assert counts == [48, 24, 7]
    assert Sparse("2:4").kept(spec_of(8, 100)) == 50


def test_the_matrix_itself_is_left_alone() -> None:
    problem = problem_of(SPEC, metric=linear_metric(40, 48))
    Sparse("2:4", bits=4).build(problem)
    assert torch.equal(problem.weight, matrix(40, 48))
