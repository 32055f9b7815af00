"""``autocompress compress``: models to a budget, or by a recipe, without a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.cache import limit_cache
from autocompress.cli.output import console, log, print_json, quieten_libraries
from autocompress.cli.requesting import CacheLimit, takes
from autocompress.errors import ConfigurationError
from autocompress.progress import SILENT
from autocompress.requests.groups import RUNS_DIR
from autocompress.requests.verbs import CompressRequest

if TYPE_CHECKING:
    from autocompress.api.batch import ModelJob, ModelOutcome


@takes(CompressRequest)
def compress(
    request: CompressRequest,
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folders or hub names of dense models; autocompress-demo is bundled.",
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write; with several models, their parent.")
    ],
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            help="Models at a time, each in its own process.",
            show_default="1 for each model, as far as cores go, at most 4; 1 on an accelerator",
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave out models whose folder is finished already."),
    ] = False,
    cache_limit: CacheLimit = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with several models, a list.")
    ] = False,
) -> None:
    r"""Compress models to a budget, a quality or by a recipe, and write them as folders.

    \b
    autocompress compress ./my-model --budget 4x --out my-model-small
    autocompress compress ./my-model --quality 5% --out my-model-small
    autocompress compress ./my-model --recipe recipe.yaml --out my-model-small
    autocompress compress ./one ./two org/three --budget 4x --out small --jobs 2

    A recipe's globs, budget, seed and penalties are described by autocompress validate --help.
    A budget is met by one exact allocation, and a quality by the smallest of some ten; a search
    tries more and finds better. A quality that no plan keeps ends with 3, and the nearest is said.
    The recipe of
    every exported folder is its recipe.yaml. Each folder is loaded again in a fresh process and
    compared with what was measured. Of several models one that fails does not stop the others; the
    exit code is then 1 at the end.
    """
    limit_cache(ctx, request.runs_dir or RUNS_DIR, cache_limit)
    if jobs is not None and jobs < 1:
        raise ConfigurationError("--jobs is too low", got=jobs, wanted="at least 1")
    if len(models) > 1:
        _compress_many(request, models, out, jobs, skip_existing=skip_existing, as_json=as_json)
    else:
        _compress_one(request, models[0], out, skip_existing=skip_existing, as_json=as_json)


def _compress_one(
    request: CompressRequest, model: str, out: Path, *, skip_existing: bool, as_json: bool
) -> None:
    from autocompress.api.batch import ModelJob, ModelOutcome
    from autocompress.api.compressing import compress as run
    from autocompress.api.exporting import is_finished
    from autocompress.cli.tables import print_by_role

    if skip_existing and is_finished(out):
        outcome = ModelOutcome(ModelJob(model, out, request), "skipped")
        print_json(outcome.to_dict()) if as_json else _say(f"{out}: finished already, skipped")
        return
    report = run(replace(request, model=model, out=out)).report
    if as_json:
        print_json(report.to_dict())
        return
    _say(str(report), "")
    print_by_role(report.by_role, report.dense_bytes, report.bytes, console)
    if report.exported is not None:
        load = f"  model, tokenizer = {report.exported.call_to_load}"
        _say("Use it:", "  import autocompress", load)


def _compress_many(
    request: CompressRequest,
    models: list[str],
    out: Path,
    jobs: int | None,
    *,
    skip_existing: bool,
    as_json: bool,
) -> None:
    from autocompress.api.batch import ModelJob, ModelOutcome, default_jobs, places_for, run_jobs
    from autocompress.cli.batch_progress import BatchProgress

    alike = replace(request, progress=SILENT)  # another process tells its own
    every = [ModelJob(model, place, alike) for model, place in places_for(models, out).items()]
    left = _check(every, request, skip_existing=skip_existing)
    processes = jobs or default_jobs(len(left), request.device)
    with BatchProgress(left) as watcher:
        ended = run_jobs(left, processes, watcher, prepare=quieten_libraries)
    known = {outcome.job.model: outcome for outcome in ended}
    outcomes = [known.get(job.model) or ModelOutcome(job, "skipped") for job in every]
    if as_json:
        print_json([outcome.to_dict() for outcome in outcomes])
    else:
        _show(outcomes)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        log.print(f"Error: {outcome.job.model}: {outcome.error}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _check(
    jobs: list[ModelJob], request: CompressRequest, *, skip_existing: bool
) -> list[ModelJob]:
    """Find what is left to do, and what is wrong with all jobs alike, before any is started."""
    from autocompress.api.exporting import is_finished
    from autocompress.deploy.folder import check_free
    from autocompress.driver.goal import read_goal

    read_goal(request)
    finished = [job for job in jobs if is_finished(job.out)]
    if finished and not (skip_existing or request.overwrite):
        raise ConfigurationError(
            f"{len(finished)} of {len(jobs)} models are compressed already",
            got=", ".join(str(job.out) for job in finished),
            hint="Leave them out with --skip-existing, or replace them with --overwrite.",
        )
    left = [job for job in jobs if not (skip_existing and job in finished)]
    for job in left:
        check_free(job.out, request.overwrite)
    return left


def _show(outcomes: list[ModelOutcome]) -> None:
    for outcome in outcomes:
        if outcome.state == "done":
            _say(outcome.summary, "")
        elif outcome.state == "skipped":
            _say(f"{outcome.job.model}: {outcome.job.out} is finished already, skipped", "")
    counts = {
        state: sum(outcome.state == state for outcome in outcomes)
        for state in ("done", "skipped", "failed")
    }
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    _say(f"{len(outcomes)} models: {said}")


def _say(*lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
