"""``autocompress front``: what a study found, the point that fits, and the picture."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.output import console, log, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.errors import ConfigurationError, StorageError
from autocompress.requests.base import flag_of
from autocompress.requests.verbs import FrontRequest

if TYPE_CHECKING:
    from autocompress.studies.study import StudyRecord, TrialRecord
    from autocompress.units import Limits


@takes(FrontRequest)
def front(
    request: FrontRequest,
    *,
    html: Annotated[
        Path | None, typer.Option(help="Where the plot goes.", show_default="front.html of the run")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Where the picture goes.", show_default="front.png of the run"),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Print the front of a study, pick a point of it, and write the plot as HTML and PNG.

    \b
    autocompress front
    autocompress front my-study --max-size 2MB
    autocompress front my-study --pick knee --html front.html --json
    autocompress front my-study --budget 7x
    autocompress front my-study --quality 5%
    autocompress front my-study --methods

    Trials are ranked by their KL divergence from the dense model on the selection text: of plans
    that lose little, perplexity on a short text tells which is better only by luck. So perplexity
    need not fall from one plan of the front to the next larger one.

    A limit given here takes the place of the study's own. --quality picks the smallest trial that
    keeps it, of any size unless --max-size is given. Exits with 3 when no trial is within the
    limits.
    """
    from autocompress.studies.study_store import read_study

    record = read_study(request.study, Path(request.runs_dir), request.storage)
    if request.budget is not None:
        _refuse_beside_a_budget(request, html, png)
        _predict(record, request.budget, as_json=as_json)
        return
    asked = _limits(record, request)
    picked = _pick(record, request, asked)
    if as_json:
        files = write_plots(record, html, png)
        print_json(_as_dict(record, picked, asked, files, methods=request.methods))
        return
    choosing = request.pick is not None or not asked.unlimited or bool(request.max_perplexity)
    if request.methods:
        _show_methods(record)
    if choosing or not request.methods:
        _show(record, picked, asked, location_options(request.runs_dir, request.storage))
    if choosing and picked is not None:
        _show_memory(record, picked)
    files = write_plots(record, html, png)
    for path in files.values():
        log.print(f"Wrote {path}", markup=False, soft_wrap=True)


def _refuse_beside_a_budget(request: FrontRequest, *pictures: Path | None) -> None:
    names = ("pick", "max_size", "max_latency", "quality", "max_perplexity", "methods")
    given = {name: getattr(request, name) for name in names}
    given |= dict(zip(("html", "png"), pictures, strict=True))
    if named := [flag_of(name) for name, value in given.items() if value not in (None, False)]:
        raise ConfigurationError(
            f"--budget allocates a new plan and takes no {named[0]}",
            hint="Leave one of them out; --max-size picks among the measured trials.",
        )


def _predict(study: StudyRecord, budget: str, *, as_json: bool) -> None:
    from autocompress.api.predicting import predict_plan
    from autocompress.cli.tables import print_predicted

    predicted = predict_plan(study, budget)
    if as_json:
        print_json(predicted.to_dict())
    else:
        print_predicted(predicted, console)


def _limits(study: StudyRecord, request: FrontRequest) -> Limits:
    """What a trial is to be picked by."""
    from autocompress.units import Budget

    size = _parse("--max-size", request.max_size, study)
    return replace(
        Budget.parse(quality=request.quality).limits(study.dense_bytes, 0.0),
        memory_bytes=None if size is None else int(size),
        latency_ms=_parse("--max-latency", request.max_latency, study),
    )


def _pick(study: StudyRecord, request: FrontRequest, asked: Limits) -> TrialRecord | None:
    from autocompress.judging.picking import best_or_none
    from autocompress.judging.picking import pick as pick_trial

    how, max_perplexity = request.pick, request.max_perplexity
    if how is None and asked.unlimited and max_perplexity is None:
        return best_or_none(study)  # a study without one still has a front to look at
    return pick_trial(
        study,
        how or "best",
        max_bytes=asked.memory_bytes,
        worst_figure=max_perplexity,
        max_latency_ms=asked.latency_ms,
        max_increase=asked.log_perplexity_increase,
        min_cosine=asked.cosine,
    )


def _parse(option: str, text: str | None, study: StudyRecord) -> float | None:
    """A limit in bytes or milliseconds, relative ones against the study's dense model."""
    from autocompress.units import Budget

    if text is None:
        return None
    try:
        budget = Budget.parse(memory=text) if option == "--max-size" else Budget.parse(latency=text)
    except ConfigurationError as error:
        what = error.what.replace("--budget", option).replace("--latency", option)
        raise ConfigurationError(
            what, got=error.got, wanted=error.wanted, hint=error.hint
        ) from error
    dense_latency = study.dense_report.latency_ms or study.dense_selection.latency_ms
    if budget.latency_share is not None and dense_latency is None:
        raise ConfigurationError(
            f"{option} is relative, but study {study.name} has no latency of the dense model",
            got=repr(text),
            wanted="milliseconds, such as 6ms",
        )
    limits = budget.limits(study.dense_bytes, dense_latency or 0.0)
    return limits.memory_bytes if option == "--max-size" else limits.latency_ms


def _show(study: StudyRecord, picked: TrialRecord | None, asked: Limits, options: str) -> None:
    from autocompress.cli.front_table import next_command, print_front
    from autocompress.judging.against_dense import describe, targets_of

    print_front(study, console, picked)
    if picked is not None:
        console.print(f"\nPicked {describe(study, picked)}", markup=False, soft_wrap=True)
        for verdict in targets_of(study, picked, asked):
            console.print(f"  {verdict}", markup=False, soft_wrap=True)
        console.print(
            f"Next: {next_command(study, picked, options=options)}", markup=False, soft_wrap=True
        )


def _show_memory(study: StudyRecord, picked: TrialRecord) -> None:
    from autocompress.cli.tables import print_by_role
    from autocompress.judging.by_role import plan_by_role

    roles = plan_by_role(study.specs, picked.plan)
    print_by_role(roles, study.dense_bytes, picked.bytes, console)


def _show_methods(study: StudyRecord) -> None:
    from autocompress.cli.method_table import print_methods
    from autocompress.judging.front import front_of
    from autocompress.judging.method_report import report_methods
    from autocompress.judging.method_rivals import stored_offers

    reports = report_methods(study, stored_offers(study))
    print_methods(reports, len(front_of(study)), console, study.gauge)


def location_options(runs_dir: str | Path, storage: str | None) -> str:
    """What the next command must repeat to find the study."""
    options = "" if runs_dir == Path("runs") else f" --runs-dir {shlex.quote(str(runs_dir))}"
    return options + (f" --storage {shlex.quote(storage)}" if storage else "")


def _as_dict(
    study: StudyRecord,
    picked: TrialRecord | None,
    asked: Limits,
    files: dict[str, Path],
    *,
    methods: bool,
) -> dict[str, Any]:
    from autocompress.judging.against_dense import targets_of
    from autocompress.judging.by_role import plan_by_role
    from autocompress.judging.front import front_to_dict, point_to_dict
    from autocompress.judging.method_report import report_methods
    from autocompress.judging.method_rivals import stored_offers

    chosen = None if picked is None else point_to_dict(study, picked)
    if picked is not None and chosen is not None:
        chosen["by_role"] = [role.to_dict() for role in plan_by_role(study.specs, picked.plan)]
    if picked is not None and chosen is not None and not asked.unlimited:
        chosen["targets"] = [verdict.to_dict() for verdict in targets_of(study, picked, asked)]
    reports = report_methods(study, stored_offers(study)) if methods else ()
    return (
        front_to_dict(study)
        | {"picked": chosen}
        | ({"methods": [report.to_dict(study.gauge) for report in reports]} if methods else {})
        | {name: str(path) for name, path in files.items()}
    )


def write_plots(study: StudyRecord, html: Path | None, png: Path | None) -> dict[str, Path]:
    """Write both pictures; only a file that was named must succeed."""
    from autocompress.pictures.front_plot import write_front_html
    from autocompress.pictures.front_png import write_front_png

    written = {}
    for name, write, path in (("html", write_front_html, html), ("png", write_front_png, png)):
        try:
            written[name] = write(study, path or study.folder / f"front.{name}")
        except StorageError as error:
            if path is not None:
                raise
            log.print(f"Warning: {error}", markup=False, soft_wrap=True)
    return written
