"""``autocompress compress``: models to a budget, or by a recipe, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.cache import limit_cache
from autocompress.cli.options import (
    RUNS_DIR,
    Bos,
    CacheLimit,
    CalibrationData,
    ComputeDtype,
    Context,
    Data,
    Dequantize,
    Device,
    Effort,
    FitAll,
    KeptLayers,
    Layers,
    Methods,
    Overwrite,
    Quality,
    ReportData,
    RunsDir,
    SeedOrRecipes,
    SelectionData,
    SpaceOrRecipes,
    TrustRemoteCode,
    Unreached,
)
from autocompress.cli.output import ConsoleProgress, console, log, print_json, quieten_libraries
from autocompress.errors import ConfigurationError

if TYPE_CHECKING:
    from autocompress.api.batch import Job, Outcome


def compress(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folders or hub names of dense models; autocompress-demo is bundled.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write; with several models, their parent.")
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="A YAML file that says which layers are stored how; the others stay dense, or "
            "share what a --budget or the recipe's own leaves.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Most bytes of each stored model: 4x, 25%, 1.6MB, 2GiB."),
    ] = None,
    quality: Quality = None,
    effort: Effort = "normal",
    fit_all: FitAll = False,
    space: SpaceOrRecipes = None,
    methods: Methods = None,
    layers: Layers = None,
    keep: KeptLayers = None,
    unreached: Unreached = "keep",
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
    data: Data = None,
    calibration_data: CalibrationData = None,
    selection_data: SelectionData = None,
    report_data: ReportData = None,
    context: Context = None,
    bos: Bos = True,
    device: Device = "cpu",
    compute_dtype: ComputeDtype = None,
    trust_remote_code: TrustRemoteCode = False,
    dequantize: Dequantize = False,
    runs_dir: RunsDir = RUNS_DIR,
    cache_limit: CacheLimit = None,
    seed: SeedOrRecipes = None,
    overwrite: Overwrite = False,
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
    quieten_libraries()
    limit_cache(ctx, runs_dir, cache_limit)
    if jobs is not None and jobs < 1:
        raise ConfigurationError("--jobs is too low", got=jobs, wanted="at least 1")
    arguments = {
        "recipe": recipe,
        "budget": budget,
        "quality": quality,
        "effort": effort,
        "fit_all": fit_all,
        "space": space,
        "methods": methods,
        "layers": layers,
        "keep": keep,
        "unreached": unreached,
        "data": data,
        "calibration_data": calibration_data,
        "selection_data": selection_data,
        "report_data": report_data,
        "context": context,
        "bos": bos,
        "device": device,
        "compute_dtype": compute_dtype,
        "trust_remote_code": trust_remote_code,
        "dequantize": dequantize,
        "runs_dir": runs_dir,
        "seed": seed,
        "overwrite": overwrite,
    }
    if len(models) > 1:
        _compress_many(models, out, arguments, jobs, skip_existing=skip_existing, as_json=as_json)
    else:
        _compress_one(models[0], out, arguments, skip_existing=skip_existing, as_json=as_json)


def _compress_one(
    model: str, out: Path, arguments: dict[str, Any], *, skip_existing: bool, as_json: bool
) -> None:
    from autocompress.api.batch import Job, Outcome
    from autocompress.api.compressing import compress as run
    from autocompress.api.exporting import is_finished
    from autocompress.cli.role_view import print_by_role

    if skip_existing and is_finished(out):
        outcome = Outcome(Job(model, out), "skipped")
        print_json(outcome.to_dict()) if as_json else _say(f"{out}: finished already, skipped")
        return
    report = run(model, out=out, progress=ConsoleProgress(), **arguments).report
    if as_json:
        print_json(report.to_dict())
        return
    _say(str(report), "")
    print_by_role(report.by_role, report.dense_bytes, report.bytes, console)
    if report.exported is not None:
        load = f"  model, tokenizer = {report.exported.call_to_load}"
        _say("Use it:", "  import autocompress", load)


def _compress_many(
    models: list[str],
    out: Path,
    arguments: dict[str, Any],
    jobs: int | None,
    *,
    skip_existing: bool,
    as_json: bool,
) -> None:
    from autocompress.api.batch import Job, Outcome, default_jobs, places_for, run_jobs
    from autocompress.cli.batch_progress import BatchProgress

    every = [Job(model, place, arguments) for model, place in places_for(models, out).items()]
    left = _check(every, skip_existing=skip_existing)
    processes = jobs or default_jobs(len(left), arguments["device"])
    with BatchProgress(left) as watcher:
        ended = run_jobs(left, processes, watcher, prepare=quieten_libraries)
    known = {outcome.job.model: outcome for outcome in ended}
    outcomes = [known.get(job.model) or Outcome(job, "skipped") for job in every]
    if as_json:
        print_json([outcome.to_dict() for outcome in outcomes])
    else:
        _show(outcomes)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        log.print(f"Error: {outcome.job.model}: {outcome.error}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _check(jobs: list[Job], *, skip_existing: bool) -> list[Job]:
    """Find what is left to do, and what is wrong with all jobs alike, before any is started."""
    from autocompress.api.exporting import is_finished
    from autocompress.deploy.folder import check_free
    from autocompress.driver.target import read_target
    from autocompress.space.selection import Selection

    arguments = jobs[0].arguments
    selection = Selection.of(arguments["methods"], arguments["layers"], arguments["keep"])
    names = ("recipe", "budget", "space", "seed", "quality", "unreached", "effort", "fit_all")
    recipe, budget, space, seed, quality, *more = (arguments[name] for name in names)
    read_target(recipe, budget, space, seed, selection, quality, *more)
    finished = [job for job in jobs if is_finished(job.out)]
    if finished and not (skip_existing or arguments["overwrite"]):
        raise ConfigurationError(
            f"{len(finished)} of {len(jobs)} models are compressed already",
            got=", ".join(str(job.out) for job in finished),
            hint="Leave them out with --skip-existing, or replace them with --overwrite.",
        )
    left = [job for job in jobs if not (skip_existing and job in finished)]
    for job in left:
        check_free(job.out, arguments["overwrite"])
    return left


def _show(outcomes: list[Outcome]) -> None:
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
