"""What is done with the plans that a search has found, before it calls its front final."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from autocompress.crew import Crew
from autocompress.driver.healing import HealedTrial, HealingWork, HealTrial
from autocompress.driver.worker import Desk
from autocompress.errors import AutocompressError, ConfigurationError, DataError, StorageError
from autocompress.judging.against_dense import targets_of
from autocompress.judging.front import best_and_rival, finalists
from autocompress.judging.picking import best_or_none
from autocompress.judging.targets import excess_of
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import Advance, Progress
from autocompress.requests.healing import HealSettings
from autocompress.requests.verbs import SearchRequest
from autocompress.studies.observer import Observer
from autocompress.studies.storage import StoredStudy
from autocompress.studies.study import StudyRecord, TrialRecord
from autocompress.studies.study_store import to_record


@dataclass(frozen=True)
class Finish:
    """How plans are healed at the end of a search, and which.

    Attributes:
        settings: how to heal each; without steps its matrices are only refitted.
        whole_front: all members of the front, or the best plan within the limits alone.
        data: text to heal on; the calibration text when left out.
    """

    settings: HealSettings
    whole_front: bool
    data: str | None = None

    @classmethod
    def of(cls, request: SearchRequest) -> Self | None:
        """What ``--heal STEPS``, ``--heal-data`` and ``--no-refit`` ask for; maybe nothing.

        An effort may want no text to refit the best plan on.

        Raises:
            ConfigurationError: a text to heal on without steps, or steps that cannot be.
        """
        heal, data = request.heal, request.heal_data
        if heal is not None:
            seed = request.seed if heal else 0  # without steps there is nothing to draw
            settings = HealSettings(steps=heal, seed=seed, refit=request.refit)
            return cls(settings, whole_front=True, data=data)
        if data is not None:
            raise ConfigurationError(
                "--heal-data names a text to heal the front on",
                got=data,
                hint="Say with --heal how many steps to heal it for, such as --heal 200.",
            )
        if not (request.refit and request.tokens.refit):
            return None
        return cls(HealSettings(steps=0), whole_front=False)


REGAINED = 0.2  # of the loss, about what refitting wins back


def finish_search(
    study: StoredStudy,
    folder: Path,
    desk: Desk,
    finish: Finish,
    *,
    deadline: float = math.inf,
    observers: Sequence[Observer] = (),
    crew: Crew | None = None,
) -> bool:
    """Heal the best plan of a study, or all of its front and the uniform baseline to compare with.

    Those that have been healed in this way already are left as they are, so a run that was cut off
    goes on. One that cannot be healed is told of, and the others are.

    Args:
        study: as stored.
        folder: its run folder.
        desk: its model and texts.
        finish: what to heal, and how. The best is refitted together with its rival.
        deadline: of ``time.monotonic``, after which the best is not refitted; a front that was
            asked to be healed is.
        observers: told of each new trial.
        crew: heals several at a time where it is idle.

    Returns:
        Whether there are new trials.
    """
    record, session = to_record(study, folder), desk.session
    members = _members(record, finish.whole_front)
    if not members:
        return False
    if not finish.whole_front and time.monotonic() > deadline:
        session.progress.note(
            "No time is left to refit the best plan: the same command with more --time does."
        )
        return False
    try:
        work = HealingWork(study, record, desk, finish.data, finish.settings)
    except DataError as error:
        if finish.whole_front:
            raise
        session.progress.note(f"The best plan is not refitted: {error}")
        return False
    title = "Healing the front" if finish.whole_front else "Refitting the best and its rival"
    with session.progress.task(f"{title} (plans)", len(members)) as advance:
        if crew is not None and crew.idle and len(members) > 1:
            _heal_at_once(work, members, observers, advance, crew)
        else:
            for trial in members:
                with _left_as_it_is(trial, session.progress):
                    work.heal(trial, observers)
                advance(1)
    return len(to_record(study, folder).trials) > len(record.trials)


def _heal_at_once(
    work: HealingWork,
    members: Sequence[TrialRecord],
    observers: Sequence[Observer],
    advance: Advance,
    crew: Crew,
) -> None:
    """Let a crew heal several trials; each is in the study as soon as it is done."""
    progress = work.desk.session.progress

    def keep(number: int, came: HealedTrial | AutocompressError) -> None:
        task = tasks[number]
        with _left_as_it_is(task.source, progress):
            if isinstance(came, AutocompressError):
                raise came
            for note in came.notes:
                progress.note(f"Trial {task.source.number}: {note}")
            work.keep(task, came, observers)
        advance(1)

    tasks = []
    for trial in members:
        if work.known(trial) is None:
            tasks.append(work.task(trial))
            progress.note(work.about(trial))
    advance(len(members) - len(tasks))
    crew.do([_Attempt(task) for task in tasks], keep)


@dataclass(frozen=True)
class _Attempt:
    """Healing a trial, where what keeps it from being healed is no error: a ``Task``."""

    task: HealTrial

    def done_on(self, desk: Desk) -> HealedTrial | AutocompressError:
        """See ``Task``."""
        try:
            return self.task.done_on(desk)
        except StorageError:
            raise
        except AutocompressError as error:
            return error


@contextmanager
def _left_as_it_is(trial: TrialRecord, progress: Progress) -> Iterator[None]:
    """Say where a trial cannot be healed, and go on; without a place to store there is no going on.

    Raises:
        StorageError: nothing can be stored.
    """
    try:
        yield
    except StorageError:
        raise
    except AutocompressError as error:
        progress.note(f"Trial {trial.number} stays as it is: {error}")


def _members(record: StudyRecord, whole_front: bool) -> list[TrialRecord]:
    """The trials to heal, uniform baselines included: plans are compared healed.

    Those of the front; or only the best where there are limits to be the best within, under a
    target of quality a smaller one that just misses it, and not what was healed in any way before.
    """
    unhealed = record.unhealed
    trials: Iterable[TrialRecord] = ()
    if whole_front:
        trials = finalists(unhealed)
    elif not record.limits.unlimited:
        done = {trial.healing.of for trial in record.complete if trial.healing}
        wanted = (*best_and_rival(unhealed), *_nearly(unhealed))
        trials = (trial for trial in wanted if trial.number not in done)
    return [trial for trial in trials if _is_compressed(trial.plan)]


def _nearly(record: StudyRecord) -> tuple[TrialRecord, ...]:
    """The smallest trial that may keep a quality once it is refitted, where it misses it now."""
    if not record.limits.asks_quality:
        return ()
    best = best_or_none(record)
    smaller = [
        trial
        for trial in record.complete
        if (best is None or trial.bytes < best.bytes)
        and not trial.baselines
        and excess_of(targets_of(record, trial)) <= REGAINED
    ]
    return tuple(sorted(smaller, key=lambda trial: trial.bytes)[:1])


def _is_compressed(plan: Plan) -> bool:
    return any(not isinstance(method, Keep) for method in plan.values())
