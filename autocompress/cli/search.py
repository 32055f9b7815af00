"""``autocompress search``: from a model and a budget to a front."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

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
    Json,
    KeptLayers,
    Layers,
    Methods,
    Quality,
    ReportData,
    RunsDir,
    SelectionData,
    Space,
    TrustRemoteCode,
    Unreached,
    is_typed,
)
from autocompress.cli.output import ConsoleProgress, console, print_json, quieten_libraries
from autocompress.paths import shown

if TYPE_CHECKING:
    from autocompress.driver.study_choice import Destination


def search(
    ctx: typer.Context,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Most bytes of the stored model: 10x, 25%, 1.6MB, 2GiB."),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency", help="Most time for a decoded token at batch 1: 6ms, or 0.8x of dense."
        ),
    ] = None,
    quality: Quality = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Folder or hub name of a causal language model; else the bundled one."
        ),
    ] = None,
    data: Data = None,
    calibration_data: CalibrationData = None,
    selection_data: SelectionData = None,
    report_data: ReportData = None,
    context: Context = None,
    bos: Bos = True,
    effort: Effort = "normal",
    fit_all: FitAll = False,
    space: Space = "default",
    methods: Methods = None,
    layers: Layers = None,
    keep: KeptLayers = None,
    unreached: Unreached = "keep",
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            help="Trials in all, hand-written plans included.",
            show_default="by effort: 6, 14 or 32",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="End after so long: 90s, 10m, 1h. What plans take is fitted in two fifths of it "
            "at most, and no trial starts that leaves too little time to measure the front.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            help="End when so many searched trials have not moved the front; else never.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the trials: local, or ray.")
    ] = "local",
    workers: Annotated[
        int,
        typer.Option("--workers", help="Trials at a time; from 2 on each in a process of its own."),
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster, host:port or auto; else our own."),
    ] = None,
    gpus_per_trial: Annotated[
        float, typer.Option("--gpus-per-trial", help="GPUs that Ray sets aside for each trial.")
    ] = 0.0,
    heal: Annotated[
        int | None,
        typer.Option(
            "--heal",
            help="Then train the numbers of each plan on the front for so many steps; 0 fits the "
            "matrices of each anew.",
            metavar="STEPS",
        ),
    ] = None,
    heal_data: Annotated[
        str | None,
        typer.Option("--heal-data", help="Text to train them on; else the calibration text."),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="At the end, if --time is left, fit each matrix of the best plan anew, to what "
            "the compressed model gives it.",
        ),
    ] = True,
    sampler: Annotated[
        str, typer.Option("--sampler", help="auto, tpe, nsga2, gp or random.")
    ] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", help="Of the calibration's labels and the sampler.")
    ] = 0,
    study: Annotated[
        str | None,
        typer.Option(
            "--study", help="Name of the study; made up from model and budget when left out."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", help="Go on with this study, by its own settings.", metavar="STUDY"
        ),
    ] = None,
    runs_dir: RunsDir = RUNS_DIR,
    cache_limit: CacheLimit = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Optuna storage: a URL or a .journal file; else SQLite in the run folder.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="MLflow's store or server; else MLflow's own default."),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Mirror the study into MLflow.")
    ] = True,
    device: Device = "cpu",
    compute_dtype: ComputeDtype = None,
    trust_remote_code: TrustRemoteCode = False,
    dequantize: Dequantize = False,
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
    quieten_libraries()
    if not dry_run:  # which writes nothing, and removes nothing
        limit_cache(ctx, runs_dir, cache_limit)
    if resume is not None:
        from autocompress.driver.study_choice import Destination

        _check_resumed(ctx, Destination(resume, runs_dir, storage))
    if dry_run:
        from autocompress.cli.dry_run_view import show_dry_run
        from autocompress.driver.endurance import Endurance
        from autocompress.driver.finish import Finish
        from autocompress.driver.study_choice import Destination, SearchSettings
        from autocompress.session.session import named_texts
        from autocompress.space.selection import Selection

        texts = named_texts(
            *(data, calibration_data, selection_data, report_data),
            context=context,
            bos=bos,
            effort=effort,
        )
        selection = Selection.of(methods, layers, keep)
        show_dry_run(
            SearchSettings(
                *(model, budget, latency, space, sampler, seed),
                device=device,
                compute_dtype=compute_dtype,
                trust_remote_code=trust_remote_code,
                texts=texts,
                selection=selection,
                quality=quality,
                dequantize=dequantize,
                unreached=unreached,
                effort=effort,
                fit_all=fit_all,
            ),
            Destination(resume or study, runs_dir, storage),
            Endurance(trials, time, patience),
            workers=workers,
            engine=engine,
            address=address,
            gpus_per_trial=gpus_per_trial,
            resume=resume is not None,
            finish=Finish.of(heal, heal_data, refit=refit, seed=seed),
            as_json=as_json,
        )
        return
    from autocompress.api.functions import search as run
    from autocompress.cli.front import location_options, write_plots
    from autocompress.cli.front_table import next_command, print_front
    from autocompress.free_memory import peak_memory_bytes
    from autocompress.judging.front import front_to_dict
    from autocompress.judging.picking import best_or_none, nearest_to_the_limits, pick
    from autocompress.tracking.mlflow_client import how_to_browse
    from autocompress.units import format_bytes

    progress = ConsoleProgress()
    record = run(
        model,
        budget,
        latency,
        quality=quality,
        effort=effort,
        fit_all=fit_all,
        space=space,
        methods=methods,
        layers=layers,
        keep=keep,
        unreached=unreached,
        trials=trials,
        time=time,
        patience=patience,
        engine=engine,
        workers=workers,
        address=address,
        gpus_per_trial=gpus_per_trial,
        heal=heal,
        heal_data=heal_data,
        refit=refit,
        sampler=sampler,
        seed=seed,
        data=data,
        calibration_data=calibration_data,
        selection_data=selection_data,
        report_data=report_data,
        context=context,
        bos=bos,
        study=study,
        resume=resume,
        runs_dir=runs_dir,
        storage=storage,
        track=track,
        tracking_uri=tracking_uri,
        device=device,
        compute_dtype=compute_dtype,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
        progress=progress,
    )
    files = write_plots(record, None, None)
    if as_json:
        written = {name: str(path) for name, path in files.items()}
        print_json(front_to_dict(record) | written | {"peak_memory_bytes": peak_memory_bytes()})
    else:
        print_front(record, console)
        if (peak := peak_memory_bytes()) is not None:
            console.print(f"This process has held {format_bytes(peak)} of memory at most.")
    best = best_or_none(record)
    if best is None:
        near, more = nearest_to_the_limits(record), location_options(runs_dir, storage)
        if near is not None and not as_json:
            command = next_command(record, near, options=more)
            console.print(f"\nNext, for the nearest:\n  {command}", markup=False, soft_wrap=True)
        pick(record, "best")  # says which limit was missed and by how much
    if as_json:
        return
    options = location_options(runs_dir, storage)
    console.print(
        "\nNext:",
        f"  {next_command(record, best, options=options)}",
        f"  autocompress front {record.name} --pick knee{options}    other points of the front",
        f"  open {shlex.quote(shown(files['html']))}" if "html" in files else "",
        f"  {how_to_browse(tracking_uri)}    every trial" if track else "",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def _check_resumed(ctx: typer.Context, destination: Destination) -> None:
    """Refuse settings beside --resume, also those that are typed as they are by default.

    Raises:
        ConfigurationError: one that the study does not have.
    """
    from autocompress.driver.estimate.looking_up import resumed
    from autocompress.driver.going_on import refuse_other_settings

    given = {
        name: value
        for name, value in ctx.params.items()
        if is_typed(ctx, name) and name not in ("dry_run", "as_json", "cache_limit")
    }
    refuse_other_settings(resumed(destination), given)
