"""``--effort quick|normal|thorough``: how much of everything a command does, set by one word."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import ConfigurationError


@dataclass(frozen=True)
class EffortLevel:
    """What one word sets.

    Attributes:
        calibration_tokens: that statistics are collected on.
        selection_tokens: that trials are scored on.
        report_tokens: that the final figures are measured on.
        pricing_tokens: that options are priced on inside a compressed model.
        samples: matrices of each kind that all options are fitted to.
        rounds: of pricing, at most.
        trials: of a search in all.
        by_hand: hand-written plans among them.
        sizes: sizes beside the budget among them that are allocated at.
        refit_tokens: that the matrices of the best plan are fitted anew on; 0 leaves them.
    """

    calibration_tokens: int
    selection_tokens: int
    report_tokens: int
    pricing_tokens: int
    samples: int
    rounds: int
    trials: int
    by_hand: int
    sizes: int
    refit_tokens: int

    @property
    def samples_for_a_plan(self) -> int:
        """Of each kind where one plan is made: what it takes is fitted anyway."""
        return max(1, self.samples - 1)


NORMAL = "normal"
EFFORTS = {
    "quick": EffortLevel(8_192, 8_192, 10_240, 2_048, 1, 1, 6, 1, 4, 0),
    NORMAL: EffortLevel(16_384, 16_384, 16_384, 4_096, 2, 3, 14, 3, 5, 32_768),
    "thorough": EffortLevel(16_384, 16_384, 24_576, 4_096, 3, 4, 32, 13, 7, 65_536),
}


def effort_of(name: str) -> EffortLevel:
    """Look up a level by its name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in EFFORTS:
        raise ConfigurationError("unknown --effort", got=repr(name), wanted=", ".join(EFFORTS))
    return EFFORTS[name]
