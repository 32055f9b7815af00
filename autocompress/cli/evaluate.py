"""``autocompress evaluate``: perplexity and lm-eval tasks of a model, dense or compressed."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from autocompress.cli.output import console, log, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.errors import StorageError
from autocompress.records import Gauge
from autocompress.requests.verbs import EvaluateRequest
from autocompress.units import format_bytes


@takes(EvaluateRequest)
def evaluate(
    request: EvaluateRequest,
    *,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store; task results always go to one.")
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Measure perplexity on a text and speed, and run lm-eval tasks.

    \b
    autocompress evaluate ./compressed --data my_text.txt
    autocompress evaluate ./compressed --against my-org/my-model --json
    autocompress evaluate ./compressed --speed
    autocompress evaluate ./compressed --tasks arc_easy,hellaswag --limit 200
    autocompress evaluate --tasks mine --task-folder ./my_tasks

    With --tasks and without --data or --against only the tasks are run. --speed needs no text: then
    perplexity is left out where none is known.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    from autocompress.api.evaluating import evaluate as run

    result = run(request)
    if as_json:
        print_json(result)
    else:
        _show(result)
    if result["tasks"] or tracking_uri is not None:
        _track(result, tracking_uri, named=tracking_uri is not None)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from autocompress.cli.tables import print_speed

    table = Table(title=f"{result['model']} on {result['device']}", show_header=False)
    table.add_row("size", f"{format_bytes(result['bytes'])} ({result['bytes']:,} bytes)")
    gauge = Gauge(**result["gauge"])
    divergence = result[gauge.divergence.lower()]
    if result[gauge.figure] is not None:
        table.add_row(gauge.figure, f"{result[gauge.figure]:.4f}")
        begin = f", each window behind {result['begin_token']}" if result["begin_token"] else ""
        table.add_row("tokens", Text(f"{result['tokens']:,} of {result['data']}{begin}"))
    if result["increase"] is not None:
        interval = result["increase_interval"]
        spread = (
            "" if interval is None else f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
        )
        table.add_row("increase", f"{result['increase']:+.4f} {gauge.unit}{spread}")
    if divergence is not None:
        shown = f"{divergence:.6f} {gauge.unit} from {result['against']}"
        table.add_row(gauge.divergence, shown)
    console.print(table)
    if result["speed"]:
        print_speed(result["speed"], console)
    if result["tasks"]:
        console.print(_task_table(result["tasks"]))


def _task_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("task", "metric")
    for heading in ("value", "± stderr", "examples"):
        table.add_column(heading, justify="right")
    for row in rows:
        spread = "" if row["stderr"] != row["stderr"] else f"{row['stderr']:.4f}"
        table.add_row(
            row["task"], row["metric"], f"{row['value']:.4f}", spread, str(row["samples"] or "")
        )
    return table


def _track(result: dict[str, Any], uri: str | None, *, named: bool) -> None:
    """Log to MLflow; a store that was not asked for by name must not make the command fail."""
    from autocompress.tracking.evaluation_run import log_evaluation

    names = Gauge(**result["gauge"]).named(
        dict.fromkeys(("bytes", "figure", "loss", "divergence", "increase", "tokens"))
    )
    metrics = {name: float(result[name]) for name in names if result[name] is not None}
    metrics |= {f"{row['task']}/{row['metric']}": row["value"] for row in result["tasks"]}
    if result["speed"]:
        figures = result["speed"]["model"]
        metrics |= {
            f"{kind}_ms": figures[f"{kind}_ms"]["median_ms"]
            for kind in ("decode", "prefill", "first_token")
        }
        metrics |= {
            f"{name}_ratio": value for name, value in (result["speed"]["ratio"] or {}).items()
        }
    params = {name: result[name] for name in ("fingerprint", "device", "data") if result[name]}
    table = {key: [row[key] for row in result["tasks"]] for key in (result["tasks"] or [{}])[0]}
    try:
        place = log_evaluation(uri, result["model"], metrics, params=params, table=table)
    except StorageError as error:
        if named:
            raise
        log.print(str(error), markup=False, soft_wrap=True)
    else:
        log.print(f"Logged to {place}", markup=False, soft_wrap=True)
