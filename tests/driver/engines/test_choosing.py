from __future__ import annotations

import sys

import pytest

from autocompress.driver.engines import choosing
from autocompress.driver.engines.choosing import check_engine, make_engine
from autocompress.driver.engines.here import Here
from autocompress.driver.engines.local import LocalProcesses
from autocompress.errors import ConfigurationError
from autocompress.requests.groups import EngineRequest
from tests.driver.engines.fake_ask_tell import answer_by_formula, formula


def test_one_local_worker_is_this_process():
    assert isinstance(make_engine(EngineRequest(), answer_by_formula, [formula]), Here)
    two = make_engine(EngineRequest(workers=2), answer_by_formula, [formula] * 2)
    assert isinstance(two, LocalProcesses)
    assert len(two.open_workers) == 2


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"engine": "spark"}, r"unknown --engine: got 'spark', wanted local, ray"),
        ({"workers": 0}, r"--workers is too low: got 0, wanted at least 1"),
        ({"engine": "ray", "gpus_per_trial": -1.0}, r"--gpus-per-trial is too low: got -1"),
        ({"address": "host:6379"}, r"--address is for --engine ray"),
        ({"gpus_per_trial": 0.5}, r"--gpus-per-trial is for --engine ray"),
    ],
)
def test_what_cannot_be_is_refused(chosen, message):
    with pytest.raises(ConfigurationError, match=message):
        EngineRequest(**chosen)


def test_ray_that_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "autocompress.driver.engines.ray_tune", raising=False)
    monkeypatch.delattr(choosing.__package__ + ".ray_tune", raising=False)
    with pytest.raises(ConfigurationError, match=r"needs Ray.*pip install"):
        make_engine(EngineRequest(engine="ray"), answer_by_formula, [formula])


def test_gpus_that_are_not_there_are_missed_before_any_work(monkeypatch):
    monkeypatch.setattr(choosing.torch.accelerator, "device_count", lambda: 1)
    for fits in (0.0, 0.5, 1.0):
        check_engine(EngineRequest(engine="ray", gpus_per_trial=fits))
    with pytest.raises(ConfigurationError, match=r"--gpus-per-trial .*got 2, wanted at most 1"):
        check_engine(EngineRequest(engine="ray", gpus_per_trial=2))
