"""``--effort quick|normal|thorough``: how much of everything a command does, set by one word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """How many tokens of the texts are used.

    Attributes:
        calibration: that statistics are collected on.
        selection: that trials are scored on.
        report: that the final figures are measured on.
        pricing: of the calibration text, that options are priced on inside a compressed model; 0
            leaves it at predictions.
        refit: of the calibration text, that the matrices of the best plan are refitted on; 0
            leaves them.
    """

    calibration: int
    selection: int
    report: int
    pricing: int
    refit: int


@dataclass(frozen=True)
class EffortLevel:
    """What one word sets.

    Attributes:
        tokens: of the texts.
        samples: matrices of each kind that all options are fitted to.
        rounds: of pricing, at most.
        trials: of a search in all.
        baselines: uniform baselines among them.
        sizes: sizes beside the budget among them that are allocated at.
    """

    tokens: Tokens
    samples: int
    rounds: int
    trials: int
    baselines: int
    sizes: int

    @property
    def samples_for_a_plan(self) -> int:
        """Of each kind where one plan is made: what it takes is fitted anyway."""
        return max(1, self.samples - 1)


NORMAL = "normal"
EFFORTS = {
    "quick": EffortLevel(Tokens(8_192, 8_192, 10_240, 2_048, 0), 1, 1, 6, 1, 4),
    NORMAL: EffortLevel(Tokens(16_384, 16_384, 16_384, 4_096, 32_768), 2, 3, 14, 3, 5),
    "thorough": EffortLevel(Tokens(16_384, 16_384, 24_576, 4_096, 65_536), 3, 4, 32, 13, 7),
}
