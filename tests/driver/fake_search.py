"""Searches over four small matrices whose measurements are a formula, not a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.calibration.menu import LayerMenu, Menu, Option
from autocompress.calibration.priced_menu import Price, PricedMenu
from autocompress.driver.driver import Effort, Search
from autocompress.driver.engines.base import Engine
from autocompress.driver.engines.here import Here
from autocompress.driver.proposing.baselines import baseline_plans
from autocompress.driver.proposing.proposer import SWEEP, Proposer
from autocompress.errors import AutocompressError, StorageError
from autocompress.evaluation.jobs import Job, Outcome
from autocompress.evaluation.stages import clearly_worse
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.records import Measurement, WindowScores
from autocompress.studies.storage import default_storage
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.studies.study_store import create_study, load_optuna_study
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.native import NATIVE
from autocompress.units import Limits
from tests.calibration.menus import layer_spec
from tests.studies.study_fixtures import study_of

SPECS = tuple(layer_spec(index) for index in range(4))
REST_BYTES = 1000
WINDOWS = 32
TOKENS = 10  # of a window
MOST_ASKED = 500  # far more than any of these searches needs
DENSE_BYTES = REST_BYTES + sum(4 * spec.parameters for spec in SPECS)
DENSE_PERPLEXITY = 16.2
INVENTORY = Inventory(SPECS, (), REST_BYTES, DENSE_BYTES, DENSE_BYTES // 4)
METHODS = (*(Quantize(bits, group) for bits in (2, 3, 4, 8) for group in (16, 64)), Keep())
MENU = Menu(
    tuple(
        LayerMenu(
            spec,
            tuple(
                Option(
                    m,
                    m.cost(spec),
                    NATIVE.matrix_bytes(m, spec),
                    (4 + place) / m.cost(spec) ** 2,
                    1.0,
                )
                for m in METHODS
            ),
        )
        for place, spec in enumerate(SPECS)
    )
)
BASELINE = len({plan.hash for _, plan in baseline_plans(SPECS, 1 / 8)})
# Trials before the search proper; duplicates are skipped, so that there may be fewer.
PLANNED = BASELINE + 1 + len(SWEEP)
MEASURED = PricedMenu({SPECS[0].name: (Price(0.1, 0.4),), SPECS[1].name: (Price(0.1, 0.025),)})
Trouble = Callable[[int, Plan], None]


def increase_of(plan: Plan) -> float:
    """What a plan costs: the smaller, the more."""
    return (DENSE_BYTES / INVENTORY.plan_bytes(plan) - 1) / 50


def measured(plan: Plan, increase: float, text: str = "selection", windows: int = WINDOWS):
    """A measurement on the first windows; their losses go up and down, whatever the plan."""
    swings = [0.1 * (-1) ** window for window in range(windows)]
    nll = tuple(math.log(DENSE_PERPLEXITY) + increase + swing for swing in swings)
    scores = WindowScores(
        (TOKENS,) * windows, nll, tuple(increase * (1 + swing) for swing in swings)
    )
    return Measurement(
        DENSE_PERPLEXITY * math.exp(increase),
        math.log(DENSE_PERPLEXITY) + increase,
        increase,
        TOKENS * windows,
        INVENTORY.plan_bytes(plan),
        5.0 if windows == WINDOWS else None,
        0.1 if windows == WINDOWS else None,
        text,
        "cpu (1 thread)",
        plan.hash,
        windows=scores,
    )


def raise_at(*counts: int, error: type[BaseException] = StorageError) -> Trouble:
    """Trouble at the jobs of these counts."""

    def trouble(count: int, _plan: Plan) -> None:
        if count in counts:
            raise error(f"broken {count}")

    return trouble


class FakeEvaluator:
    """Does jobs by a formula, remembers what it was asked, and may be told to fail.

    Plans in ``bad`` cost twenty times as much as their bytes say.
    """

    def __init__(self, trouble: Trouble | None = None, bad: Callable[[Plan], bool] | None = None):
        self.jobs: list[Job] = []
        self.reported: list[Plan] = []
        self.trouble, self.bad = trouble, bad

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        if len(self.jobs) > MOST_ASKED:
            raise AssertionError("the search does not end")
        if self.trouble is not None:
            try:
                self.trouble(len(self.jobs), job.plan)
            except AutocompressError as error:
                return Outcome(job.number, error=str(error))
        increase = increase_of(job.plan) * (
            20 if self.bad is not None and self.bad(job.plan) else 1
        )
        for stage in job.stages:
            partial = measured(job.plan, increase, windows=stage)
            if clearly_worse(partial.windows.divergence, job.rivals):
                return Outcome(job.number, partial, stage, seconds=1.0)
        return Outcome(job.number, measured(job.plan, increase), seconds=2.0)

    def report(self, trial: TrialRecord) -> Measurement:
        self.reported.append(trial.plan)
        return measured(trial.plan, increase_of(trial.plan), "report")

    @property
    def selected(self) -> list[Plan]:
        return [job.plan for job in self.jobs]


class Crew:
    """An engine of several workers, which end their jobs in another order than they began."""

    idle = False

    def __init__(self, evaluator: FakeEvaluator, workers: int) -> None:
        self.evaluator, self.workers = evaluator, workers
        self.most, self.told = 0, []

    def drive(self, search: Any) -> None:
        out: list[Job] = []
        while True:
            while len(out) < self.workers and not search.finished and (job := search.ask()):
                out.append(job)
            self.most = max(self.most, len(out))
            if not out:
                return
            job = out.pop()  # the latest
            self.told.append(job.number)
            search.tell(self.evaluator.run(job))


class Witness:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def started(self, study: StudyRecord) -> None:
        self.events.append(("started", len(study.trials)))

    def trial_finished(self, study_name: str, trial: TrialRecord) -> None:
        self.events.append((study_name, trial.number))

    def finished(self, study: StudyRecord) -> None:
        self.events.append(("finished", len(study.trials)))


def header_of(folder: Path, limits: Limits) -> StudyRecord:
    record = study_of(limits=limits, folder=folder)
    dense = replace(measured(Plan(()), 0.0), bytes=DENSE_BYTES)
    texts = {"dense_selection": dense, "dense_report": replace(dense, text="report")}
    return replace(record, specs=SPECS, dense_bytes=DENSE_BYTES, **texts)


def search_in(
    folder: Path,
    trials: int,
    *,
    ratio: float | None = 8.0,
    observers: Sequence[Witness] = (),
    groups: tuple[tuple[str, ...], ...] = (),
    storage: str | None = None,
    priced: PricedMenu | None = None,
    menu: Menu = MENU,
    windows: int = 0,
    quality: float | None = None,
    **effort: Any,
) -> Search:
    """Make or load the study of a folder, as a fresh process would.

    A quality is the most log-perplexity increase.
    """
    url = default_storage(folder) if storage is None else storage
    limits = Limits(None if ratio is None else int(DENSE_BYTES / ratio), None, quality)
    if not (folder / "study.json").exists():
        create_study(header_of(folder, limits), url)
    study = load_optuna_study(folder.name, url)
    proposer = Proposer(menu, INVENTORY, limits, groups)
    proposer.priced = priced or PricedMenu()
    return Search(study, folder, proposer, Effort(trials, **effort), windows, observers)


def run_in(
    folder: Path,
    evaluator: FakeEvaluator,
    trials: int,
    engine: Engine | None = None,
    **arguments: Any,
) -> StudyRecord:
    """Search in a folder, one job after the other unless an engine is given."""
    return run_whole(search_in(folder, trials, **arguments), evaluator, engine)


def run_whole(
    search: Search, evaluator: FakeEvaluator, engine: Engine | None = None
) -> StudyRecord:
    """Run the trials, then measure the front on the report text."""
    engine = engine or Here(evaluator.run)
    search.run(engine)
    return search.report(engine, evaluator.report)


def values_of(record: StudyRecord) -> list[tuple[Any, ...]]:
    """What the trials were, without what they took."""
    return [
        (t.number, t.phase, t.label, t.state, t.plan, t.bytes, t.selection, t.params)
        for t in record.trials
    ]
