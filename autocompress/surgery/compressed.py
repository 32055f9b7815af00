"""What a compressed model is: a plan, with the weights it is stored by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from autocompress.methods.plan import Plan


@dataclass(frozen=True, eq=False)
class Compressed:
    """A plan with its stored weights: from a trial, a folder or memory.

    Attributes:
        plan: what stores which matrix how.
        weights: stored tensors by their names in a checkpoint, as healing leaves them. A matrix of
            which there are none is as its method fits it.
    """

    plan: Plan
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, plan: Plan | Compressed) -> Compressed:
        """The same, where a plan alone means what its methods fit."""
        return plan if isinstance(plan, Compressed) else cls(plan)
