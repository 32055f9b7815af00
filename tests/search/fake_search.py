"""Searches over four small matrices whose measurements are a formula, not a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from autocompress.calibration.menu import LayerMenu, Menu, Option, file_bytes
from autocompress.evaluation.scoring import Teacher
from autocompress.evaluation.windows import Windows
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.records import Measurement
from autocompress.search.driver import Search
from autocompress.search.evaluator import Evaluator, ScoredText
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.search.study_store import create_study, default_storage, load_optuna_study
from autocompress.surgery.inventory import Inventory
from autocompress.units import Limits
from tests.search.menus import layer_spec
from tests.search.study_fixtures import study_of

SPECS = tuple(layer_spec(index) for index in range(4))
REST_BYTES = 1000
MOST_ASKED = 500  # far more than any of these searches needs
DENSE_BYTES = REST_BYTES + sum(4 * spec.parameters for spec in SPECS)
INVENTORY = Inventory(SPECS, (), REST_BYTES, DENSE_BYTES, DENSE_BYTES // 4)
METHODS = (*(Quantize(bits, group) for bits in (2, 3, 4, 8) for group in (16, 64)), Keep())
MENU = Menu(
    tuple(
        LayerMenu(
            spec,
            tuple(
                Option(m, m.cost(spec), file_bytes(m, spec), (4 + place) / m.cost(spec) ** 2, 1.0)
                for m in METHODS
            ),
        )
        for place, spec in enumerate(SPECS)
    )
)
Trouble = Callable[[int, Plan], None]


def text(name: str) -> ScoredText:
    return ScoredText(name, cast(Windows, None), cast(Teacher, None))


class FakeEvaluator:
    """Measures a plan by its bytes, remembers what it was asked, and may be told to fail."""

    def __init__(self, trouble: Trouble | None = None, perplexity: float | None = None) -> None:
        self.workbench = SimpleNamespace(inventory=INVENTORY)
        self.asked: list[tuple[str, Plan]] = []
        self.trouble, self.perplexity = trouble, perplexity

    def measure(self, plan: Plan, text: ScoredText, *, latency: bool = True) -> Measurement:
        self.asked.append((text.name, plan))
        if len(self.asked) > MOST_ASKED:
            raise AssertionError("the search does not end")
        if self.trouble is not None and text.name == "selection":
            self.trouble(len(self.selected), plan)
        size = INVENTORY.plan_bytes(plan)
        rise = (DENSE_BYTES / size - 1) / 50
        perplexity = self.perplexity or 16.2 * math.exp(rise)
        return Measurement(
            perplexity, rise, 100, size, 5.0, 0.1, text.name, "cpu (1 threads)", plan.hash
        )

    @property
    def selected(self) -> list[Plan]:
        return [plan for name, plan in self.asked if name == "selection"]

    @property
    def reported(self) -> list[Plan]:
        return [plan for name, plan in self.asked if name == "report"]


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
    dense = {
        name: replace(getattr(record, name), bytes=DENSE_BYTES, latency_ms=5.0)
        for name in ("dense_selection", "dense_report")
    }
    return replace(record, specs=SPECS, dense_bytes=DENSE_BYTES, **dense)


def search_in(
    folder: Path,
    evaluator: FakeEvaluator,
    *,
    ratio: float | None = 8.0,
    observers: tuple[Witness, ...] = (),
    groups: tuple[tuple[str, ...], ...] = (),
    storage: str | None = None,
    correct: Callable[[Plan], Mapping[str, float]] = lambda _plan: {},
) -> Search:
    """Make or load the study of a folder, as a fresh process would."""
    url = default_storage(folder) if storage is None else storage
    if not (folder / "study.json").exists():
        limit = None if ratio is None else int(DENSE_BYTES / ratio)
        create_study(header_of(folder, Limits(limit, None)), url)
    study = load_optuna_study(folder.name, url)
    worker = cast(Evaluator, evaluator)
    texts = text("selection"), text("report")
    return Search(study, folder, worker, MENU, groups, *texts, observers, correct=correct)
