"""Penalties of a recipe: ``penalty: [{layers: "*.mlp.*", kind: renyi, alpha: 0.5, weight: 0.01}]``.

They say how a plan is healed, not how it is stored, so they stand beside the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from autocompress.methods.base import Method
from autocompress.methods.penalties import Penalty, PenaltyKind, first_match, unmatched_reason
from autocompress.space.document import Document
from autocompress.space.problems import Problem, nearest_name, shown
from autocompress.space.schema import Strict, one_of

KEY = "penalty"


class PenaltyKeys(Strict):
    """One entry of ``penalty``."""

    layers: Annotated[str, Field(min_length=1)] = Penalty.layers
    kind: Annotated[PenaltyKind, one_of(*get_args(PenaltyKind))] = Penalty.kind
    alpha: Annotated[float, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0)] = Penalty.weight


def read_penalties(entries: Sequence[PenaltyKeys], document: Document) -> tuple[Penalty, ...]:
    """Turn entries into penalties, and note in the document what is wrong with them by themselves.

    Args:
        entries: in the order of the file; the first that matches a layer counts there.
        document: the file.
    """
    penalties = []
    for index, entry in enumerate(entries):
        if entry.kind == "shannon" and entry.alpha is not None:
            at = (KEY, index, "alpha")
            document.problems.append(
                document.problem(at, entry.alpha, "no order for kind shannon; one for kind renyi")
            )
        else:
            penalties.append(Penalty(**entry.model_dump()))
    return tuple(penalties) if len(penalties) == len(entries) else ()


def penalty_problems(
    penalties: Sequence[Penalty], methods: Mapping[str, Method], document: Document
) -> list[Problem]:
    """List the penalties that are the first for no factorised layer.

    Args:
        penalties: of the file, in its order.
        methods: by the name of the layer.
        document: the file.
    """
    names = [name for name, method in methods.items() if method.factorised]
    firsts = {first_match(penalties, name) for name in names}
    return [
        document.problem(
            (KEY, index, "layers"),
            shown(penalty.layers),
            unmatched_reason(penalty, names),
            nearest_name(penalty.layers, names),
        )
        for index, penalty in enumerate(penalties)
        if index not in firsts
    ]


def penalties_that_count(
    penalties: Sequence[Penalty], methods: Mapping[str, Method]
) -> tuple[Penalty, ...]:
    """Those that are the first for a factorised layer."""
    names = [name for name, method in methods.items() if method.factorised]
    firsts = {first_match(penalties, name) for name in names}
    return tuple(penalty for index, penalty in enumerate(penalties) if index in firsts)


def penalty_entries(penalties: Sequence[Penalty]) -> list[dict[str, Any]]:
    """Plain mappings for a file, as ``read_penalties`` reads them."""
    entries = (PenaltyKeys(**vars(penalty)) for penalty in penalties)
    return [entry.model_dump(exclude_none=True) for entry in entries]
