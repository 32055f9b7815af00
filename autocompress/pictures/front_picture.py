"""What the picture of a front shows, before any plotting library draws it.

Horizontal: stored bytes, logarithmic, ticked at compression ratios. Vertical: increase of
the loss over the dense model, logarithmic, because the interesting plans lie between a thousandth
and one; ticks also say the figure. What is on the front is decided by divergence on the selection
text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from autocompress.judging.against_dense import increase, quality, shown_figure
from autocompress.judging.bootstrap import LEVEL, increase_interval
from autocompress.judging.dominance import divergence, knee_of, latency, non_dominated
from autocompress.judging.front import front_of, gain_over_baseline
from autocompress.judging.picking import best_or_none
from autocompress.judging.recipe_summary import recipe_lines
from autocompress.studies.study import BASELINE, StudyRecord, TrialRecord
from autocompress.units import format_bytes

LEAST_FLOOR, MOST_FLOOR = 1e-4, 1e-2
X_TITLE = "stored size of the model (compression ratio)"


@dataclass(frozen=True)
class Dot:
    """One measured trial in the picture.

    Attributes:
        trial: the trial.
        bytes: horizontal position.
        height: vertical position: its increase, or the floor when it lies below.
        span: vertical positions of the ends of its increase's interval; ``None`` without an
            interval.
        figure: as the ticks count it.
        latency_ms: colour.
        group: ``front``, ``baseline`` or ``other``.
        lines: what a person reads on it.
    """

    trial: TrialRecord
    bytes: int
    height: float
    span: tuple[float, float] | None
    figure: float
    latency_ms: float | None
    group: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """A note at a dot: ``best``, ``knee`` or both."""

    dot: Dot
    text: str


@dataclass(frozen=True)
class FrontPicture:
    """Everything that a renderer needs, in data coordinates.

    ``front_line`` are the members of the front by divergence and size alone, by size; the others
    are there for their speed. Its height is another figure and may grow here and there.
    """

    title: str
    subtitle: str
    dots: tuple[Dot, ...]
    front_line: tuple[Dot, ...]
    marks: tuple[Mark, ...]
    floor: float
    dense_bytes: int
    dense_latency_ms: float | None
    dense_text: str
    budget_bytes: int | None
    budget_text: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[tuple[float, str, str], ...]
    y_title: str
    y_ticks: tuple[tuple[float, str], ...]
    footnote: str

    def group(self, name: str, *, hollow: bool = False) -> tuple[Dot, ...]:
        """The dots of one group, those on the text of the front or the hollow ones."""
        return tuple(
            dot for dot in self.dots if dot.group == name and self.is_hollow(dot) == hollow
        )

    def is_hollow(self, dot: Dot) -> bool:
        """Whether the dot was measured on another text than the front, and so compares roughly."""
        return dot.trial.report is None and any(other.trial.report for other in self.dots)

    @property
    def latency_range(self) -> tuple[float, float] | None:
        """Least and most latency, the dense model included; ``None`` when nothing was timed."""
        times = [dot.latency_ms for dot in self.dots if dot.latency_ms is not None]
        if not times:
            return None
        times += [self.dense_latency_ms] if self.dense_latency_ms is not None else []
        return min(times), max(times)


def picture_of(study: StudyRecord) -> FrontPicture:
    """Lay out the picture of a study."""
    heights = {trial.number: increase(study, trial) for trial in study.complete}
    shown = [trial for trial in study.complete if math.isfinite(heights[trial.number])]
    floor = _floor([heights[trial.number] for trial in shown])
    on_front = front_of(study)
    members = {trial.number for trial in on_front}
    dots = {trial.number: _dot(study, trial, trial.number in members, floor) for trial in shown}
    front = tuple(dots[trial.number] for trial in on_front if trial.number in dots)
    dense_time = study.dense_report.latency_ms or study.dense_selection.latency_ms
    budget = study.limits.memory_bytes
    sizes = [
        study.dense_bytes,
        *(dot.bytes for dot in dots.values()),
        *([budget] if budget else []),
    ]
    tops = [dot.height for dot in dots.values()] or [1.0]
    y_range = (floor / 1.6, max(*tops, 10 * floor) * 1.7)
    x_range = (min(sizes) / 1.18, max(sizes) * 1.18)
    gauge, dense = study.gauge, study.dense_report
    ranking = f" The front is by {gauge.divergence} on the selection text."
    return FrontPicture(
        title=f"{study.name}: what the model loses at each size",
        subtitle=_subtitle(study),
        dots=tuple(dots.values()),
        front_line=tuple(
            dots[trial.number]
            for trial in non_dominated(on_front, timed=False)
            if trial.number in dots
        ),
        marks=_marks(study, dots, front),
        floor=floor,
        dense_bytes=study.dense_bytes,
        dense_latency_ms=dense_time,
        dense_text=f"dense model: {format_bytes(study.dense_bytes)}, {gauge.shown(dense.figure)}",
        budget_bytes=budget,
        budget_text=""
        if budget is None
        else f"budget {format_bytes(budget)} ({study.dense_bytes / budget:.3g}x)",
        x_range=x_range,
        y_range=y_range,
        x_ticks=_ratio_ticks(study.dense_bytes, x_range),
        y_title=f"increase of {gauge.loss}, {gauge.unit} ({gauge.figure})",
        y_ticks=tuple(
            (
                tick,
                f"{'≤ ' if tick <= floor * 1.001 else ''}{tick:g}"
                f"  ({gauge.figure_of(dense.loss + tick):{gauge.form}})",
            )
            for tick in _decade_ticks(floor, y_range[1])
        ),
        footnote=_footnote(front, dots) + (ranking if front else ""),
    )


def _floor(heights: list[float]) -> float:
    least = min((height for height in heights if height > 0), default=MOST_FLOOR)
    return min(max(10.0 ** math.floor(math.log10(least)), LEAST_FLOOR), MOST_FLOOR)


def _dot(study: StudyRecord, trial: TrialRecord, on_front: bool, floor: float) -> Dot:
    group = BASELINE if trial.baselines else "front" if on_front else "other"
    height, time, interval = increase(study, trial), latency(trial), increase_interval(study, trial)
    gauge, apart = study.gauge, divergence(trial)
    spread = "" if interval is None else f" ({interval.low:.4f} to {interval.high:.4f})"
    lines = (
        f"trial {trial.number}: {trial.label}" + (", on the front" if on_front else ""),
        f"{format_bytes(trial.bytes)}, {study.dense_bytes / trial.bytes:.3g}x of the checkpoint",
        f"{quality(study, trial)}, increase {height:+.4f}{spread} {gauge.unit}",
        *(
            [f"{gauge.divergence} {apart:.4f} on the selection text"]
            if math.isfinite(apart)
            else []
        ),
        *([f"{time:.3g} ms a token"] if time is not None else []),
        *recipe_lines(study.specs, trial.plan),
    )
    figure = shown_figure(study, trial)
    span = interval and (max(interval.low, floor), max(interval.high, floor))
    return Dot(trial, trial.bytes, max(height, floor), span, figure, time, group, lines)


def _marks(study: StudyRecord, dots: dict[int, Dot], front: tuple[Dot, ...]) -> tuple[Mark, ...]:
    names: dict[int, list[str]] = {}
    best = best_or_none(study)
    if best is not None:
        names.setdefault(best.number, []).append("best")
    if len(front) > 2:
        names.setdefault(knee_of([dot.trial for dot in front]).number, []).append("knee")
    return tuple(
        Mark(dots[number], f"{' and '.join(words)}: {_size_and_quality(study, dots[number])}")
        for number, words in names.items()
        if number in dots
    )


def _size_and_quality(study: StudyRecord, dot: Dot) -> str:
    return f"{format_bytes(dot.bytes)}, {study.gauge.shown(dot.figure)}"


def _subtitle(study: StudyRecord) -> str:
    folder = Path(study.model)
    name = folder.name if folder.is_absolute() else study.model  # a long path has no room
    parts = [name, f"{len(study.complete)} plans measured"]
    gain = gain_over_baseline(study)
    if gain is not None and math.isfinite(gain.share):
        parts.append(f"the best loses {gain.share:.0%} of what {gain.baseline.label} loses")
    return ", ".join(parts)


def _footnote(front: tuple[Dot, ...], dots: dict[int, Dot]) -> str:
    bars = f" Bars: {LEVEL:.0%} intervals." if any(dot.span for dot in dots.values()) else ""
    if all(dot.trial.report for dot in dots.values()) and dots:
        return "All plans are measured on the report text." + bars
    if front and all(dot.trial.report for dot in front):
        filled = "Filled: measured on the report text."
        return f"{filled}{bars} Hollow: placed by the increase on the selection text."
    return "Plans are placed by their increase on the selection text."


def _ratio_ticks(
    dense_bytes: int, x_range: tuple[float, float]
) -> tuple[tuple[float, str, str], ...]:
    """Powers of two of the compression ratio, and the steps between them when there is room."""
    fine = math.log2(x_range[1] / x_range[0]) < 3.2
    ratios = [2.0**power * step for power in range(12) for step in ((1.0, 1.5) if fine else (1.0,))]
    ticks = [
        (dense_bytes / ratio, ratio)
        for ratio in ratios
        if x_range[0] <= dense_bytes / ratio <= x_range[1]
    ]
    return tuple((size, format_bytes(size), f"{ratio:g}x") for size, ratio in ticks)


def _decade_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1, 3)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        step * 10.0**power
        for power in decades
        for step in steps
        if low * 0.999 <= step * 10.0**power <= high
    ]
