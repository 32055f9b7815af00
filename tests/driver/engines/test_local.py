from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from autocompress.driver.engines import answering, local
from autocompress.driver.engines.base import AskTell, OpenWorker
from autocompress.driver.engines.here import Here
from autocompress.driver.engines.local import LocalProcesses
from autocompress.errors import AutocompressError, ConfigurationError, TimeIsUp
from tests.driver.engines.fake_ask_tell import (
    Buggy,
    Double,
    FakeAskTell,
    KilledOnce,
    Refused,
    answer_by_formula,
    attempts,
    ends_at_start,
    formula,
    refuses,
    troubled,
    wait_for,
)


def drive(workers: Sequence[OpenWorker], search: AskTell) -> None:
    with closing(LocalProcesses(workers)) as engine:
        engine.drive(search)


def test_one_worker_gives_what_this_process_would():
    here, elsewhere = FakeAskTell(5), FakeAskTell(5)
    Here(answer_by_formula).drive(here)
    drive([formula], elsewhere)
    assert (elsewhere.asked, elsewhere.told) == (here.asked, here.told)
    assert len({job.plan for job in here.asked}) > 1


def test_a_lost_worker_costs_nothing_but_another_try(tmp_path):
    search = FakeAskTell(8, most_at_a_time=2)
    worker = troubled(tmp_path, {1: ("killed", 1), 6: ("bug", 1)})
    drive([worker, worker], search)
    assert search.numbers == list(range(8))
    assert search.most_running == 2
    assert [attempts(tmp_path, number) for number in range(8)] == [1, 2, 1, 1, 1, 1, 1, 1]
    jobs = {job.number: job for job in search.asked}
    for outcome in search.told:
        if outcome.number == 6:
            assert outcome.error == "ZeroDivisionError: oh"
        else:
            assert outcome == answer_by_formula(jobs[outcome.number])


def test_a_job_that_loses_every_worker_fails_and_the_search_goes_on(tmp_path, monkeypatch):
    for module in (local, answering):
        monkeypatch.setattr(module, "RETRIES", 1)
    search = FakeAskTell(2)
    drive([troubled(tmp_path, {0: ("killed", 100)})], search)
    first, second = search.told
    assert attempts(tmp_path, 0) == 2
    assert first.measurement is None
    assert "SIGKILL" in first.error
    assert second == answer_by_formula(search.asked[1])


def test_a_worker_that_refuses_to_start_says_why():
    search = FakeAskTell(2)
    with pytest.raises(ConfigurationError, match=r"cannot start.*cuda:9.*Name another"):
        drive([refuses], search)
    assert search.asked == []


def test_a_worker_that_ends_at_its_start_says_how(monkeypatch):
    monkeypatch.setattr(local, "MOST_FAILED_STARTS", 2)
    search = FakeAskTell(2)
    with pytest.raises(AutocompressError, match=r"no worker can start.*exit code 7.*__main__"):
        drive([ends_at_start], search)
    assert search.asked == []


def test_a_process_that_the_system_refuses_says_so(monkeypatch):
    def refuse(_process):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", refuse)
    with pytest.raises(AutocompressError, match=r"no worker can start.*unavailable.*--workers"):
        drive([formula, formula], FakeAskTell(2))


def test_what_cannot_be_given_to_a_process_is_said_as_it_is():
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        drive([lambda: formula], FakeAskTell(2))


def test_tasks_are_done_by_workers_that_stay(tmp_path):
    with closing(LocalProcesses([formula, formula])) as engine:
        told = []
        first = engine.do([Double(n) for n in range(5)], lambda *done: told.append(done))
        assert [value for value, _ in first] == [0, 2, 4, 6, 8]
        assert sorted(told) == list(enumerate(first))
        engine.drive(search := FakeAskTell(3))
        assert search.numbers == [0, 1, 2]
        again = engine.do([Double(n) for n in range(4)])
        assert {pid for _, pid in again} <= {pid for _, pid in first}
        assert os.getpid() not in {pid for _, pid in first}
        assert engine.do([]) == []


def test_what_a_task_raises_is_raised_and_the_next_are_done():
    with closing(LocalProcesses([formula])) as engine:
        with pytest.raises(ConfigurationError, match="is not usable here"):
            engine.do([Double(1), Refused(), Double(2)])
        with pytest.raises(AutocompressError, match="ZeroDivisionError: oh"):
            engine.do([Buggy()])
        assert engine.do([Double(4)])[0][0] == 8


def test_no_task_is_begun_after_the_deadline():
    with closing(LocalProcesses([formula])) as engine:
        with pytest.raises(TimeIsUp, match="--time"):
            engine.do([Double(1)], deadline=time.monotonic())
        assert engine.do([Double(1)], deadline=time.monotonic() + 600)[0][0] == 2


def test_a_task_whose_worker_is_killed_is_done_again(tmp_path):
    with closing(LocalProcesses([formula])) as engine:
        assert engine.do([KilledOnce(tmp_path / "seen"), Double(3)])[0] == "again"


DRIVE = """
import signal, sys
from pathlib import Path
from autocompress.driver.engines.local import LocalProcesses
from tests.driver.engines.fake_ask_tell import FakeAskTell, troubled

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run with nohup
    worker = troubled(Path(sys.argv[1]), {0: ("long", 9)})
    LocalProcesses([worker]).drive(FakeAskTell(1))
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_ends_with_the_driver(tmp_path, ending):
    """SIGINT as a terminal sends it: to the driver and to the worker."""
    script = tmp_path / "drive.py"
    script.write_text(DRIVE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    name = tmp_path / "pid-0"
    try:
        wait_for(lambda: name.exists() and name.read_text() != "")
        worker = psutil.Process(int(name.read_text()))
        if ending == signal.SIGINT:
            os.killpg(driver.pid, ending)
        else:
            driver.send_signal(ending)
        error = driver.communicate(timeout=30)[1]
    finally:
        driver.kill()
    assert psutil.wait_procs([worker], timeout=30)[1] == []
    # The driver of this test shows its own traceback; the worker shows none.
    assert error.count("Traceback") == (1 if ending == signal.SIGINT else 0)
