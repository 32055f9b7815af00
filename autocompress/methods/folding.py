"""What the methods that fold a matrix into modes have in common."""

from __future__ import annotations

import math

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.numerics.shapes import fits, nearest_modes
from autocompress.records import LayerSpec


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


def fitting_modes(
    spec: LayerSpec, out_modes: tuple[int, ...], in_modes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The nearest modes that cover both sides of a matrix: the given ones, where they do."""
    return nearest_modes(spec.out_features, out_modes), nearest_modes(spec.in_features, in_modes)


def check_ranks(
    method: Method,
    spec: LayerSpec,
    ranks: tuple[int, ...],
    limits: tuple[int, ...],
    feasible: tuple[int, ...] | None = None,
) -> None:
    """Check that no rank exceeds what the modes and the other ranks allow.

    Args:
        method: for the message.
        spec: the matrix.
        ranks: one per joint or mode.
        limits: what the modes alone allow.
        feasible: the ranks as they are lowered to what all the others allow.

    Raises:
        MethodError: one does; the message names what is allowed.
    """
    what, got = "rank" if len(ranks) == 1 else "ranks", ", ".join(map(str, ranks))
    if any(rank > limit for rank, limit in zip(ranks, limits, strict=True)):
        wanted = f"at most {', '.join(map(str, limits))}"
    elif feasible is not None and feasible != ranks:
        wanted = f"{', '.join(map(str, feasible))}, as much as each has beside the others"
    else:
        return
    raise MethodError(f"layer {spec}, {method}: {what}", got=got, wanted=wanted)


def folded_label(name: str, out_modes: tuple[int, ...], ranks: tuple[int, ...], bits: int) -> str:
    """Short label: ``tt 16x16x16 r8 int8``; one rank stands for all where they are equal."""
    shown = ranks[:1] if len(set(ranks)) == 1 else ranks
    label = f"{name} {'x'.join(map(str, out_modes))} r{','.join(map(str, shown))}"
    return label + (f" int{bits}" if bits else "")
