"""Heals what a search has found, at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import optuna

from autocompress.api.finish import Finish
from autocompress.api.healing import HealingWork
from autocompress.api.session import Session
from autocompress.errors import AutocompressError, DataError, StorageError
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.search.evaluator import ScoredText
from autocompress.search.front import best_and_rival, finalists
from autocompress.search.observer import Observer
from autocompress.search.study import StudyRecord, TrialRecord
from autocompress.search.study_store import to_record


def finish_search(
    study: optuna.Study,
    folder: Path,
    session: Session,
    finish: Finish,
    texts: tuple[ScoredText, ScoredText],
    *,
    deadline: float = math.inf,
    observers: Sequence[Observer] = (),
) -> None:
    """Heal the best plan of a study, or all of its front and the hand-written plan to compare with.

    Those that have been healed in this way already are left as they are, so a run that was cut off
    goes on. One that cannot be healed is told of, and the others are.

    Args:
        study: as stored.
        folder: its run folder.
        session: its model and texts.
        finish: what to heal, and how. The best is fitted anew together with its rival.
        texts: the selection and the report text.
        deadline: of ``time.monotonic``, after which the best is not fitted anew; a front that was
            asked to be healed is.
        observers: told of each new trial.
    """
    record = to_record(study, folder)
    members = _members(record, finish.whole_front)
    if not members:
        return
    if not finish.whole_front and time.monotonic() > deadline:
        session.progress.note(
            "No time is left to fit the best plan anew: the same command with more --time does."
        )
        return
    try:
        work = HealingWork(study, record, session, finish.data, finish.settings, texts)
    except DataError as error:
        if finish.whole_front:
            raise
        session.progress.note(f"The best plan is not fitted anew: {error}")
        return
    title = "Healing the front" if finish.whole_front else "Fitting the best and its rival anew"
    with session.progress.task(f"{title} (plans)", len(members)) as advance:
        for trial in members:
            try:
                work.heal(trial, observers)
            except StorageError:
                raise
            except AutocompressError as error:
                session.progress.note(f"Trial {trial.number} stays as it is: {error}")
            advance(1)


def _members(record: StudyRecord, whole_front: bool) -> list[TrialRecord]:
    """The trials to heal, hand-written rivals included: plans are compared healed.

    Those of the front; or only the best where there are limits to be the best within, and not what
    was healed in any way before.
    """
    unhealed = record.unhealed
    trials: Iterable[TrialRecord] = ()
    if whole_front:
        trials = finalists(unhealed)
    elif not record.limits.unlimited:
        done = {trial.healing.of for trial in record.complete if trial.healing}
        trials = (trial for trial in best_and_rival(unhealed) if trial.number not in done)
    return [trial for trial in trials if _is_compressed(trial.plan)]


def _is_compressed(plan: Plan) -> bool:
    return any(not isinstance(method, Keep) for method in plan.values())
