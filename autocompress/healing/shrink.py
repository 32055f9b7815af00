"""Truncates the ranks of healed matrices to what they still need, at a stated loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import ConfigurationError, RecipeError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.plan import Plan
from autocompress.numerics.metric import Metric
from autocompress.numerics.tensors.shapes import RANK_MULTIPLE
from autocompress.progress import SILENT, Progress
from autocompress.records import LayerSpec
from autocompress.surgery.placement import prefix_of
from autocompress.surgery.stored_weights import StoredWeights

DEFAULT_TOLERANCE = 0.003  # share of a matrix's squared norm


@dataclass(frozen=True)
class Cut:
    """What became of one factorised layer.

    Attributes:
        name: of the layer.
        before: as it was stored.
        after: as it is stored now; the same where nothing was cut.
        stated: share of its squared norm that the singular values at its bonds say is lost, at
            most. For a corrector, of the corrector's.
        measured: the share that was lost once its factors were fitted, rounded and laid out.
        loss_increase: predicted increase of the loss by that, in nats per token.
        reason: why nothing was cut, where nothing was.
    """

    name: str
    before: Method
    after: Method
    stated: float = 0.0
    measured: float = 0.0
    loss_increase: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Shrunk:
    """A plan of lower ranks.

    Attributes:
        plan: the new plan.
        weights: its stored tensors, under the names of a checkpoint.
        cuts: one for each factorised layer, in the order of the plan.
    """

    plan: Plan
    weights: dict[str, Tensor]
    cuts: tuple[Cut, ...]


def shrink(
    plan: Plan,
    weights: Mapping[str, Tensor],
    specs: Iterable[LayerSpec],
    metrics: Mapping[str, Metric],
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress = SILENT,
) -> Shrunk:
    """Cut the ranks of factorised layers to the lowest whose truncation loses little.

    At each bond the discarded share of the squared singular values is at most the tolerance, over
    the number of bonds, since these losses add up (Oseledets 2011, theorem 2.2). Singular values
    are those in the layer's metric, as its method fits in, so that a share is one of the predicted
    increase of the loss that leaving the matrix out would cause. Ranks from 8 on are rounded up to
    multiples of 8. A layer whose factors, fitted to the lower ranks and rounded anew, lose more
    than the tolerance stays as it is.

    Args:
        plan: what the weights are stored by.
        weights: all tensors of the factorised matrices, as ``Healed.weights`` has them.
        specs: the compressible matrices of the model.
        metrics: by layer name, those of the calibration; plain for layers that have none.
        tolerance: share of a matrix's squared norm.
        progress: told how many layers are done.

    Raises:
        ConfigurationError: the tolerance is no share.
        RecipeError: the weights lack a layer, or are of another plan.
    """
    if not 0 < tolerance < 1:
        raise ConfigurationError("tolerance", got=tolerance, wanted="a share between 0 and 1")
    stored, by_name = StoredWeights(weights), {spec.name: spec for spec in specs}
    methods, found, cuts = dict(plan), dict(weights), []
    names = [name for name, method in plan.items() if method.factorised]
    device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
    with progress.task("Cutting ranks (layers)", len(names)) as advance:
        for name in names:
            spec = by_name[name]
            matrix = stored.matrix(spec, plan[name], device)
            if matrix is None:
                raise RecipeError(f"the weights lack layer {spec}", wanted="those of a whole plan")
            cut, tensors = _cut(spec, plan[name], matrix, metrics.get(name), tolerance)
            cuts.append(cut)
            methods[name] = cut.after
            if tensors:
                prefix = prefix_of(spec)
                found = _without(found, prefix)
                found |= {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
            advance(1)
    return Shrunk(Plan.of(methods), found, tuple(cuts))


def _cut(
    spec: LayerSpec,
    before: Method,
    matrix: CompressedMatrix,
    metric: Metric | None,
    tolerance: float,
) -> tuple[Cut, dict[str, Tensor]]:
    """What becomes of a layer, and its new tensors if there are any."""
    metric = metric or Metric.identity(*spec.shape)
    problem = MatrixProblem(spec, matrix.factors.to_dense(), metric, matrix.bias)
    bonds = matrix.bonds(before.fit_metric(problem))
    tails = [] if bonds is None else bonds.lost()
    after = _with_ranks(before, [_rank_within(tail, tolerance / len(tails)) for tail in tails])
    if after == before:
        return Cut(spec.name, before, before, reason="no rank has fallen"), {}
    ranks = zip(tails, before.all_ranks, after.all_ranks, strict=True)
    stated = sum(float(tail[min(new, len(tail) - 1)]) for tail, old, new in ranks if new < old)
    cut_part = after.factors_anew(matrix.factors, problem)
    loss_increase = metric.loss_increase(cut_part.to_dense() - problem.weight32)
    measured = loss_increase / max(
        metric.loss_increase(problem.weight32), torch.finfo(torch.float32).tiny
    )
    if measured > tolerance:
        reason = f"{after} would lose {measured:.2%} once it is fitted and rounded"
        return Cut(spec.name, before, before, reason=reason), {}
    prefix = matrix.factors_prefix
    tensors = {prefix + key: tensor for key, tensor in cut_part.state_dict().items()}
    kept = {} if matrix.factors is matrix else _without(matrix.state_dict(), prefix)
    return Cut(spec.name, before, after, stated, measured, loss_increase), kept | tensors


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}


def _rank_within(lost: Tensor, tolerance: float) -> int:
    """The lowest rank that loses no more, rounded up to a multiple of 8 from 8 on."""
    rank = max(1, int((lost > tolerance).nonzero().max()) + 1) if bool(lost[0] > 0) else 1
    return rank if rank < RANK_MULTIPLE else -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def _with_ranks(method: Method, needed: Sequence[int]) -> Method:
    """The method with the ranks that are needed, where those are lower."""
    return method.with_ranks(tuple(map(min, needed, method.all_ranks)))
