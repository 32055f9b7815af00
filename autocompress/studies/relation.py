"""How what a latency table adds up relates to what is measured end to end, as a study learnt it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Relation:
    """``end to end = dense_ms + slope * (table - dense_table_ms)``, with its quality.

    Attributes:
        dense_ms: end to end, of the dense model.
        dense_table_ms: sum of its matrices in the table.
        slope: milliseconds end to end for each of the table.
        spread_ms: standard deviation of what is measured around what is predicted, by the median
            absolute deviation; with few trials partly a guess.
        r_squared: share of the measured variance that is predicted; ``None`` with few trials.
        rank_correlation: Spearman's, of table and end to end; ``None`` with few trials.
        trials: how many it was learnt from.
    """

    dense_ms: float
    dense_table_ms: float
    slope: float
    spread_ms: float
    r_squared: float | None
    rank_correlation: float | None
    trials: int

    @property
    def outside_ms(self) -> float:
        """What a token is predicted to take beside the matrices."""
        return self.dense_ms - self.slope * self.dense_table_ms

    def predict(self, table_ms: float) -> float:
        """Latency end to end of a plan whose matrices take so much in the table."""
        return self.dense_ms + self.slope * (table_ms - self.dense_table_ms)

    def table_limit(self, limit_ms: float, margin: float = 0.0) -> float:
        """Most that matrices may take in the table for a limit end to end.

        Args:
            limit_ms: end to end.
            margin: spreads that the prediction stays below the limit. By 1 about five of six plans
                meet it when they are measured, by 0 half of them: a miss costs one trial, but where
                few forms are as fast, the next ones below may cost any amount of loss increase.
        """
        room = limit_ms - margin * self.spread_ms - self.dense_ms
        return self.dense_table_ms + room / self.slope

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Relation:
        """Read what ``to_dict`` gave."""
        return cls(**values)

    def __str__(self) -> str:
        """One line for people."""
        quality = ""
        if self.r_squared is not None and self.rank_correlation is not None:
            quality = f", R2 {self.r_squared:.2f}, rank correlation {self.rank_correlation:.2f}"
        return (
            f"1 ms in the table is {self.slope:.2f} ms end to end, spread {self.spread_ms:.3g} ms"
            f"{quality} ({self.trials} trials)"
        )
