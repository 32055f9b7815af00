"""Penalties of a recipe: ``penalty: [{layers: "*.mlp.*", kind: renyi, alpha: 0.5, weight: 0.01}]``.

They say how a plan is healed, not how it is stored, so they stand beside the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from autocompress.config.document import Document
from autocompress.config.problems import nearest_name, shown
from autocompress.config.schema import Strict, one_of
from autocompress.healing.penalties import Penalty, PenaltyKind, first_match, unmatched_reason
from autocompress.methods.base import Method

KEY = "penalty"


class PenaltyKeys(Strict):
    """One entry of ``penalty``."""

    layers: Annotated[str, Field(min_length=1)] = Penalty.layers
    kind: Annotated[PenaltyKind, one_of(*get_args(PenaltyKind))] = Penalty.kind
    alpha: Annotated[float, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0)] = Penalty.weight


def read_penalties(
    entries: Sequence[PenaltyKeys], methods: Mapping[str, Method], document: Document
) -> tuple[Penalty, ...]:
    """Turn entries into penalties, and note in the document what is wrong with them.

    Args:
        entries: in the order of the file; the first that matches a layer counts there.
        methods: of the recipe's layers. An entry has to count for a factorised one.
        document: the file.
    """
    penalties, names = [], [name for name, method in methods.items() if method.factorised]
    for index, entry in enumerate(entries):
        if entry.kind == "shannon" and entry.alpha is not None:
            at = (KEY, index, "alpha")
            document.problems.append(
                document.problem(at, entry.alpha, "no order for kind shannon; one for kind renyi")
            )
        else:
            penalties.append(Penalty(**entry.model_dump()))
    if len(penalties) < len(entries):
        return ()
    firsts = {first_match(penalties, name) for name in names}
    for index, penalty in enumerate(penalties):
        if index not in firsts:
            allowed = unmatched_reason(penalty, names)
            near = nearest_name(penalty.layers, names)
            at = (KEY, index, "layers")
            document.problems.append(document.problem(at, shown(penalty.layers), allowed, near))
    return tuple(penalties)


def penalty_entries(penalties: Sequence[Penalty]) -> list[dict[str, Any]]:
    """Plain mappings for a file, as ``read_penalties`` reads them."""
    entries = (PenaltyKeys(**vars(penalty)) for penalty in penalties)
    return [entry.model_dump(exclude_none=True) for entry in entries]
