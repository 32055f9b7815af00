"""``autocompress evaluate``: perplexity and lm-eval tasks of a model, dense or compressed."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from autocompress.cli.options import ComputeDtype, Context, Dequantize, FolderBos
from autocompress.cli.output import ConsoleProgress, console, log, print_json, quieten_libraries
from autocompress.errors import StorageError
from autocompress.units import format_bytes


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder (dense or exported) or hub name; without it the bundled model."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text file, hub/name:config:split or bundled; else, of an exported folder, the "
            "report text that it was made with. Any other model needs one."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Only this part of the text, as search cuts it: calibration, selection, report."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Most tokens to score, from the start of the text.")
    ] = 24_576,
    context: Context = None,
    bos: FolderBos = None,
    against: Annotated[
        str | None,
        typer.Option(help="Dense model to measure the KL divergence from, and the speed."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Names of lm-eval tasks, with commas between.")
    ] = None,
    task_folder: Annotated[
        str | None, typer.Option(help="Folder of your own lm-eval task files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples of each task; all when left out.")
    ] = None,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="Time and memory, in turn with the dense model: --against, or what an exported "
            "folder was made from.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where to run, such as cpu or cuda.")] = "cpu",
    compute_dtype: ComputeDtype = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store; task results always go to one.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Allow code that comes with the model to run.")
    ] = False,
    dequantize: Dequantize = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
    quieten_libraries()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    from autocompress.api.evaluating import evaluate as run

    result = run(
        model,
        data=data,
        part=part,
        tokens=tokens,
        context=context,
        bos=bos,
        against=against,
        tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
        task_folder=task_folder,
        limit=limit,
        speed=speed,
        device=device,
        compute_dtype=compute_dtype,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
        progress=ConsoleProgress(),
    )
    if as_json:
        print_json(result)
    else:
        _show(result)
    if result["tasks"] or tracking_uri is not None:
        _track(result, tracking_uri, named=tracking_uri is not None)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from autocompress.cli.speed_view import print_speed

    table = Table(title=f"{result['model']} on {result['device']}", show_header=False)
    table.add_row("size", f"{format_bytes(result['bytes'])} ({result['bytes']:,} bytes)")
    if result["perplexity"] is not None:
        table.add_row("perplexity", f"{result['perplexity']:.4f}")
        begin = f", each window behind {result['begin_token']}" if result["begin_token"] else ""
        table.add_row("tokens", Text(f"{result['tokens']:,} of {result['data']}{begin}"))
    if result["rise"] is not None:
        interval = result["rise_interval"]
        spread = (
            "" if interval is None else f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
        )
        table.add_row("rise", f"{result['rise']:+.4f} nats a token{spread}")
    if result["kl"] is not None:
        table.add_row("KL", f"{result['kl']:.6f} nats a token from {result['against']}")
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

    names = ("bytes", "perplexity", "nll", "kl", "rise", "tokens")
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
