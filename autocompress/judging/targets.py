"""Whether a plan meets its targets, budget, latency and quality, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from autocompress.records import Gauge
from autocompress.units import Limits, format_bytes

BUDGET, LATENCY = "budget", "latency"
COSINE = "cosine"


@dataclass(frozen=True)
class LossOnText:
    """What a plan loses on one text.

    Attributes:
        text: which text.
        increase: of the loss over the dense model's.
        cosine: mean cosine between the hidden states before the head and the dense model's;
            ``None`` where it was not measured.
    """

    text: str
    increase: float
    cosine: float | None = None

    def used(self, limits: Limits) -> float:
        """The share that it takes of the loss which a target of quality allows.

        1 is the limit, more than 1 misses it; zero or less where nothing is lost. A cosine is
        counted from 1. Infinite where nothing was measured.
        """
        excesses = (self._increase_excess(limits), self._cosine_excess(limits))
        return max((each for each in excesses if each is not None), default=-1.0) + 1

    def verdicts(self, limits: Limits, gauge: Gauge) -> Iterator[Verdict]:
        """Hold it against each target of quality."""
        most, excess = limits.log_perplexity_increase, self._increase_excess(limits)
        if most is not None and excess is not None:
            name = f"{gauge.loss} increase"
            yield Verdict(name, most, self.increase, excess, self.text, gauge.unit)
        least, excess = limits.cosine, self._cosine_excess(limits)
        if least is not None and excess is not None:
            yield Verdict(COSINE, least, self.cosine, excess, self.text)

    def _increase_excess(self, limits: Limits) -> float | None:
        most = limits.log_perplexity_increase
        if most is None:
            return None
        return math.inf if math.isnan(self.increase) else self.increase / most - 1

    def _cosine_excess(self, limits: Limits) -> float | None:
        if limits.cosine is None:
            return None
        return math.inf if self.cosine is None else (1 - self.cosine) / (1 - limits.cosine) - 1


@dataclass(frozen=True)
class Verdict:
    """One target against one plan.

    Attributes:
        target: ``budget``, ``latency``, ``cosine`` or an increase of the loss, such as
            ``log-perplexity increase``.
        limit: bytes, milliseconds or loss at most, or the least cosine.
        reached: by the plan, in the same unit; ``None`` where it was not measured.
        excess: by what share of the limit it is missed, negative where there is room; infinite
            where nothing was measured. Of a cosine both are counted from 1.
        text: which text it was measured on; empty where none is needed.
        unit: of limit and reached, behind the number; empty where there is none.
    """

    target: str
    limit: float
    reached: float | None
    excess: float
    text: str = ""
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.excess <= 0

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON; ``excess`` is ``null`` where nothing was measured."""
        reached = self.reached if self.reached is None or math.isfinite(self.reached) else None
        excess = self.excess if math.isfinite(self.excess) else None
        return {**vars(self), "reached": reached, "excess": excess, "met": self.met}

    def __str__(self) -> str:
        """In words: ``budget met: 1.55 MB, at most 1.6 MB (3.1% to spare)``."""
        outcome = "met" if self.met else "MISSED"
        bound = "at least" if self.target == COSINE else "at most"
        where = f" on the {self.text} text" if self.text else ""
        wanted = f"{bound} {self._in_unit(self.limit)}"
        if self.reached is None or not math.isfinite(self.excess):
            return f"{self.target} {outcome}: not measured{where}, {wanted}"
        room = f"{min(-self.excess, 1):.1%} to spare" if self.met else f"{self.excess:.1%} too much"
        reached = self._in_unit(self.reached)
        return f"{self.target} {outcome}: {reached}{where}, {wanted} ({room})"

    def _in_unit(self, number: float) -> str:
        """A figure as people read it."""
        if self.target == BUDGET:
            return format_bytes(number)
        form = ".3g" if self.target == LATENCY else ".4f"
        return f"{number:{form}} {self.unit}".rstrip()


def describe_limits(limits: Limits, dense_bytes: int, gauge: Gauge) -> str:
    """The targets in words: ``at most 1.6 MB (10x), cosine to dense at least 0.9``."""
    parts = []
    if limits.memory_bytes is not None:
        ratio = dense_bytes / max(limits.memory_bytes, 1)
        parts.append(f"at most {format_bytes(limits.memory_bytes)} ({ratio:.3g}x)")
    if limits.latency_ms is not None:
        parts.append(f"at most {limits.latency_ms:.3g} ms a token")
    if limits.log_perplexity_increase is not None:
        increase = limits.log_perplexity_increase
        most = f"{increase:.3g} {gauge.unit}"
        if gauge.exponential:
            grown = 100 * math.expm1(increase)
            parts.append(f"{gauge.figure} at most {grown:.3g}% above dense ({most})")
        else:
            parts.append(f"{gauge.loss} at most {most} above dense")
    if limits.cosine is not None:
        parts.append(f"cosine to dense at least {limits.cosine:g}")
    return ", ".join(parts)


def judge_targets(
    limits: Limits,
    size: int,
    latency_ms: float | None,
    losses: Iterable[LossOnText],
    gauge: Gauge,
) -> tuple[Verdict, ...]:
    """Hold a plan against every target that there is.

    Quality is judged on each text that the plan was measured on, and has a verdict for each.

    Args:
        limits: the targets.
        size: bytes of the stored model.
        latency_ms: milliseconds a token; ``None`` where they were not measured.
        losses: on each text.
        gauge: the words for them.
    """
    verdicts = []
    if limits.memory_bytes is not None:
        excess = size / max(limits.memory_bytes, 1) - 1
        verdicts.append(Verdict(BUDGET, limits.memory_bytes, size, excess))
    if limits.latency_ms is not None:
        most = limits.latency_ms
        excess = math.inf if latency_ms is None else latency_ms / max(most, 1e-9) - 1
        verdicts.append(Verdict(LATENCY, most, latency_ms, excess, unit="ms a token"))
    known = list(losses) or [LossOnText("", math.nan)]
    return (*verdicts, *(verdict for loss in known for verdict in loss.verdicts(limits, gauge)))


def excess_of(verdicts: Iterable[Verdict]) -> float:
    """How far a plan is from meeting all its targets: the largest excess, at least zero."""
    return max((verdict.excess for verdict in verdicts), default=0.0)
