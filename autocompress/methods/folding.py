"""What the methods that fold a matrix into modes have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.packed import table_shape
from autocompress.methods.base import MatrixProblem, Method, torch_dtype
from autocompress.numerics.factor_rounding import FACTOR_GROUPS
from autocompress.numerics.kronecker import gram_roots, root_whitening
from autocompress.numerics.rounding import find_grid, largest_group, pack_grid
from autocompress.numerics.shapes import fits, nearest_modes
from autocompress.numerics.tensor_fit import Form, Target, pad_to, refine
from autocompress.numerics.tensor_train import even_norms
from autocompress.records import LayerSpec


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


def check_modes(
    method: Method, spec: LayerSpec, out_modes: tuple[int, ...], in_modes: tuple[int, ...]
) -> None:
    """Check that modes cover both sides and pad less than one slice of the largest mode.

    Raises:
        MethodError: they do not; the message names the nearest that do.
    """
    for side, size, modes in zip(
        ("out_modes", "in_modes"), spec.shape, (out_modes, in_modes), strict=True
    ):
        if not fits(size, modes):
            near = nearest_modes(size, modes)
            raise MethodError(
                f"layer {spec}, {method}: {side} do not fit the side of {size}",
                got=f"{list(modes)} with product {math.prod(modes)}",
                wanted=f"for example {list(near)} with product {math.prod(near)}",
            )


def check_ranks(
    method: Method, spec: LayerSpec, ranks: tuple[int, ...], limits: tuple[int, ...]
) -> None:
    """Check that no rank exceeds what the modes allow.

    Raises:
        MethodError: one does; the message names the limits.
    """
    if any(rank > limit for rank, limit in zip(ranks, limits, strict=True)):
        raise MethodError(f"layer {spec}, {method}: ranks", got=ranks, wanted=f"at most {limits}")


def store_fitted(
    problem: MatrixProblem, form: Form, parts: Sequence[Part], bits: int
) -> dict[str, Tensor]:
    """Fit the cores of a form, round them if asked to, and lay them out as the layer stores them.

    Cores before rounding are computed once for all bits.
    """
    cores = fitted_cores(problem, form)
    stored: dict[str, Tensor] = {}
    for core, part in zip(cores, parts, strict=True):
        table = core.permute(part.order).reshape(table_shape(part.shape, bits)[:2])
        stored |= store_core(part.name, table, bits, torch_dtype(problem.spec))
    return stored


def fitted_cores(problem: MatrixProblem, form: Form) -> list[Tensor]:
    """The cores of least damage found, in fp32; computed once per form."""
    return problem.once(("cores", form), lambda: _fit(problem, form))


def _fit(problem: MatrixProblem, form: Form) -> list[Tensor]:
    target = whitened_target(problem, form.out_modes, form.in_modes)
    cores = refine(form, best_start(form, problem.weight32, target), target)
    return even_norms(unwhitened(form, cores, target))


def best_start(form: Form, weight: Tensor, target: Target) -> list[Tensor]:
    """The better of two decompositions to start from, in the coordinates of the target.

    That of the whitened matrix is better wherever the metric is near a Kronecker product, and that
    of the matrix itself makes sure that no metric spoils a fit.
    """
    whitening = target.whitening
    plain = form.decompose(pad_to(weight, form.out_modes, form.in_modes))
    return min(
        form.decompose(target.matrix),
        form.absorb(plain, whitening.rows, whitening.columns),
        key=lambda cores: target.damage(form.multiply_out(cores)),
    )


def unwhitened(form: Form, cores: Sequence[Tensor], target: Target) -> list[Tensor]:
    """Cores of the matrix itself, from cores in the coordinates of a target."""
    whitening = target.whitening
    return form.absorb(cores, whitening.rows_inverse, whitening.columns_inverse)


def whitened_target(
    problem: MatrixProblem, out_modes: tuple[int, ...], in_modes: tuple[int, ...]
) -> Target:
    """The matrix and its metric in coordinates that suit some modes, once for all ranks."""

    def compute() -> Target:
        roots = problem.once("gram roots", lambda: gram_roots(problem.metric))
        whitening = root_whitening(roots, out_modes, in_modes, problem.weight.device)
        return Target(problem.weight32, problem.metric, whitening)

    return problem.once(("whitened", out_modes, in_modes), compute)


def store_core(name: str, table: Tensor, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The stored tensors of one core, laid out as ``table [rows, columns]`` by ``table_shape``."""
    if not bits:
        return {f"{name}.weight": table.to(dtype)}
    group = largest_group(table.shape[1], FACTOR_GROUPS.get(bits) or table.shape[1])
    grid = find_grid(table, bits=bits, group_size=group, symmetric=True)
    return {
        f"{name}.packed.{key}": tensor for key, tensor in pack_grid(grid, grid.round(table)).items()
    }


def folded_label(name: str, out_modes: tuple[int, ...], ranks: tuple[int, ...], bits: int) -> str:
    """Short label: ``tt 16x16x16 r8 int8``; one rank stands for all where they are equal."""
    shown = ranks[:1] if len(set(ranks)) == 1 else ranks
    label = f"{name} {'x'.join(map(str, out_modes))} r{','.join(map(str, shown))}"
    return label + (f" int{bits}" if bits else "")
