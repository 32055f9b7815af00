"""``autocompress search --dry-run``: what a search will do, how long it may take, and none of it.

The model and the texts are read, what is in the cache is looked up, and some seconds are spent on
probes (``probes.py``). Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.driver.estimate.looking_up import (
    Cached,
    look_up_cache,
    look_up_study,
    open_reading,
    options_to_time,
    study_to_resume,
)
from autocompress.driver.estimate.probes import probe
from autocompress.driver.estimate.trial_list import ExpectedTrial, expected_trials
from autocompress.driver.estimate.work import Fits, Forecast, Work, finalists_of
from autocompress.driver.finish import Finish
from autocompress.driver.opening import Opened, going_on, open_search
from autocompress.driver.proposing.reach import smallest_model_bytes, what_stays
from autocompress.driver.stages import predict_stages
from autocompress.errors import DataError
from autocompress.evaluation.corpus import PARTS
from autocompress.free_memory import peak_memory_bytes
from autocompress.healing.heal_plan import healing_text, refit_tokens
from autocompress.methods.keep import Keep
from autocompress.records import LayerSpec, Skipped
from autocompress.requests.verbs import SearchRequest
from autocompress.session.left_dense import unreached_of
from autocompress.session.session import Session
from autocompress.space.space import Space


@dataclass(frozen=True)
class Matrices:
    """The matrices of one role and shape.

    Attributes:
        role: what they do.
        shape: ``(out, in)``.
        count: how many there are.
        options: of each.
    """

    role: str
    shape: tuple[int, int]
    count: int
    options: int


@dataclass(frozen=True)
class UsedText:
    """One text: what it is for, where it is from, how many tokens and windows of it are used."""

    name: str
    source: str
    tokens: int
    windows: int


@dataclass(frozen=True)
class DryRun:
    """What a search would do.

    Attributes:
        model: what is searched.
        dense_bytes: of the dense model.
        space: the search space.
        matrices: by role and shape.
        skipped: how many modules stay as they are.
        texts: calibration, selection and report.
        study: name of the study.
        folder: its run folder.
        storage: URL of its storage.
        finished_trials: that it has already; ``None`` for a new study.
        trials: that will be run, by phase.
        ruled_out: how many of them are over the budget by their bytes, and are not measured.
        limit_bytes: the byte limit, if there is one.
        least_bytes: of the smallest plan in the space.
        cached: what need not be computed again.
        stages: predicted time and memory.
        time_limit: after which no trial starts.
        patience: searched trials without growth that end it sooner.
        unreached: matrices that the calibration text does not reach, with the reason.
        what_stays: what keeps the smallest plan from being smaller, in words.
    """

    model: str
    dense_bytes: int
    space: str
    matrices: tuple[Matrices, ...]
    skipped: int
    texts: tuple[UsedText, ...]
    study: str
    folder: Path
    storage: str
    finished_trials: int | None
    trials: dict[str, int]
    ruled_out: int
    limit_bytes: int | None
    least_bytes: int
    cached: Cached
    stages: tuple[Forecast, ...]
    time_limit: str | float | None
    patience: int | None
    unreached: tuple[Skipped, ...] = ()
    what_stays: str = ""

    @property
    def options(self) -> int:
        """Number of options over all matrices."""
        return sum(group.count * group.options for group in self.matrices)

    @property
    def reachable(self) -> bool:
        """Whether some plan is within the byte limit."""
        return self.limit_bytes is None or self.least_bytes <= self.limit_bytes

    @property
    def seconds(self) -> float:
        """About how long all stages take together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        """About the most memory that the process holds."""
        return max(stage.memory_bytes for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON; times and memory are estimates."""
        more = ("options", "reachable", "seconds", "memory_bytes")
        return asdict(self) | {name: getattr(self, name) for name in more}


def dry_run(request: SearchRequest) -> DryRun:
    """Say what ``run_search`` would do; write nothing.

    Raises:
        ConfigurationError: as the search itself.
    """
    if request.resume is not None:
        request = going_on(request, study_to_resume(request), request.storage)
    opened = open_search(request, open_reading, look_up_study)
    session, space, record = opened.session, opened.space, opened.study
    request, finish, level = opened.request, opened.finish, opened.request.level
    inventory, effort = session.workbench.inventory, opened.effort
    limits = opened.budget.limits(inventory.dense_bytes, 1.0)
    limit = limits.memory_bytes
    least = smallest_model_bytes(space, inventory)
    expected = expected_trials(inventory, limits, least, effort.trials, space, effort.planned)
    done = 0 if record is None else sum(trial.state != "failed" for trial in record.trials)
    left = expected[done:]
    cached, missing = look_up_cache(
        session, space, level, fit_all=request.fit_all, begun=bool(done)
    )
    timed = None if limits.latency_ms is None else options_to_time(session, space)
    work = _work(opened, left, missing, cached, timed)
    if finish is not None and (finish.whole_front or not limits.unlimited):
        heal = finish.settings
        work = replace(
            work,
            healed=finalists_of(effort.trials) if finish.whole_front else 2,
            refit_tokens=_refit_tokens(session, finish),
            healing_tokens=heal.steps * heal.tokens,
        )
    with request.progress.task("Probing this machine"):
        stages = predict_stages(work, probe(session, opened.whole))
    return DryRun(
        model=session.loaded.source,
        dense_bytes=inventory.dense_bytes,
        space=space.name,
        matrices=_matrices(inventory.layers, space),
        skipped=len(inventory.skipped),
        texts=_texts(session),
        study=opened.name,
        folder=opened.folder,
        storage=opened.url,
        finished_trials=None if record is None else done,
        trials=dict(Counter(trial.phase for trial in left)),
        ruled_out=sum(trial.ruled_out for trial in left),
        limit_bytes=limit,
        least_bytes=least,
        cached=cached,
        stages=stages,
        time_limit=request.time,
        patience=request.patience,
        unreached=unreached_of(session),
        what_stays=what_stays(space, inventory),
    )


def _refit_tokens(session: Session, finish: Finish) -> int:
    """How many tokens matrices will be refitted on; none where the text is too short."""
    try:
        _, ids = healing_text(session, finish.data, finish.settings)
    except DataError:
        return 0
    return min(len(ids), refit_tokens(session)) * finish.settings.refit


def _matrices(specs: tuple[LayerSpec, ...], space: Space) -> tuple[Matrices, ...]:
    counts = Counter((spec.role.value, spec.shape, len(space.options(spec))) for spec in specs)
    return tuple(
        Matrices(role, shape, count, options) for (role, shape, options), count in counts.items()
    )


def _texts(session: Session) -> tuple[UsedText, ...]:
    used = []
    for name in PARTS:
        ids = getattr(session, f"{name}_ids")
        windows = len(session.windows(ids))
        used.append(UsedText(name, session.texts.names[name], len(ids), windows))
    return tuple(used)


def _work(
    opened: Opened, trials: list[ExpectedTrial], missing: Fits, cached: Cached, timed: int | None
) -> Work:
    session, request = opened.session, opened.request
    inventory = session.workbench.inventory
    limit = opened.budget.limits(inventory.dense_bytes, 1.0).memory_bytes
    measured = [trial for trial in trials if not trial.ruled_out]
    built: Fits = Counter()
    for trial in measured:
        for spec in inventory.layers if trial.plan else ():
            method = trial.plan.get(spec.name, Keep()) if trial.plan else Keep()
            if method != Keep():
                built[spec.shape, method.name] += 1
    matrices = len(inventory.layers)
    pricing_tokens = min(session.tokens.pricing, len(session.calibration_ids))
    return Work(
        specs=inventory.layers,
        vocabulary=session.loaded.model.config.get_text_config().vocab_size,
        row_bytes=session.objective.row_bytes(session.loaded.model),
        context=session.context,
        calibration_tokens=0 if cached.statistics == matrices else len(session.calibration_ids),
        fits=missing,
        timed=timed,
        pricings=request.level.rounds if pricing_tokens and measured else 0,
        pricing_tokens=pricing_tokens,
        selection_tokens=len(session.selection_ids),
        report_tokens=len(session.report_ids),
        new=opened.study is None,
        trials=len(measured),
        workers=request.workers,
        built=built,
        plan_bytes=limit or inventory.dense_bytes // 4,
        held_bytes=peak_memory_bytes() or 0,
        threads=torch.get_num_threads(),
    )
