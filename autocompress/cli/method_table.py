"""What each method is good for, as a table on the terminal.

Imports torch: commands import it when they need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.cli.front_table import WIDTH_OF_A_FILE
from autocompress.judging.method_report import BeatenPlan, MethodReport
from autocompress.records import Gauge

COLUMNS = ("method", "plans", "at", "bytes", "unbeaten on", "beaten by")
NUMBERS = ("plans", "bytes", "unbeaten on")
EXPLANATION = (
    "plans: members of the front that use it. bytes: its mean share of their matrices. "
    "unbeaten on: matrices where an option of it is best at its size. "
    "beaten by: what stores the same matrices in no more bytes with so many times less loss "
    "increase."
)
PREDICTED = (
    "Of {options:,} options {fitted:,} were fitted. What the others lose is predicted by fits to "
    "similar matrices: nothing took them, or they lose clearly more than others at their bytes."
)
WITHOUT_MENU = "This study has no menu on disk, so that single matrices cannot be compared."
BEATEN_TITLE = "Uniform plans, and the trial that loses less in no more bytes"


def print_methods(
    reports: Sequence[MethodReport], front_size: int, console: Console, gauge: Gauge
) -> None:
    """Print a line for each method, and what beats the uniform plans."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_OF_A_FILE, highlight=False)
    with_menu = any(report.options for report in reports)
    console.print(method_table(reports, front_size, with_menu=with_menu))
    console.print(EXPLANATION if with_menu else WITHOUT_MENU, markup=False)
    options = sum(report.options for report in reports)
    fitted = sum(report.fitted_options for report in reports)
    if fitted < options:
        console.print(PREDICTED.format(fitted=fitted, options=options), markup=False)
    beaten = [plan for report in reports for plan in report.beaten_plans]
    if beaten:
        console.print("", plan_table(beaten), sep="\n")
    for plan in (plan for report in reports for plan in report.stopped_plans):
        seen = f"a {gauge.divergence} of {plan.divergence:.3g} on its first {plan.tokens:,} tokens"
        console.print(f"{plan.trial} {plan.label}: given up after {seen}", markup=False)


def method_table(
    reports: Sequence[MethodReport], front_size: int, *, with_menu: bool = True
) -> Table:
    """Lay out the methods, those with the most bytes of the front first."""
    title = f"Methods on a front of {front_size} plans"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    table.title_justify, table.title_style = "left", "bold"
    columns = COLUMNS if with_menu else COLUMNS[:4]
    for name in columns:
        last = name == "beaten by"
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=not last)
    for report in reports:
        row = _row(report)
        style = "" if report.uses else "dim"
        table.add_row(*(Text(row[name]) for name in columns), style=style)
    return table


def _row(report: MethodReport) -> dict[str, str]:
    return {
        "method": report.label,
        "plans": str(len(report.uses)) if report.uses else "",
        "at": _ratios([use.ratio for use in report.uses]),
        "bytes": f"{report.share:.0%}" if report.uses else "",
        "unbeaten on": f"{report.unbeaten_matrices} of {report.matrices}"
        if report.matrices
        else "",
        "beaten by": ", ".join(
            f"{rival.label} {_times(rival.factor)}" for rival in report.rivals[:2]
        ),
    }


def _ratios(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    low, high = f"{min(ratios):.3g}x", f"{max(ratios):.3g}x"
    return low if low == high else f"{low} to {high}"


def _times(factor: float) -> str:
    return "" if math.isinf(factor) else f"{factor:.2g}x" if factor < 10 else f"{factor:,.0f}x"


def plan_table(plans: Sequence[BeatenPlan]) -> Table:
    """Lay out the uniform plans that another trial beats, with what it takes of their costs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=BEATEN_TITLE)
    table.title_justify, table.title_style = "left", "bold"
    for name in ("uniform plan", "beaten by"):
        table.add_column(name)
    for name in ("bytes", "increase", "ms/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in sorted(plans, key=lambda plan: plan.trial):
        slower = "" if plan.latency_share is None else f"{plan.latency_share:.2f}x"
        table.add_row(
            Text(f"{plan.trial} {plan.label}"),
            Text(f"{plan.by} {plan.by_label}"),
            f"{plan.bytes_share:.2f}x",
            f"{plan.increase_share:.2g}x",
            slower,
        )
    return table
