"""Which process a running trial belongs to, so that several searches may share a study."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from typing import Any

import optuna
import psutil  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.records import Measurement
from autocompress.studies.study_store import values_of

OWNER = "owner"
# A trial of another machine, which cannot be asked, is given up so long after it started.
SILENCE_SECONDS = 24 * 3600.0
# A trial is without an owner only for the moment between two writes to the storage.
UNOWNED_SECONDS = 10.0
# Two readings of when a process started differ by less, for the clock is adjusted.
CLOCK_SECONDS = 5.0


def own(trial: Trial) -> None:
    """Write down that a trial is run by this process; call it right after asking for the trial."""
    started = psutil.Process().create_time()
    trial.set_user_attr(
        OWNER, {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    )


def end_abandoned(study: optuna.Study) -> int:
    """End the trials whose process is certainly gone, and say how many.

    They have failed, unless the process was gone between the two writes that end a trial: what its
    ``result`` says then stands. Those of a process that lives are left to it: of this machine by
    its id and start, of another until ``SILENCE_SECONDS`` after the trial started.
    """
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
    abandoned = [trial for trial in left if _is_abandoned(trial)]
    for trial in abandoned:  # another search may be doing the same
        values, state = _end_of(trial.user_attrs.get("result"))
        study.tell(trial.number, values, state, skip_if_finished=True)
    return len(abandoned)


def _end_of(result: dict[str, Any] | None) -> tuple[list[float] | None, TrialState | None]:
    """Values and state that a trial with this result is told with, as ``TrialStore`` does."""
    if result is None or "error" in result:
        return None, TrialState.FAIL
    if "selection" not in result:
        return None, TrialState.PRUNED
    measured = Measurement.from_dict(result["selection"])
    return values_of(measured.loss, measured.bytes, measured.latency_ms), None


def _is_abandoned(trial: FrozenTrial) -> bool:
    if trial.datetime_start is None:
        return True
    age = (datetime.now() - trial.datetime_start).total_seconds()  # Optuna writes local time
    owner = trial.user_attrs.get(OWNER)
    if owner is None:
        return age > UNOWNED_SECONDS
    if owner["host"] != socket.gethostname():
        return age > SILENCE_SECONDS
    return not _lives(owner)


def _lives(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < CLOCK_SECONDS
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
