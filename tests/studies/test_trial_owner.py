from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.studies import trial_owner
from autocompress.studies.trial_owner import OWNER, SILENCE_SECONDS, end_abandoned, own


@pytest.fixture
def study():
    return optuna.create_study(storage=optuna.storages.InMemoryStorage())


def states(study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials()]


def owned_by(study, **changes):
    """A running trial whose owner is this process with some things changed."""
    trial = study.ask()
    own(trial)
    trial.set_user_attr(OWNER, trial.user_attrs[OWNER] | changes)
    return trial


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_trials_of_a_process_that_lives_are_left_to_it(study):
    trial = owned_by(study)
    assert trial.user_attrs[OWNER]["pid"] == os.getpid()
    assert end_abandoned(study) == 0
    assert states(study) == [TrialState.RUNNING]


def test_the_trials_of_a_process_that_ended_are_failed_and_no_others(study):
    owned_by(study, pid=ended_process())
    owned_by(study)
    owned_by(study, started=1.0)  # another process had this number once
    study.tell(owned_by(study, pid=ended_process()), 1.0)
    assert end_abandoned(study) == 2
    failed, running, also_failed, complete = states(study)
    assert failed == also_failed == TrialState.FAIL
    assert (running, complete) == (TrialState.RUNNING, TrialState.COMPLETE)
    assert end_abandoned(study) == 0


def test_a_process_that_was_killed_and_not_yet_reaped_has_ended(study):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = trial_owner.psutil.Process(child.pid).create_time()
    owned_by(study, pid=child.pid, started=started)
    assert end_abandoned(study) == 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert end_abandoned(study) == 1
    child.communicate()


@pytest.mark.parametrize(
    ("age", "failed"), [(0.9 * SILENCE_SECONDS, 0), (1.1 * SILENCE_SECONDS, 1)]
)
def test_another_machine_may_be_silent_for_so_long(study, age, failed):
    owned_by(study, host="elsewhere", pid=ended_process())
    (trial,) = study._storage.get_all_trials(study._study_id, deepcopy=False)
    trial.datetime_start = datetime.now() - timedelta(seconds=age)
    assert end_abandoned(study) == failed


def test_a_trial_that_has_just_been_asked_for_may_yet_be_owned(study, monkeypatch):
    study.ask()
    assert end_abandoned(study) == 0
    monkeypatch.setattr(trial_owner, "UNOWNED_SECONDS", 0.0)
    assert end_abandoned(study) == 1
