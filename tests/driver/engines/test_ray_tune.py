from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autocompress.driver.engines import cluster_address
from autocompress.driver.engines.base import AskTell, OpenWorker
from autocompress.driver.engines.choosing import load_ray_tune, make_engine
from autocompress.driver.engines.here import Here
from autocompress.errors import AutocompressError, ConfigurationError, TimeIsUp
from autocompress.evaluation.jobs import Outcome
from autocompress.requests.groups import EngineRequest
from tests.driver.engines.fake_ask_tell import (
    Double,
    FakeAskTell,
    KilledOnce,
    Refused,
    answer_by_formula,
    attempts,
    formula,
    refuses,
    troubled,
)

ray_tune = load_ray_tune()
_Adapter = ray_tune._Adapter
FINISHED = _Adapter.FINISHED


def drive(open_worker: OpenWorker, search: AskTell, workers: int = 1, **chosen: Any) -> None:
    settings = EngineRequest(engine="ray", workers=workers, **chosen)
    with closing(make_engine(settings, answer_by_formula, [open_worker] * workers)) as engine:
        engine.drive(search)


def test_the_adapter_asks_and_tells_as_tune_does():
    search, here = FakeAskTell(3, most_at_a_time=2), FakeAskTell(3)
    adapter = _Adapter(search, workers=5)
    first, second = adapter.suggest("a"), adapter.suggest("b")
    assert [job.number for job in (first["job"], second["job"])] == [0, 1]
    assert adapter.suggest("c") is None  # the search wants to hear first
    adapter.on_trial_complete("b", {"answer": answer_by_formula(second["job"])})
    third = adapter.suggest("c")["job"]
    assert adapter.suggest("d") is None  # some still run
    adapter.on_trial_complete("a", None, error=True)
    adapter.on_trial_complete("c", {"answer": answer_by_formula(third)})
    assert adapter.suggest("d") == FINISHED
    assert search.numbers == [0, 1, 2]
    (failed,) = [outcome for outcome in search.told if outcome.error]
    assert failed.number == 0
    assert here.asked == []


def test_the_adapter_starts_no_more_than_there_are_workers():
    adapter = _Adapter(FakeAskTell(3), workers=1)
    assert adapter.suggest("a") is not None
    assert adapter.suggest("b") is None


def test_what_the_search_raises_ends_the_run_and_is_not_lost():
    class GivesUp(FakeAskTell):
        def tell(self, outcome: Outcome) -> None:
            raise AutocompressError("5 trials in a row failed")

    adapter = _Adapter(GivesUp(9), workers=2)
    adapter.suggest("a")
    adapter.suggest("b")
    adapter.on_trial_complete("a", {"answer": Outcome(0, error="no")})
    adapter.on_trial_complete("b", {"answer": Outcome(1)})
    assert str(adapter.trouble) == "5 trials in a row failed"
    assert adapter.stopper.stop_all()
    assert adapter.suggest("c") == FINISHED


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_an_address_where_nothing_answers_is_refused_soon():
    with pytest.raises(ConfigurationError, match=r"no Ray answers at --address 127"):
        drive(formula, FakeAskTell(1), address=f"127.0.0.1:{closed_port()}")


def test_an_address_that_is_mute_is_refused_soon(monkeypatch):
    monkeypatch.setattr(cluster_address, "CONNECT_SECONDS", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="timed out"):
            drive(formula, FakeAskTell(1), address=address)


@pytest.mark.parametrize("address", ["nonsense", "ray://host:10001", ":6379"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigurationError, match=r"--address.*host:port"):
        drive(formula, FakeAskTell(1), address=address)


DRIVE = """
import json, sys
from pathlib import Path
import psutil
from autocompress.driver.engines.choosing import make_engine
from autocompress.requests.groups import EngineRequest
from tests.driver.engines.fake_ask_tell import FakeAskTell, answer_by_formula, troubled

class Watched(FakeAskTell):
    def ask(self):
        ours = psutil.Process().children(recursive=True)
        found = [each.laddr.ip for process in ours for each in process.net_connections()]
        addresses.update(found)
        return super().ask()

if __name__ == "__main__":
    addresses, search = set(), Watched(5, most_at_a_time=2)
    worker = troubled(Path(sys.argv[1]), {1: ("killed", 1)})
    two = EngineRequest(engine="ray", workers=2)
    make_engine(two, answer_by_formula, [worker] * 2).drive(search)
    right = all(out == answer_by_formula(search.asked[out.number]) for out in search.told)
    print(json.dumps([search.numbers, right, sorted(addresses)]))
"""


@pytest.mark.slow  # half a minute to start Ray on two cores, as long to replace an actor
def test_ray_does_every_job_also_when_an_actor_is_killed(tmp_path):
    """It says nothing, hears nothing from outside, and leaves nothing behind."""
    script, scratch = tmp_path / "drive.py", Path(tempfile.mkdtemp(prefix="ac"))
    script.write_text(DRIVE)
    known = {"PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(scratch)}
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY")}
    command = [sys.executable, str(script), str(tmp_path)]
    ended = subprocess.run(command, env=environment | known, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    numbers, right, addresses = json.loads(ended.stdout)
    assert numbers == list(range(5))
    assert right
    assert [attempts(tmp_path, number) for number in range(5)] == [1, 2, 1, 1, 1]
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert ended.stderr == "a worker of Ray was lost; its job is tried again\n"
    scratch.rmdir()  # which is empty


@pytest.mark.slow  # as above
def test_actors_do_tasks_before_and_after_the_trials(tmp_path):
    """One of them is killed at its first task; those that trials need are given free."""
    tasks = [KilledOnce(tmp_path / "seen"), *map(Double, range(4))]
    settings = EngineRequest(engine="ray", workers=2)
    with closing(make_engine(settings, answer_by_formula, [formula] * 2)) as engine:
        first, *others = engine.do(tasks)
        assert first == "again"
        assert [value for value, _ in others] == [0, 2, 4, 6]
        assert os.getpid() not in {pid for _, pid in others}
        with pytest.raises(TimeIsUp):
            engine.do(tasks, deadline=0.0)
        engine.drive(search := FakeAskTell(3))
        assert search.numbers == [0, 1, 2]
        with pytest.raises(ConfigurationError, match="is not usable here"):
            engine.do([Refused()])
        assert engine.do([Double(5)])[0][0] == 10


@pytest.mark.slow
def test_one_worker_gives_what_this_process_would():
    here, elsewhere = FakeAskTell(5), FakeAskTell(5)
    Here(answer_by_formula).drive(here)
    drive(formula, elsewhere)
    assert (elsewhere.asked, elsewhere.told) == (here.asked, here.told)


@pytest.mark.slow
def test_a_worker_that_refuses_to_start_says_why():
    with pytest.raises(ConfigurationError, match=r"cannot start.*cuda:9.*Name another"):
        drive(refuses, FakeAskTell(2))


@pytest.mark.slow
def test_a_job_that_loses_every_actor_fails_and_the_search_goes_on(tmp_path, caplog):
    search = FakeAskTell(2)
    with caplog.at_level(logging.WARNING):
        drive(troubled(tmp_path, {0: ("killed", 100)}), search)
    first, second = search.told
    assert attempts(tmp_path, 0) == 3
    assert "lost 3 times" in first.error
    assert second == answer_by_formula(search.asked[1])
    assert "tried again" in caplog.text


@pytest.mark.slow
def test_more_gpus_than_there_are_is_said_at_once():
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"no node.*GPUs"):
        drive(formula, FakeAskTell(2), gpus_per_trial=64)
    assert time.monotonic() - began < 60
