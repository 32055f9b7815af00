"""Refits each matrix to what the compressed model really gives it, before any gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.calibration.blocks import block_paths
from autocompress.errors import ModelError
from autocompress.healing.inputs import MatrixInputs
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.numerics.metric import Curvature, Metric, apply_gram
from autocompress.progress import SILENT, Progress
from autocompress.records import Kind, LayerSpec, Role
from autocompress.surgery.dense_copies import dense_copies, drop_copies
from autocompress.surgery.experts import slot_of
from autocompress.surgery.permanent import compressed_copy
from autocompress.surgery.placement import prefix_of, set_module
from autocompress.surgery.workbench import Build, Workbench

DAMPING = 0.01  # share of the mean diagonal of the Gram matrix, as in GPTQ (arXiv 2210.17323)
# Of the correction. All of it fits the outputs on the calibration text better, and helps less on
# other text: on the bundled model at 20x it wins back less than half of what one half does.
STRENGTH = 0.5


def refit(
    workbench: Workbench,
    plan: Plan,
    build: Build,
    metrics: Mapping[str, Metric],
    batches: Iterable[Tensor],
    *,
    strength: float = STRENGTH,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> dict[str, Tensor]:
    """Fit matrices in the order of the model, each on inputs from those already refitted.

    Matrices that share an input share a pass of both models through their block. Of embeddings,
    heads and experts (whose tokens are not the same in both models) the fits stay as they are.

    Args:
        workbench: holds the dense model.
        plan: how its matrices are stored.
        build: makes the compressed matrix of a layer by a method; it is not changed.
        metrics: by layer name, for what errors of the outputs cost.
        batches: token ids ``[b, length]`` each, of the calibration text; each runs at once.
        strength: see ``Moments.target``.
        progress: told how many matrices are done, and how many are nearer than before.
        folder: on whose disk hidden states of the text are kept meanwhile.

    Raises:
        ModelError: a matrix is given numbers that are not finite.

    Returns:
        Stored tensors by their names in a checkpoint, of those matrices whose outputs came nearer
        to the dense model's.
    """
    dense: Any = workbench.model
    batches = [ids.to(dense.device) for ids in batches]
    student = compressed_copy(workbench, plan, build)
    groups = _in_order(workbench, plan, batches[0][:1])
    count = sum(map(len, groups))
    weights: dict[str, Tensor] = {}
    nearer = 0
    paths = block_paths(dense)
    firsts = [group[0].name for group in groups]
    with (
        closing(MatrixInputs(dense, paths, batches, folder, unchanging=firsts)) as wanted,
        closing(MatrixInputs(student, paths, batches, folder)) as given,
        dense_copies(student),  # from here on: else its check would unpack all blocks
        progress.task("Refitting (matrices)", count) as advance,
    ):
        if wanted.why_whole or given.why_whole:
            progress.note(
                "Refitting runs the model from its beginning for each matrix, not block by block: "
                f"{wanted.why_whole or given.why_whole}"
            )
        passed: str | None = None  # the block before, which is run no more
        for group in groups:
            moments = _moments(wanted, given, group[0].name)
            block = next((path for path in paths if group[0].name.startswith(f"{path}.")), None)
            if passed not in (None, block) and given.why_whole is None:
                drop_copies(student.get_submodule(passed))
            passed = block
            for spec in group:
                problem = workbench.problem(spec.name, moments.metric(metrics[spec.name]))
                target = moments.target(problem.weight32, strength)
                layer = plan[spec.name].build(
                    MatrixProblem(spec, target, problem.metric, problem.bias)
                )
                known = student.get_submodule(spec.name)
                assert isinstance(known, CompressedMatrix)
                if moments.error(problem, layer) < moments.error(problem, known):
                    layer = layer.to(problem.weight.device).train(student.training)
                    layer.cache_dense_(known.cached_dtype)
                    set_module(student, spec.name, layer)
                    weights |= {prefix_of(spec) + n: t for n, t in layer.state_dict().items()}
                    nearer += 1
                advance(1)
    progress.note(f"Refitting brought the outputs of {nearer} of {count} matrices nearer.")
    return weights


@dataclass(frozen=True)
class Moments:
    """Second moments of a matrix's inputs in the dense model, ``x``, and the compressed one, ``s``.

    Attributes:
        gram: ``E[s s^T]``, fp32 ``[in, in]``.
        gap: ``E[(x - s) s^T]``, fp32 ``[in, in]``.
        tokens: that both are means over.
    """

    gram: Tensor
    gap: Tensor
    tokens: int

    def metric(self, known: Metric) -> Metric:
        """The metric of a matrix in the compressed model: its own inputs, the known gradients."""
        return Metric((Curvature(known.rows, self.gram, self.tokens),))

    def target(self, weight: Tensor, strength: float) -> Tensor:
        """What makes of ``s`` the outputs that ``weight [out, in]`` makes of ``x``, nearly.

        ``W + strength W E[(x - s) s^T] (E[s s^T] + damping)^-1``: the least squares, damped towards
        ``W``. It is the correction of quantization error propagation (Arai and Ichikawa 2025, arXiv
        2504.09629), where the strength is their alpha; the same aim inside the rounding of codes is
        called asymmetric calibration (GPTAQ, Li et al. 2025, arXiv 2504.02692).

        Args:
            weight: ``[out, in]`` in fp32.
            strength: share of the correction to make, from 0 to 1.
        """
        damping = DAMPING * self.gram.diagonal().mean()
        damping = damping.clamp_min(torch.finfo(torch.float32).tiny)
        damped = self.gram + damping * torch.eye(len(self.gram), device=self.gram.device)
        correction = torch.cholesky_solve(self.gap.T, torch.linalg.cholesky(damped)).T
        return weight + strength * weight @ correction.to(weight)

    def error(self, problem: MatrixProblem, layer: CompressedMatrix) -> float:
        """Increase of the loss that is predicted from a layer's outputs on ``s``, up to a constant.

        ``1/2 E |W x - (W + D) s|^2`` in the Gram matrix of the output gradients, without the terms
        that do not depend on the change ``D``.
        """
        change = layer.to_dense() - problem.weight32
        wanted = problem.weight32 @ self.gap.to(change)
        rows = problem.metric.rows.to(change)
        return problem.metric.loss_increase(change) - float(
            (apply_gram(rows, wanted) * change).sum()
        )


def _in_order(workbench: Workbench, plan: Plan, ids: Tensor) -> list[list[LayerSpec]]:
    """Matrices to refit in the order of their use, those together that share an input."""
    model: Any = workbench.model
    specs = [workbench.inventory[name] for name, method in plan.items() if method != Keep()]
    calls: list[tuple[LayerSpec, Tensor]] = []

    def note(spec: LayerSpec) -> Any:
        return lambda _module, args: calls.append((spec, args[0]))

    handles = [
        model.get_submodule(spec.name).register_forward_pre_hook(note(spec))
        for spec in specs
        if spec.kind is not Kind.EMBEDDING
        and spec.role is not Role.HEAD
        and slot_of(model, spec.name) is None
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    names = [spec.name for spec, _ in calls]
    groups: list[list[LayerSpec]] = []
    last: Tensor | None = None
    for spec, inputs in calls:
        if names.count(spec.name) > 1:  # used at several places, with inputs of several kinds
            continue
        if inputs is not last:
            groups.append([])
        groups[-1].append(spec)
        last = inputs
    return groups


def _moments(wanted: MatrixInputs, given: MatrixInputs, name: str) -> Moments:
    """Second moments over all batches of what a matrix is given in both models."""
    gram: Tensor | None = None
    gap: Tensor | None = None
    tokens = 0
    for batch in range(len(given.batches)):
        x, s = wanted.of(name, batch), given.of(name, batch)
        gram = s.T @ s if gram is None else gram.addmm_(s.T, s)
        gap = (x - s).T @ s if gap is None else gap.addmm_((x - s).T, s)
        tokens += len(s)
    assert gram is not None
    assert gap is not None
    if not bool(torch.isfinite(gram).all() & torch.isfinite(gap).all()):
        raise ModelError(
            f"layer {name} is given NaN or infinity on the healing text",
            wanted="finite numbers",
            hint="Compute in a wider type with --compute-dtype float32, or leave matrices as they "
            "are fitted with --no-refit.",
        )
    return Moments(gram / tokens, gap / tokens, tokens)
