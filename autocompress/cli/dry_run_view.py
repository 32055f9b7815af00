"""A dry run on the terminal. Imports torch: commands import it when they need it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.cli.output import console, print_json
from autocompress.driver.estimate.dry_run import DryRun, dry_run
from autocompress.errors import BudgetUnreachable
from autocompress.paths import shown
from autocompress.requests.verbs import SearchRequest
from autocompress.units import about, format_bytes

NUMBERS = ("count", "options", "tokens", "windows", "memory")
ESTIMATES = (
    "Times and memory are estimates, from some seconds of probes on this machine: "
    "good for telling minutes from hours."
)


def show_dry_run(request: SearchRequest, *, as_json: bool) -> None:
    """Look what a search would do, and print it.

    Raises:
        BudgetUnreachable: no plan can be as small as the budget, said after all the rest.
        ConfigurationError: as the search itself.
    """
    run = dry_run(request)
    if as_json:
        print_json(run.to_dict())
    else:
        print_dry_run(run, console)
    if run.limit_bytes is not None and not run.reachable:
        raise BudgetUnreachable(
            f"the search would end at once: no plan of the space {run.space!r} is so small",
            got=format_bytes(run.limit_bytes),
            wanted=f"at least {format_bytes(run.least_bytes)} "
            f"({run.dense_bytes / run.least_bytes:.3g}x)",
            hint=run.what_stays.strip(),
        )


def print_dry_run(run: DryRun, console: Console) -> None:
    """Print what a search would do."""
    for line in _lines(run):
        console.print(line, markup=False, soft_wrap=True)
    matrices = [
        (group.role, "x".join(map(str, group.shape)), f"{group.count}", f"{group.options}")
        for group in run.matrices
    ]
    console.print("", _table(("matrices", "shape", "count", "options"), matrices), sep="\n")
    texts = [
        (text.name, shown(text.source), f"{text.tokens:,}", f"{text.windows:,}")
        for text in run.texts
    ]
    console.print(_table(("text", "source", "tokens", "windows"), texts))
    stages = [
        (stage.name, stage.work, about(stage.seconds), format_bytes(stage.memory_bytes))
        for stage in run.stages
    ]
    stages.append(("in all", "", about(run.seconds), format_bytes(run.memory_bytes)))
    console.print(_table(("stage", "work", "time", "memory"), stages))
    console.print(ESTIMATES, markup=False)


def _lines(run: DryRun) -> list[str]:
    going_on = (
        "new" if run.finished_trials is None else f"goes on after {run.finished_trials} trials"
    )
    matrices = sum(group.count for group in run.matrices)
    skipped = f", {run.skipped} modules stay as they are" if run.skipped else ""
    return [
        f"Dry run of study {run.study} ({going_on}): nothing is fitted, searched or written.",
        f"Model: {shown(run.model)}, {format_bytes(run.dense_bytes)}{skipped}.",
        f"Space: {run.space}, {run.options:,} options of {matrices} matrices.",
        f"Budget: {_budget(run)}",
        f"Trials: {_trials(run)}",
        f"Cache: {_cache(run)}",
        f"Study: {shown(run.folder)}, stored in {run.storage}",
    ]


def _budget(run: DryRun) -> str:
    least = f"{format_bytes(run.least_bytes)} ({run.dense_bytes / run.least_bytes:.3g}x)"
    if run.limit_bytes is None:
        return f"none in bytes; the smallest plan takes {least}."
    limit = f"{format_bytes(run.limit_bytes)} ({run.dense_bytes / run.limit_bytes:.3g}x)"
    verdict = "can be reached" if run.reachable else "CANNOT BE REACHED"
    return f"{limit} {verdict}; the smallest plan takes {least}."


def _trials(run: DryRun) -> str:
    total = sum(run.trials.values())
    if not total:
        return "none are left."
    parts = ", ".join(f"{count} {phase}" for phase, count in run.trials.items())
    over = f"; {run.ruled_out} over the budget by bytes, not measured" if run.ruled_out else ""
    ends = [] if run.time_limit is None else [f"after {run.time_limit}"]
    ends += [] if run.patience is None else [f"after {run.patience} without growth of the front"]
    sooner = f"; fewer if it ends {' or '.join(ends)}" if ends else ""
    return f"{total} ({parts}{over}{sooner})."


def _cache(run: DryRun) -> str:
    matrices = sum(group.count for group in run.matrices)
    fits = "fits not looked up" if run.cached.fits is None else f"{run.cached.fits:,} options"
    return f"{run.cached.folder} has statistics of {run.cached.statistics} of {matrices}, {fits}."


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
