"""From a matrix to the stored cores of a folded form: fitted in its metric, rounded, laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.layers.packed import table_shape
from autocompress.methods.base import MatrixProblem, torch_dtype
from autocompress.numerics.factor_rounding import FACTOR_GROUPS
from autocompress.numerics.kronecker import gram_roots, root_whitening
from autocompress.numerics.rounding import Grid, find_grid, largest_group, pack_grid
from autocompress.numerics.tensors.tensor_fit import FitTarget, TensorForm, pad_to, refine
from autocompress.numerics.tensors.tensor_train import even_norms

# Up to this many bits the cores not yet rounded are refitted after each that is: with 8 bits all
# cores rounded to nearest cost a thousandth of the loss increase, and nothing is left to make up
# for.
REFIT_BITS = 4
REFIT_EVALUATIONS = 6


@dataclass(frozen=True)
class Part:
    """How one core of a form is stored.

    Attributes:
        name: of the factor in the layer.
        order: permutation of the core's dimensions in which its elements are stored.
        shape: shape of what is stored.
    """

    name: str
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def table(self, core: Tensor, bits: int) -> Tensor:
        """The core's elements as the table ``[rows, columns]`` that is stored."""
        return core.permute(self.order).reshape(table_shape(self.shape, bits)[:2])

    def core(self, table: Tensor, like: Tensor) -> Tensor:
        """The core of a table, in the shape of ``like``."""
        stored = table.reshape([like.shape[dim] for dim in self.order])
        return stored.permute([self.order.index(dim) for dim in range(like.ndim)])


def store_fitted(
    problem: MatrixProblem, form: TensorForm, parts: Sequence[Part], bits: int
) -> dict[str, Tensor]:
    """Fit the cores of a form, round them if asked to, and lay them out as the layer stores them.

    Cores before rounding are computed once for all bits.
    """
    cores = fitted_cores(problem, form)
    if not bits:
        return store_given(cores, parts, bits, torch_dtype(problem.spec))
    target = whitened_target(problem, form.out_modes, form.in_modes)
    return _packed(parts, round_cores(form, cores, target, parts, bits))


def store_given(
    cores: Sequence[Tensor], parts: Sequence[Part], bits: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Lay cores out as the layer stores them: in ``dtype``, or rounded to nearest."""
    tables = [part.table(core, bits) for core, part in zip(cores, parts, strict=True)]
    if not bits:
        return {
            f"{part.name}.weight": table.to(dtype)
            for part, table in zip(parts, tables, strict=True)
        }
    grids = [_core_grid(table, bits) for table in tables]
    return _packed(
        parts, [(grid, grid.round(table)) for grid, table in zip(grids, tables, strict=True)]
    )


def _packed(parts: Sequence[Part], rounded: Sequence[tuple[Grid, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{part.name}.packed.{key}": tensor
        for part, (grid, codes) in zip(parts, rounded, strict=True)
        for key, tensor in pack_grid(grid, codes).items()
    }


def _core_grid(table: Tensor, bits: int) -> Grid:
    """The grid that a core's table ``[rows, columns]`` is rounded to."""
    group = largest_group(table.shape[1], FACTOR_GROUPS.get(bits) or table.shape[1])
    return find_grid(table, bits=bits, group_size=group, symmetric=True)


def fitted_cores(problem: MatrixProblem, form: TensorForm) -> list[Tensor]:
    """The cores of least loss increase found, in fp32; computed once per form."""

    def compute() -> list[Tensor]:
        target = whitened_target(problem, form.out_modes, form.in_modes)
        cores = refine(form, best_start(form, problem.weight32, target), target)
        return even_norms(unwhitened(form, cores, target))

    return problem.once(("cores", form), compute)


def best_start(form: TensorForm, weight: Tensor, target: FitTarget) -> list[Tensor]:
    """The better of two decompositions to start from, in the coordinates of the target.

    That of the whitened matrix is better wherever the metric is near a Kronecker product, and that
    of the matrix itself makes sure that no metric spoils a fit.
    """
    plain = form.decompose(pad_to(weight, form.out_modes, form.in_modes))
    return min(
        form.decompose(target.matrix),
        whitened(form, plain, target),
        key=lambda cores: target.loss_increase(form.multiply_out(cores)),
    )


def round_cores(
    form: TensorForm, cores: Sequence[Tensor], target: FitTarget, parts: Sequence[Part], bits: int
) -> list[tuple[Grid, Tensor]]:
    """Round cores one after the other, smallest first, and let the others make up for each.

    With many bits all are rounded as they are. Error feedback within a core, in the Gram matrix of
    its environment, was tried and gained nothing beyond that: in coordinates that whiten the metric
    the elements of a core hardly interact.

    Args:
        form: how cores make a matrix.
        cores: of the matrix itself, fp32.
        target: matrix and metric.
        parts: how each core is stored.
        bits: 8 or 4.

    Returns:
        Grid and codes of each core's table.
    """
    current, found = list(cores), dict[int, tuple[Grid, Tensor]]()
    for k in sorted(range(len(current)), key=lambda k: current[k].numel()):
        table = parts[k].table(current[k], bits)
        grid = _core_grid(table, bits)
        codes = grid.round(table)
        found[k] = grid, codes
        current[k] = parts[k].core(grid.dequantize(codes), like=current[k])
        if bits <= REFIT_BITS and len(found) < len(current):
            refined = refine(
                form,
                whitened(form, current, target),
                target,
                evaluations=REFIT_EVALUATIONS,
                fixed=found,
            )
            others = unwhitened(form, refined, target)
            current = [current[j] if j in found else others[j] for j in range(len(current))]
    return [found[k] for k in range(len(current))]


def whitened(form: TensorForm, cores: Sequence[Tensor], target: FitTarget) -> list[Tensor]:
    """Cores in the coordinates of a target, from those of the matrix itself."""
    return form.absorb(cores, target.whitening.rows, target.whitening.columns)


def unwhitened(form: TensorForm, cores: Sequence[Tensor], target: FitTarget) -> list[Tensor]:
    """Cores of the matrix itself, from cores in the coordinates of a target."""
    whitening = target.whitening
    return form.absorb(cores, whitening.rows_inverse, whitening.columns_inverse)


def whitened_target(
    problem: MatrixProblem, out_modes: tuple[int, ...], in_modes: tuple[int, ...]
) -> FitTarget:
    """The matrix and its metric in coordinates that suit some modes, once for all ranks."""

    def compute() -> FitTarget:
        roots = problem.once("gram roots", lambda: gram_roots(problem.metric))
        whitening = root_whitening(roots, out_modes, in_modes, problem.weight.device)
        return FitTarget(problem.weight32, problem.metric, whitening)

    return problem.once(("whitened", out_modes, in_modes), compute)
