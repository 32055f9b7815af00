"""What ``autocompress heal`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from autocompress.studies.healed_trials import picture_of
from autocompress.units import format_bytes

if TYPE_CHECKING:
    from autocompress.driver.healing_report import HealingReport
    from autocompress.records import Gauge, Measurement


def print_healed(report: HealingReport, console: Console) -> None:
    """Print the model before and after, and what to type next."""
    healing = report.healing
    title = f"{healing.done.capitalize()}: {report.source}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    table.title_justify, table.title_style = "left", "bold"
    gauge = report.gauge
    for name in ("", gauge.figure, "increase", gauge.divergence, "size"):
        table.add_column(name, justify="right" if name else "left")
    _row(table, gauge, "dense", report.dense, None)
    _row(table, gauge, "before", report.before, report.increase_before)
    _row(table, gauge, healing.done, report.after, report.increase_after)
    console.print(table)
    how = f"{healing.steps} steps, {healing.tokens:,} tokens of" if healing.trained else "On"
    lines = [f"{how} the text {healing.text}. {_gain(report)}"]
    if report.exported is not None:
        lines.append(f"Written to {report.exported.report.folder}, loaded again and compared.")
    if report.trial is not None and report.study is not None:
        name = report.study.name
        lines += [
            f"It is trial {report.trial} of study {name}.",
            "",
            "Next:",
            f"  autocompress export {name} --trial {report.trial} --out {name}-{report.trial}",
            f"  autocompress attribute {name} --trial {report.trial}",
            f"  autocompress heal {name} --trial {report.trial}    to heal it further",
        ]
        if healing.trained:
            lines.append(f"  open {picture_of(report.study.folder, report.trial)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _gain(report: HealingReport) -> str:
    """What healing has changed on the report text, judged by divergence, as trials are."""
    gauge, before, after = report.gauge, report.before, report.after
    changes = (
        f"On the report text {gauge.divergence} went from {before.divergence:.4f} to "
        f"{after.divergence:.4f}{_share(report)}, the increase of {gauge.loss} from "
        f"{report.increase_before:+.4f} to {report.increase_after:+.4f}."
    )
    if after.divergence < before.divergence or after.bytes < before.bytes:
        return changes
    return f"{changes} Nothing is gained here: try more --steps, or more text with --data."


def _share(report: HealingReport) -> str:
    before, after = report.before.divergence, report.after.divergence
    return f" ({after / before:.2f} of it)" if before > 0 else ""


def _row(
    table: Table, gauge: Gauge, name: str, measured: Measurement, increase: float | None
) -> None:
    table.add_row(
        name,
        f"{measured.figure:{gauge.form}}",
        "" if increase is None else f"{increase:+.4f}",
        "" if increase is None else f"{measured.divergence:.4f}",
        format_bytes(measured.bytes),
    )
