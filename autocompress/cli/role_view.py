"""Bytes by the roles of the matrices as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.judging.by_role import RoleBytes
from autocompress.units import format_bytes

WIDTH_OF_A_FILE = 100  # where stdout is no terminal


def print_by_role(
    roles: Sequence[RoleBytes], dense_bytes: int, stored_bytes: int, console: Console
) -> None:
    """Print a row for each role, and one for all else in the file of weights.

    Args:
        roles: the matrices.
        dense_bytes: of the whole file before.
        stored_bytes: and after.
        console: where to print.
    """
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_OF_A_FILE, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Memory by role")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("role", no_wrap=True)
    # Codes stand for all weights of their matrix; only factors are fewer.
    fewer = any(role.parameters != role.dense_parameters for role in roles)
    for heading in ("matrices", "dense", "now", "ratio", *(["parameters"] if fewer else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("stored as")
    for role in roles:
        table.add_row(
            role.role,
            f"{role.matrices:,}",
            *_bytes(role.dense_bytes, role.bytes),
            *([f"{role.parameters / role.dense_parameters:.0%}"] if fewer else []),
            Text(role.stored_as),
        )
    rest = (
        dense_bytes - sum(role.dense_bytes for role in roles),
        stored_bytes - sum(role.bytes for role in roles),
    )
    blank = [""] if fewer else []
    table.add_row("all else", "", *_bytes(*rest), *blank, "norms, buffers, header", style="dim")
    table.add_row("file", "", *_bytes(dense_bytes, stored_bytes), *blank, "", style="bold")
    console.print(table)


def _bytes(dense: int, stored: int) -> tuple[str, str, str]:
    ratio = f"{dense / stored:.2f}x" if stored else ""
    return format_bytes(dense), format_bytes(stored), ratio
