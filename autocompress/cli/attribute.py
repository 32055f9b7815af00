"""``autocompress attribute``: what each method and each group of layers saves, and harms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.cli.output import console, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.requests.verbs import AttributeRequest

if TYPE_CHECKING:
    from autocompress.api.attributing import Attributed
    from autocompress.judging.attribution import Attribution

WIDTH_OF_A_FILE = 140  # where stdout is no terminal
EXPLANATION = (
    "increase and {gauge.divergence}: {gauge.unit} on the selection text that go away when the "
    "group is dense and the rest stays as it is stored; ± half the 95 % interval of the increase. "
    "interaction: what the groups' loss increases leave of the plan's; below zero where they are "
    "more."
)


@takes(AttributeRequest)
def attribute(request: AttributeRequest, *, as_json: Json = False) -> None:
    r"""Say what each method, part and depth of a plan saves, and what loss increase it causes.

    \b
    autocompress attribute
    autocompress attribute demo-10x --trial best
    autocompress attribute demo-10x --trial 17 --by role,layer --json
    autocompress attribute ./my-compressed-model --data my-text.txt

    One group of matrices at a time is put back to dense, and the rest is scored again. The matrices
    that cost more of the loss increase than they save of the bytes are those to store with more
    bits.
    """
    from autocompress.api.attribute_function import attribute as run

    found = run(request)
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
    gauge = found.attribution.gauge
    lines = (
        f"{found.source}: {found.plan.summary()}",
        f"  size            {format_bytes(found.bytes)} of {format_bytes(found.dense_bytes)} "
        f"({found.dense_bytes / found.bytes:.3g} times smaller)",
        f"  selection text  increase {total.increase:+.4f}, {gauge.divergence} "
        f"{total.divergence:.4f} {gauge.unit}",
        f"  report text     increase {report.increase:+.4f}, {gauge.divergence} "
        f"{report.divergence:.4f}",
    )
    for line in lines:
        target.print(line, markup=False, soft_wrap=True)
    for grouping in found.attribution.groupings:
        target.print(_table(found.attribution, grouping))
    target.print(EXPLANATION.format(gauge=gauge), markup=False)


def _table(attribution: Attribution, grouping: str) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from autocompress.units import format_bytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"By {grouping}", title_justify="left")
    apart = attribution.gauge.divergence
    columns = ("group", "matrices", "saved", "of all", "increase", "±", apart, "of all")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for each in attribution.by(grouping):
        table.add_row(
            Text(each.group),
            str(each.layers),
            format_bytes(each.bytes_saved),
            f"{each.saved_share:.0%}",
            f"{each.lost.increase:+.4f}",
            "" if each.interval is None else f"{each.interval.half_width:.4f}",
            f"{each.lost.divergence:+.4f}",
            _share(each.lost.divergence, attribution.total.divergence),
        )
    rest = attribution.interaction(grouping)
    share = _share(rest.divergence, attribution.total.divergence)
    own = (f"{rest.increase:+.4f}", "", f"{rest.divergence:+.4f}", share)
    table.add_row("interaction", "", "", "", *own, style="dim")
    return table


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else ""
