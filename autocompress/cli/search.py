"""``autocompress search``: from a model and a budget to a front."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from autocompress.cli.cache import limit_cache
from autocompress.cli.output import console, print_json
from autocompress.cli.requesting import CacheLimit, Json, is_typed, takes
from autocompress.paths import shown
from autocompress.requests.base import options_of
from autocompress.requests.verbs import SearchRequest


@takes(SearchRequest)
def search(
    request: SearchRequest,
    ctx: typer.Context,
    *,
    cache_limit: CacheLimit = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would happen and about how long; do nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    r"""Search for the best plan under a budget, and for the whole front around it.

    \b
    autocompress search --budget 10x
    autocompress search --model ./my-model --data my-text.txt --budget 25% --latency 0.8x
    autocompress search --quality 5%
    autocompress search --budget 10x --effort quick --dry-run
    autocompress search --resume demo-10x --trials 100
    autocompress search --budget 10x --heal 200
    autocompress search --budget 10x --workers 2
    autocompress search --budget 10x --engine ray --address auto --workers 8 --gpus-per-trial 1

    Stop it at any time: the same command, or --resume, goes on with every finished trial kept.
    --quality seeks the smallest plan that keeps it, within --budget and --latency if given.
    Exits with 3 when no plan meets every target, and says which is nearest and by how much it
    misses.
    """
    if not dry_run:  # which writes nothing, and removes nothing
        limit_cache(ctx, request.runs_dir, cache_limit)
    if request.resume is not None:
        _check_resumed(ctx, request)
    if dry_run:
        from autocompress.cli.dry_run_view import show_dry_run

        show_dry_run(request, as_json=as_json)
        return
    from autocompress.api.functions import search as run
    from autocompress.cli.front import location_options, write_plots
    from autocompress.cli.front_table import next_command, print_front
    from autocompress.free_memory import peak_memory_bytes
    from autocompress.judging.front import front_to_dict
    from autocompress.judging.picking import best_or_none, nearest_to_the_limits, pick
    from autocompress.tracking.mlflow_client import how_to_browse
    from autocompress.units import format_bytes

    record = run(request)
    files = write_plots(record, None, None)
    if as_json:
        written = {name: str(path) for name, path in files.items()}
        print_json(front_to_dict(record) | written | {"peak_memory_bytes": peak_memory_bytes()})
    else:
        print_front(record, console)
        if (peak := peak_memory_bytes()) is not None:
            console.print(f"This process has held {format_bytes(peak)} of memory at most.")
    options = location_options(request.runs_dir, request.storage)
    best = best_or_none(record)
    if best is None:
        near = nearest_to_the_limits(record)
        if near is not None and not as_json:
            command = next_command(record, near, options=options)
            console.print(f"\nNext, for the nearest:\n  {command}", markup=False, soft_wrap=True)
        pick(record, "best")  # says which limit was missed and by how much
    if as_json:
        return
    console.print(
        "\nNext:",
        f"  {next_command(record, best, options=options)}",
        f"  autocompress front {record.name} --pick knee{options}    other points of the front",
        f"  open {shlex.quote(shown(files['html']))}" if "html" in files else "",
        f"  {how_to_browse(request.tracking_uri)}    every trial" if request.track else "",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def _check_resumed(ctx: typer.Context, request: SearchRequest) -> None:
    """Refuse settings beside --resume, also those that are typed as they are by default.

    Raises:
        ConfigurationError: one that the study does not have.
    """
    from autocompress.driver.estimate.looking_up import study_to_resume
    from autocompress.driver.going_on import refuse_other_settings

    names = options_of(SearchRequest)
    given = {name: ctx.params[name] for name in names if is_typed(ctx, name)}
    refuse_other_settings(study_to_resume(request), given)
