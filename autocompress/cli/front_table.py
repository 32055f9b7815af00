"""The front as a table on the terminal, and what to type next.

Imports torch: commands import it when they need it.
"""

from __future__ import annotations

import math
import shlex

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.judging.against_dense import describe, increase, latency_ratio, targets_of
from autocompress.judging.bootstrap import FEWEST_WINDOWS, LEVEL, Interval, increase_interval
from autocompress.judging.dominance import knee_of, latency
from autocompress.judging.front import Gain, front_of, gain_over_baseline
from autocompress.judging.healing_report import first_of, healing_notes
from autocompress.judging.picking import best_or_none, nearest_to_the_limits
from autocompress.judging.targets import describe_limits
from autocompress.paths import shown
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.units import format_bytes

MARKS = "marks"
SPREAD = "±"  # half the 95 % interval of the increase
TEXT_COLUMNS = ("plan", "stored as", MARKS)
WIDTH_OF_A_FILE = 140  # where stdout is no terminal
WIDTH_FOR_METHODS, WIDTH_FOR_DIVERGENCE = 124, 99


def print_front(study: StudyRecord, console: Console, picked: TrialRecord | None = None) -> None:
    """Print the front as a table that marks best, knee and picked trial, and the search's gain."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_OF_A_FILE, highlight=False)
    console.print(front_table(study, picked=picked, width=console.width))
    for line in notes(study):
        console.print(line, markup=False)


def front_table(
    study: StudyRecord, *, picked: TrialRecord | None = None, width: int = WIDTH_OF_A_FILE
) -> Table:
    """Lay out the front under the dense model, largest first; a narrow table has fewer columns."""
    marks = _marks(study, picked)
    shown = list(front_of(study))
    if picked is not None and all(trial.number != picked.number for trial in shown):
        shown.append(picked)
    shown.sort(key=lambda trial: -trial.bytes)
    rows = [
        _dense_row(study),
        *(_row(study, trial, marks.get(trial.number, [])) for trial in shown),
    ]
    if width < WIDTH_FOR_DIVERGENCE:  # no room for the ratio beside it
        rows = [row | {"ms/token": row["ms/token"].partition(" ")[0]} for row in rows]
    left_out = {"stored as"} if width < WIDTH_FOR_METHODS else set()
    left_out |= {study.gauge.divergence, SPREAD} if width < WIDTH_FOR_DIVERGENCE else set()
    left_out |= {SPREAD} if not any(row[SPREAD] for row in rows) else set()
    columns = [name for name in rows[0] if name not in left_out]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=_title(study))
    table.title_justify, table.title_style = "left", "bold"
    for name in columns:
        words = name in TEXT_COLUMNS
        widest = max(len(row[name]) for row in [{name: name}, *rows])
        table.add_column(
            name if name != MARKS else "",
            justify="left" if words else "right",
            no_wrap=name != "stored as",
            min_width=None if name == "stored as" else widest,
        )
    for row, trial in zip(rows, [None, *shown], strict=True):
        chosen = trial is not None and any(
            word in ("best", "nearest", "picked") for word in marks.get(trial.number, [])
        )
        style = "dim" if trial is None else "bold green" if chosen else ""
        table.add_row(*(Text(row[name]) for name in columns), style=style)
    return table


def notes(study: StudyRecord) -> list[str]:
    """What the table does not say: the gain, limits nobody meets, where a number is not final."""
    front, best = front_of(study), best_or_none(study)
    gain = gain_over_baseline(study)
    lines = _about_targets(study, best)
    if gain is not None and gain.best.baselines:
        lines.append(f"The best is a plan a person would have written: {gain.best.label}.")
    elif best is not None and study.limits.asks_quality:
        lines.append(_against_baseline(gain))
    elif gain is not None and math.isfinite(gain.share):
        lines.append(
            f"The best loses {gain.best_increase:.4f} {study.gauge.unit}"
            f"{_in_brackets(gain.interval)}, "
            f"{gain.share:.0%} of what the best uniform baseline in the same bytes loses "
            f"({gain.baseline.label}: {gain.baseline_increase:.4f}{_at_first(study, gain)}, "
            f"{gain.text} text)." + _about_difference(gain)
        )
    if best is not None:
        lines.insert(0, _about_best(study, best))
    if study.relation is not None:
        lines.append(f"Latency: {study.relation}.")
    if front:
        lines.append("Trials are ranked by divergence from the dense model on the selection text.")
    if any(trial.report is None for trial in front):
        lines.append("* measured on the selection text only")
    return [*lines, *healing_notes(study), *_about_intervals(study, front)]


def _about_best(study: StudyRecord, best: TrialRecord) -> str:
    """Size, speed and parameters of the best against the dense model."""
    share, time = latency_ratio(study, best), latency(best)
    speed = ""
    if share is not None and time is not None:
        speed = f"; a decoded token takes {time:.3g} ms, {share:.2f}x of the dense model's"
    bf16 = ""
    if study.dense_bf16_bytes != study.dense_bytes:
        bf16 = f" ({study.dense_bf16_bytes / best.bytes:.3g} times smaller than in bf16)"
    dense = sum(spec.parameters for spec in study.specs)
    return (
        f"The best is {study.dense_bytes / best.bytes:.3g} times smaller than the dense model"
        f"{bf16}, with {best.plan.parameters(study.specs):,} of {dense:,} parameters in its "
        f"matrices{speed}."
    )


def _about_targets(study: StudyRecord, best: TrialRecord | None) -> list[str]:
    """Whether each target is met, and by how much, by the best trial or else by the nearest."""
    if study.limits.unlimited:
        return []
    shown = nearest_to_the_limits(study) if best is None else best
    if shown is None:
        return []
    title = "The best meets every target" if best is not None else "No measured trial meets every "
    title += "" if best is not None else f"target. The nearest is {describe(study, shown)}"
    return [f"{title}:", *(f"  {verdict}" for verdict in targets_of(study, shown))]


def _against_baseline(gain: Gain | None) -> str:
    """How much smaller the best is than the smallest uniform baseline of the same quality."""
    if gain is None:
        return "No plan that a person would have written meets every target."
    share = gain.best.bytes / gain.baseline.bytes
    return (
        f"The best takes {share:.0%} of the bytes of the smallest plan a person would have written "
        f"that meets every target ({gain.baseline.label})."
    )


def _at_first(study: StudyRecord, gain: Gain) -> str:
    """What a uniform baseline that was healed lost as a person would have fitted it."""
    first = first_of(study, gain.baseline)
    if first is None or first.report is None or gain.text != first.report.text:
        return ""
    return f", before that {increase(study, first):.4f}"


def _in_brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({LEVEL * 100:g} % interval {_from_to(interval)})"


def _from_to(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"


def _about_difference(gain: Gain) -> str:
    interval = gain.difference_interval
    if interval is None:
        return ""
    chance = ": it may be chance" if interval.low <= 0 <= interval.high else ""
    return f" The difference, {gain.difference:.4f}, lies within {_from_to(interval)}{chance}."


def _about_intervals(study: StudyRecord, front: tuple[TrialRecord, ...]) -> list[str]:
    """What the intervals are made of, or why there are none."""
    scored = study.dense_report.windows
    if scored is None or not any(trial.report and trial.report.windows for trial in front):
        return []
    count = len(scored.tokens)
    if count < FEWEST_WINDOWS:
        return [
            f"The report text has {count} windows, too few for intervals "
            f"(at least {FEWEST_WINDOWS}): score more tokens, or a shorter context."
        ]
    return [
        f"{SPREAD}: half the {LEVEL * 100:g} % interval of the increase, from {count} windows of "
        "the report text drawn again in pairs with the dense model's."
    ]


def next_command(study: StudyRecord, trial: TrialRecord | None, *, options: str = "") -> str:
    """The command that writes the trial as a model."""
    if trial is None:
        return ""
    best = best_or_none(study)
    which = "best" if best is not None and best.number == trial.number else str(trial.number)
    name, out = shlex.quote(study.name), shlex.quote(f"{study.name}-{which}")
    return f"autocompress export {name} --trial {which} --out {out}{options}"


def _title(study: StudyRecord) -> str:
    limits = describe_limits(study.limits, study.dense_bytes, study.gauge)
    return f"Study {study.name}: {shown(study.model)}" + (f", {limits}" if limits else "")


def _marks(study: StudyRecord, picked: TrialRecord | None) -> dict[int, list[str]]:
    marks: dict[int, list[str]] = {}
    front, best = front_of(study), best_or_none(study)
    if best is not None:
        marks.setdefault(best.number, []).append("best")
    elif not study.limits.unlimited and (near := nearest_to_the_limits(study)) is not None:
        marks.setdefault(near.number, []).append("nearest")
    if len(front) > 2:
        marks.setdefault(knee_of(front).number, []).append("knee")
    if picked is not None and (best is None or picked.number != best.number):
        marks.setdefault(picked.number, []).append("picked")
    for trial in study.complete:
        if trial.baselines:
            marks.setdefault(trial.number, []).append("baseline")
    return marks


def _row(study: StudyRecord, trial: TrialRecord, marks: list[str]) -> dict[str, str]:
    shown, interval = trial.measurement, increase_interval(study, trial)
    gauge, figure, apart = study.gauge, "", ""
    if shown is not None:
        figure = f"{shown.figure:{gauge.form}}" + ("" if trial.report else "*")
        apart = f"{shown.divergence:.4f}" if math.isfinite(shown.divergence) else ""
    return {
        "trial": str(trial.number),
        "plan": trial.label,
        gauge.figure: figure,
        "increase": f"{increase(study, trial):+.4f}",
        SPREAD: "" if interval is None else f"{interval.half_width:.4f}",
        gauge.divergence: apart,
        "size": format_bytes(trial.bytes),
        "ratio": f"{study.dense_bytes / trial.bytes:.3g}x",
        "ms/token": _milliseconds(latency(trial), latency_ratio(study, trial)),
        "stored as": trial.plan.summary(),
        MARKS: ", ".join(marks),
    }


def _dense_row(study: StudyRecord) -> dict[str, str]:
    gauge, report = study.gauge, study.dense_report
    return {
        "trial": "",
        "plan": "dense",
        gauge.figure: f"{report.figure:{gauge.form}}",
        "increase": "",
        SPREAD: "",
        gauge.divergence: "",
        "size": format_bytes(study.dense_bytes),
        "ratio": "1x",
        "ms/token": _milliseconds(study.dense_selection.latency_ms or report.latency_ms),
        "stored as": "",
        MARKS: "",
    }


def _milliseconds(time: float | None, share: float | None = None) -> str:
    """A time, and its ratio to the dense model's."""
    if time is None:
        return ""
    return f"{time:.3g}" if share is None else f"{time:.3g} ({share:.2f}x)"
