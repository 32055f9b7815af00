"""``autocompress attribute``: what each method and each group of layers saves, and harms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.options import RUNS_DIR, Json, RunsDir
from autocompress.cli.output import ConsoleProgress, console, print_json, quieten_libraries
from autocompress.cli.source_options import (
    DenseModel,
    FolderContext,
    FolderDevice,
    FolderTrustRemoteCode,
    Source,
    Storage,
    TrackingUri,
    Trial,
)

if TYPE_CHECKING:
    from autocompress.api.attributing import Attributed
    from autocompress.judging.attribution import Attribution

WIDTH_OF_A_FILE = 140  # where stdout is no terminal
COLUMNS = ("group", "matrices", "saved", "of all", "rise", "±", "KL", "of all")
EXPLANATION = (
    "rise and KL: nats per token on the selection text that go away when the group is dense and "
    "the rest stays as it is stored; ± half the 95 % interval of the rise. "
    "interaction: what the groups' damages leave of the plan's; below zero where they are more."
)


def attribute(
    source: Source = None,
    trial: Trial = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="method, part (attention, mlp), depth (thirds), role, block, layer; with commas.",
        ),
    ] = "method,part,depth",
    model: DenseModel = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Of a folder: a file or hub/name:config:split, cut into three parts; else the "
            "texts that it was made with.",
        ),
    ] = None,
    context: FolderContext = None,
    device: FolderDevice = None,
    trust_remote_code: FolderTrustRemoteCode = False,
    runs_dir: RunsDir = RUNS_DIR,
    storage: Storage = None,
    track: Annotated[
        bool,
        typer.Option("--track/--no-track", help="Of a study: add it to the trial's run in MLflow."),
    ] = True,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    r"""Say what each method, part and depth of a plan contributes to its saving and its damage.

    \b
    autocompress attribute
    autocompress attribute demo-10x --trial best
    autocompress attribute demo-10x --trial 17 --by role,layer --json
    autocompress attribute ./my-compressed-model --data my-text.txt

    One group of matrices at a time is put back to dense, and the rest is scored again. The matrices
    that cost more of the damage than they save of the bytes are those to store with more bits.
    """
    quieten_libraries()
    from autocompress.api.attribute_function import attribute as run

    found = run(
        source,
        trial=trial,
        by=[name.strip() for name in by.split(",") if name.strip()],
        model=model,
        data=data,
        context=context,
        device=device,
        trust_remote_code=trust_remote_code,
        runs_dir=runs_dir,
        storage=storage,
        track=track,
        tracking_uri=tracking_uri,
        progress=ConsoleProgress(),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        print_attributed(found)


def print_attributed(found: Attributed) -> None:
    """Print the totals, and a table for each way of grouping."""
    from rich.console import Console

    from autocompress.units import format_bytes

    target = console
    if not console.is_terminal:
        target = Console(file=console.file, width=WIDTH_OF_A_FILE, highlight=False)
    total, report = found.attribution.total, found.report
    lines = (
        f"{found.source}: {found.plan.summary()}",
        f"  size            {format_bytes(found.bytes)} of {format_bytes(found.dense_bytes)} "
        f"({found.dense_bytes / found.bytes:.3g} times smaller)",
        f"  selection text  rise {total.rise:+.4f}, KL {total.kl:.4f} nats per token",
        f"  report text     rise {report.rise:+.4f}, KL {report.kl:.4f}",
    )
    for line in lines:
        target.print(line, markup=False, soft_wrap=True)
    for grouping in found.attribution.groupings:
        target.print(_table(found.attribution, grouping))
    target.print(EXPLANATION, markup=False)


def _table(attribution: Attribution, grouping: str) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from autocompress.units import format_bytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"By {grouping}", title_justify="left")
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for each in attribution.by(grouping):
        table.add_row(
            Text(each.group),
            str(each.layers),
            format_bytes(each.bytes_saved),
            f"{each.saved_share:.0%}",
            f"{each.damage.rise:+.4f}",
            "" if each.interval is None else f"{each.interval.half_width:.4f}",
            f"{each.damage.kl:+.4f}",
            _share(each.damage.kl, attribution.total.kl),
        )
    rest = attribution.interaction(grouping)
    share = _share(rest.kl, attribution.total.kl)
    table.add_row(
        "interaction", "", "", "", f"{rest.rise:+.4f}", "", f"{rest.kl:+.4f}", share, style="dim"
    )
    return table


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else ""
