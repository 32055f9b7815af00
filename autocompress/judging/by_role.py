"""Where the bytes of a plan are: by what the matrices do in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec

MOST_FORMS = 3  # of a role that are named


class StoredMatrix(NamedTuple):
    """What one matrix took and takes, and the form that it is stored in."""

    role: str
    form: str
    dense_bytes: int
    bytes: int
    dense_parameters: int
    parameters: int


@dataclass(frozen=True)
class RoleBytes:
    """What all matrices of a role took and take.

    Attributes:
        role: what they do.
        matrices: how many there are.
        dense_bytes: what they took.
        bytes: what they take.
        dense_parameters: their weights.
        parameters: weights that are stored; codes count for what they stand for.
        stored_as: their most frequent forms, in words.
    """

    role: str
    matrices: int
    dense_bytes: int
    bytes: int
    dense_parameters: int
    parameters: int
    stored_as: str

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return vars(self) | {"ratio": self.dense_bytes / self.bytes}


def by_role(matrices: Iterable[StoredMatrix]) -> tuple[RoleBytes, ...]:
    """Add up the matrices of each role, the largest when dense first."""
    groups: dict[str, list[StoredMatrix]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.role, []).append(matrix)
    roles = (
        RoleBytes(
            role,
            len(group),
            sum(matrix.dense_bytes for matrix in group),
            sum(matrix.bytes for matrix in group),
            sum(matrix.dense_parameters for matrix in group),
            sum(matrix.parameters for matrix in group),
            _counted(Counter(matrix.form for matrix in group)),
        )
        for role, group in groups.items()
    )
    return tuple(sorted(roles, key=lambda role: -role.dense_bytes))


def plan_by_role(specs: Sequence[LayerSpec], plan: Plan) -> tuple[RoleBytes, ...]:
    """Add up what a plan makes of the matrices of each role."""
    stored = ((spec, plan.get(spec.name, Keep())) for spec in specs)
    return by_role(
        StoredMatrix(
            spec.role.value,
            method.form,
            Keep().cost(spec),
            method.cost(spec),
            spec.parameters,
            method.parameters(spec),
        )
        for spec, method in stored
    )


def _counted(forms: Counter[str]) -> str:
    most = forms.most_common(MOST_FORMS)
    named = [f"{count} x {form}" for form, count in most]
    if more := forms.total() - sum(count for _, count in most):
        named.append(f"{more} other")
    return ", ".join(named)
