"""``autocompress profile``: which matrices are sensitive, and to what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.cache import limit_cache
from autocompress.cli.output import console, log, print_json
from autocompress.cli.requesting import CacheLimit, takes
from autocompress.requests.verbs import ProfileRequest

if TYPE_CHECKING:
    from autocompress.calibration.profile import Profile


@takes(ProfileRequest)
def profile(
    request: ProfileRequest,
    ctx: typer.Context,
    *,
    cache_limit: CacheLimit = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Where the plot goes.", show_default="profile.html of the runs"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with every option.")
    ] = False,
) -> None:
    r"""Measure how sensitive each matrix is, by role and depth.

    \b
    autocompress profile
    autocompress profile ./my-model --data my-text.txt --html sensitivity.html

    Loss increase is the predicted increase of the loss in nats per token, the least of the options
    that store the matrix in so many times fewer bytes. A later search on the same model and text
    starts from what is measured here.
    """
    limit_cache(ctx, request.runs_dir, cache_limit)
    from autocompress.api.functions import profile as run
    from autocompress.pictures.profile_plot import write_profile_html

    result = run(request)
    path = write_profile_html(result, html or Path(request.runs_dir) / "profile.html")
    if as_json:
        print_json(result.to_dict() | {"html": str(path)})
    else:
        _print_table(result)
    log.print(f"Wrote {path}", markup=False, soft_wrap=True)


def _print_table(profile: Profile) -> None:
    from rich import box
    from rich.table import Table

    from autocompress.calibration.profile import RATIOS, best_at
    from autocompress.session.left_dense import summary_of

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"Sensitivity of {profile.model}, nats per token"
    )
    table.title_justify = "left"
    for name in ("layer", "role", "block", "shape"):
        table.add_column(name, no_wrap=True)
    for ratio in RATIOS:
        table.add_column(f"at {ratio}x", justify="right", no_wrap=True)
    table.add_column(f"best at {RATIOS[-2]}x", no_wrap=True)
    table.add_column("cosine", justify="right")
    for layer in profile.menu.layers:
        spec = layer.spec
        options = [best_at(layer, ratio) for ratio in RATIOS]
        best = options[-2]
        table.add_row(
            spec.name + (" (tied)" if spec.tied else ""),
            spec.role.value,
            "" if spec.depth is None else str(spec.depth),
            f"{spec.out_features}x{spec.in_features}",
            *("" if option is None else f"{option.loss_increase:.1e}" for option in options),
            "" if best is None else str(best.method),
            "" if best is None else f"{best.cosine:.4f}",
        )
    target = console if console.is_terminal else type(console)(width=140, highlight=False)
    target.print(table)
    if profile.unreached:
        target.print(
            f"no loss increase is known of {summary_of(profile.unreached)}",
            markup=False,
            soft_wrap=True,
        )
    for skipped in profile.skipped:
        target.print(
            f"left as it is: {skipped.name} ({skipped.reason})", markup=False, soft_wrap=True
        )
