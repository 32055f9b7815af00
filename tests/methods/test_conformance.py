"""Every registered method keeps these promises for every kind of matrix, and has an example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead
from autocompress.methods.base import MatrixProblem, Method, stored_tensors
from autocompress.methods.keep import Keep
from autocompress.methods.registry import METHODS, method_from_dict
from autocompress.numerics.metric import Metric
from autocompress.records import Kind, LayerSpec
from tests.methods.examples import EXAMPLES
from tests.methods.matrices import embedding_metric, linear_metric, problem_of, spec_of

SHAPES = {Kind.LINEAR: (40, 48), Kind.CONV1D: (50, 24), Kind.EMBEDDING: (97, 48)}
DTYPES = {"float32": 1e-5, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Case:
    method: Method
    spec: LayerSpec

    def __str__(self) -> str:
        bias = "bias" if self.spec.bias else "none"
        return f"{self.method}-{self.spec.kind}-{self.spec.dtype}-{bias}".replace(" ", "_")


KINDS = [
    (kind, dtype, bias)
    for kind in SHAPES
    for dtype in DTYPES
    for bias in (False, True)
    if not (kind is Kind.EMBEDDING and bias)
]
TENSORS = ("tensor_train", "tucker", "cp")
MOST_SHARING = 3  # examples of a method that share the kinds of matrices


def cases() -> list[Case]:
    """Each method for each kind of matrix; several examples of a method take them in turn."""
    return [
        Case(
            choose(SHAPES[kind]),
            spec_of(*SHAPES[kind], kind=kind, dtype=dtype, bias=bias),
        )
        for name in METHODS
        for number, choose in enumerate(EXAMPLES.get(name, []))
        for turn, (kind, dtype, bias) in enumerate(KINDS, number)
        if turn % min(len(EXAMPLES[name]), MOST_SHARING) == 0
    ]


def test_every_method_meets_every_kind_of_matrix() -> None:
    met = {(c.method.name, c.spec.kind, c.spec.dtype, c.spec.bias) for c in cases()}
    assert met == {(name, *kind) for name in METHODS for kind in KINDS}


def metric_for(spec: LayerSpec) -> Metric:
    return (
        embedding_metric(*spec.shape) if spec.kind is Kind.EMBEDDING else linear_metric(*spec.shape)
    )


_BUILT: dict[Case, tuple[MatrixProblem, CompressedMatrix]] = {}


@pytest.fixture(params=cases(), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def built(case: Case) -> tuple[MatrixProblem, CompressedMatrix]:
    if case not in _BUILT:
        problem = problem_of(case.spec, metric=metric_for(case.spec))
        _BUILT[case] = problem, case.method.build(problem)
    return _BUILT[case]


def assert_same_map(
    layer: CompressedMatrix, x: Tensor, bias: Tensor | None, tolerance: float
) -> None:
    """The layer equals its dense form's linear map, up to ``tolerance`` of the largest output."""
    y = layer(x)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], layer.out_features)
    wanted = x.float() @ layer.to_dense().T
    if bias is not None:
        wanted = wanted + bias.float()
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=tolerance * largest)


def inputs(spec: LayerSpec, *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(leading))
    return torch.randn(*leading, spec.in_features, generator=generator).to(
        getattr(torch, spec.dtype)
    )


def test_every_method_has_an_example() -> None:
    assert set(EXAMPLES) == set(METHODS)
    assert all(EXAMPLES.values())


def test_a_layer_filled_at_random_computes_without_a_fit(case: Case) -> None:
    layer = case.method.skeleton(case.spec).randomise_().requires_grad_(False)
    sizes = {name: t.numel() * t.element_size() for name, t in layer.state_dict().items()}
    assert sizes == dict(stored_tensors(case.method, case.spec))
    assert layer.to_dense().any()
    assert_same_map(layer, inputs(case.spec, 1, 1), layer.bias, 2 * DTYPES[case.spec.dtype])


def test_layer_is_the_map_of_its_dense_form(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    problem, layer = built
    for leading in ((), (3,), (2, 3), (2, 1, 3), (0,)):
        assert_same_map(layer, inputs(case.spec, *leading), problem.bias, DTYPES[case.spec.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_another_type_are_taken(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix], dtype: torch.dtype
) -> None:
    problem, layer = built
    assert_same_map(
        layer,
        inputs(case.spec, 4).to(dtype),
        problem.bias,
        1e-5 if dtype == torch.float32 else 2e-2,
    )


def test_checker_of_the_map_can_fail() -> None:
    spec = spec_of(8, 8, bias=True)
    problem = problem_of(spec)
    layer = Keep().build(problem)
    assert_same_map(layer, inputs(spec, 3), problem.bias, 1e-5)
    with pytest.raises(AssertionError):
        assert_same_map(layer, inputs(spec, 3), None, 1e-5)
    layer.forward = lambda x: x @ problem.weight.T * 1.01 + problem.bias  # type: ignore[method-assign,operator]
    with pytest.raises(AssertionError):
        assert_same_map(layer, inputs(spec, 3), problem.bias, 1e-5)


def test_rows_are_those_of_the_dense_form(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    _, layer = built
    dtype = getattr(torch, case.spec.dtype)
    dense = layer.to_dense()
    assert dense.dtype == torch.float32
    tolerance = DTYPES[case.spec.dtype] * float(dense.abs().max())
    last = case.spec.out_features - 1
    for ids in (
        torch.tensor(last),
        torch.tensor([0, 3, 3]),
        torch.tensor([[0, 1, last], [last, 5, 0]]),
    ):
        rows = layer.rows(ids)
        assert rows.shape == (*ids.shape, case.spec.in_features)
        assert rows.dtype == dtype
        torch.testing.assert_close(rows.float(), dense[ids], rtol=0, atol=tolerance)


def test_predicted_bytes_are_the_stored_bytes(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    _, layer = built
    state = layer.state_dict()
    assert sum(
        tensor.numel() * tensor.element_size() for tensor in state.values()
    ) == case.method.cost(case.spec)
    with torch.device("meta"):
        skeleton = case.method.skeleton(case.spec).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        name: (t.shape, t.dtype) for name, t in skeleton.items()
    }
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_floating_point_is_in_parameters_and_codes_in_buffers(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    _, layer = built
    assert all(parameter.is_floating_point() for parameter in layer.parameters())
    assert all(buffer.dtype == torch.uint8 for buffer in layer.buffers())


def test_saving_and_loading_is_exact(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix], tmp_path: Path
) -> None:
    _, layer = built
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    fresh = method_from_dict(case.method.to_dict()).skeleton(case.spec)
    fresh.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(fresh.to_dense(), layer.to_dense())
    x = inputs(case.spec, 2)
    assert torch.equal(fresh(x), layer(x))


def test_settings_survive_a_recipe(case: Case) -> None:
    again = method_from_dict(case.method.to_dict())
    assert again == case.method
    assert hash(again) == hash(case.method)
    assert str(again) == str(case.method)


def test_fitting_twice_gives_the_same(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    _, layer = built
    again = case.method.build(problem_of(case.spec, metric=metric_for(case.spec)))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_casting_the_model_leaves_codes_and_scales(case: Case) -> None:
    layer = case.method.build(problem_of(case.spec, metric=metric_for(case.spec)))
    packed = {
        n: t.clone()
        for n, t in layer.state_dict().items()
        if n.split(".")[-1] in ("codes", "scales", "zeros")
    }
    layer.to(torch.bfloat16)
    for name, tensor in packed.items():
        assert torch.equal(layer.state_dict()[name], tensor)
    assert layer(inputs(case.spec, 2).bfloat16()).dtype == torch.bfloat16


def test_fits_without_a_metric(case: Case) -> None:
    assert torch.isfinite(case.method.build(problem_of(case.spec)).to_dense()).all()


@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_constant_matrices_are_stored(case: Case, constant: float) -> None:
    problem = problem_of(case.spec, metric=metric_for(case.spec))
    problem.weight.fill_(constant)
    dense = case.method.build(problem).to_dense()
    coarse = getattr(case.method, "bits", 0) == 4 and case.method.name in TENSORS
    # 4-bit noise in vectors that are not needed adds up over the cores; of a trellis the levels
    # within reach change from element to element; what is kept of a row makes up for the rest.
    free = case.method.name in ("trellis", "sparse")
    share = 8.0 if free else 0.5 if coarse else 0.05
    torch.testing.assert_close(
        dense, torch.full_like(dense, constant), rtol=0, atol=share * constant
    )


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.spec.kind is Kind.EMBEDDING], ids=str
)
def test_embedding_and_tied_head_share_one_matrix(
    case: Case, built: tuple[MatrixProblem, CompressedMatrix]
) -> None:
    _, layer = built
    dtype = getattr(torch, case.spec.dtype)
    embedding = CompressedEmbedding(layer, dtype=dtype)
    head = TiedHead(layer)
    assert (embedding.num_embeddings, embedding.embedding_dim) == case.spec.shape
    ids = torch.tensor([[1, 2, 96]])
    vectors = embedding(ids)
    assert vectors.dtype == dtype
    assert head(vectors).shape == (1, 3, 97)
    assert not head.state_dict()
