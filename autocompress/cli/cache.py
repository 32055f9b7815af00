"""``autocompress cache``: what is kept to be quick the second time, and its removal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.output import console, log, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.errors import ConfigurationError
from autocompress.requests.groups import PlaceRequest

if TYPE_CHECKING:
    from autocompress.store_contents import Held


@takes(PlaceRequest)
def cache(
    request: PlaceRequest,
    *,
    empty: Annotated[
        bool, typer.Option("--empty", help="Remove what the other options leave to remove.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Only of this model, as the table calls it or by its fingerprint. "
            "May be given several times."
        ),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Only what was not used for so long, such as 12h or 90m.")
    ] = None,
    down_to: Annotated[
        str | None,
        typer.Option(help="Remove the least recently used first, down to this size, such as 5GB."),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Show what the cache of a runs folder holds by model and kind, or empty it.

    \b
    autocompress cache
    autocompress cache --empty --older-than 48h
    autocompress cache --empty --model ./my-model
    autocompress cache --empty --down-to 5GB

    The cache holds statistics of the calibration text, built layers and what was seen of them.
    Studies are not in it: all of it can be computed again, and a search that runs must not be
    robbed of it. `--cache-limit` of search, compress and profile does this at their end.
    """
    from autocompress.store_contents import contents, remove
    from autocompress.units import parse_duration, parse_size

    root = _root(request.runs_dir)
    age = None if older_than is None else parse_duration(older_than, "--older-than")
    size = None if down_to is None else parse_size(down_to, "--down-to")
    held = contents(root)
    known = {name for each in held for name in (each.model, each.fingerprint)}
    missing = [name for name in model or () if name not in known]
    if missing:
        raise ConfigurationError(
            "--model names none that the cache holds",
            got=missing[0],
            wanted=" or ".join(sorted({each.model for each in held})) or "nothing: it is empty",
        )
    if not empty and (age is not None or size is not None):
        option = "--older-than" if age is not None else "--down-to"
        raise ConfigurationError(f"{option} says what to remove", hint="Add --empty to remove it.")
    if empty:
        removed = remove(root, models=model or (), older_than=age, down_to=size)
        _show_removed(removed, sum(each.bytes for each in contents(root)), root, as_json=as_json)
        return
    shown = [each for each in held if not model or {each.model, each.fingerprint} & set(model)]
    if as_json:
        print_json({"folder": str(root), "held": [each.to_dict() for each in shown]})
    else:
        _show(shown, root)


def _root(runs_dir: str | Path) -> Path:
    from autocompress.store import CACHE

    return Path(runs_dir).expanduser().absolute() / CACHE


def limit_cache(ctx: typer.Context, runs_dir: str | Path, limit: str | None) -> None:
    """Hold the cache to ``--cache-limit`` when the command ends, however it ends.

    Raises:
        ConfigurationError: no size.
    """
    if limit is None:
        return
    from autocompress.store_contents import remove
    from autocompress.units import format_bytes, parse_size

    size, root = parse_size(limit, "--cache-limit"), _root(runs_dir)

    def trim() -> None:
        removed = remove(root, down_to=size)
        if removed:
            log.print(f"Removed {format_bytes(removed)} from {root} (--cache-limit).", markup=False)

    ctx.call_on_close(trim)


def _show_removed(removed: int, left: int, root: Path, *, as_json: bool) -> None:
    from autocompress.units import format_bytes

    if as_json:
        print_json({"folder": str(root), "removed_bytes": removed, "left_bytes": left})
        return
    text = f"Removed {format_bytes(removed)} from {root}; {format_bytes(left)} are left."
    console.print(text, markup=False, soft_wrap=True)


def _show(held: list[Held], root: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from autocompress.units import about, format_bytes

    if not held:
        console.print(f"{root} holds nothing.", markup=False, soft_wrap=True)
        return
    table = Table("model", "fingerprint", "kind", "files", "size", "last used", box=None)
    now = time.time()
    for each in held:
        cells = (
            each.model,
            each.fingerprint,
            each.kind,
            f"{each.files:,}",
            format_bytes(each.bytes),
            f"{about(max(now - each.used, 0))} ago",
        )
        table.add_row(*map(Text, cells))
    total = sum(each.bytes for each in held)
    console.print(f"{root}: {format_bytes(total)}", markup=False, soft_wrap=True)
    console.print(table)
