"""What is asked of the ranks while a model is healed: entropies that are paid for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from autocompress.errors import ConfigurationError

PenaltyKind = Literal["shannon", "renyi"]
DEFAULT_ORDER = 0.25  # low: it weighs the many small values, which a cut removes


@dataclass(frozen=True)
class Penalty:
    """The entanglement entropy of some factorised layers, as a part of the loss.

    Attributes:
        layers: shell glob over the names of layers; ``*`` also runs over dots.
        kind: Shannon's entropy of the normalised squared singular values, or Rényi's.
        alpha: order of Rényi's entropy. Low ones weigh the many small values, which a truncation
            removes, high ones only the largest.
        weight: loss for one nat at one bond.
    """

    layers: str = "*"
    kind: PenaltyKind = "renyi"
    alpha: float | None = None
    weight: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in get_args(PenaltyKind):
            raise ConfigurationError("penalty, kind", got=self.kind, wanted="shannon or renyi")
        if self.kind == "shannon" and self.alpha is not None:
            raise ConfigurationError(
                "penalty, alpha", got=self.alpha, wanted="no order for kind shannon, whose is 1"
            )
        for name in ("alpha", "weight"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(
                    f"penalty, {name}", got=value, wanted="a finite number above 0"
                )

    @property
    def order(self) -> float:
        """Order of the entropy; Shannon's is 1."""
        if self.kind == "shannon":
            return 1.0
        return DEFAULT_ORDER if self.alpha is None else self.alpha

    def __str__(self) -> str:
        entropy = self.kind if self.kind == "shannon" else f"renyi {self.order:g}"
        return f"{self.weight:g} x {entropy} on {self.layers}"


def chosen_penalties(penalties: Sequence[Penalty], layers: Iterable[str]) -> dict[str, Penalty]:
    """Penalty of each layer that has one: the first whose glob matches.

    Args:
        penalties: in their order.
        layers: names of the factorised layers.

    Raises:
        ConfigurationError: a penalty is the first for no layer.
    """
    names = tuple(layers)
    firsts = {name: first_match(penalties, name) for name in names}
    for index, penalty in enumerate(penalties):
        if index not in firsts.values():
            near = difflib.get_close_matches(penalty.layers, names, n=1, cutoff=0.3)
            raise ConfigurationError(
                f"penalty {index + 1}, layers",
                got=penalty.layers,
                wanted=unmatched_reason(penalty, names),
                hint=f"Did you mean {near[0]}?" if near else "",
            )
    return {name: penalties[index] for name, index in firsts.items() if index is not None}


def first_match(penalties: Sequence[Penalty], name: str) -> int | None:
    """Index of the penalty that holds for a layer, if there is one."""
    matching = (k for k, penalty in enumerate(penalties) if fnmatchcase(name, penalty.layers))
    return next(matching, None)


def unmatched_reason(penalty: Penalty, names: Sequence[str]) -> str:
    """What the glob of a penalty that is the first for no layer would have to match."""
    if any(fnmatchcase(name, penalty.layers) for name in names):
        return "a layer that no entry before it matches; the first one counts"
    if not names:
        return "a factorised layer, of which the plan has none"
    return f"one of the {len(names)} factorised layers, such as {names[0]}"
