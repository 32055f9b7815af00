from __future__ import annotations

import sys

import pytest

from autocompress.driver.engines import choosing
from autocompress.driver.engines.choosing import EngineSettings, check_engine, make_engine
from autocompress.driver.engines.here import Here
from autocompress.driver.engines.local import LocalProcesses
from autocompress.errors import ConfigurationError
from tests.driver.engines.fake_ask_tell import answer_by_formula, formula


def test_one_local_worker_is_this_process():
    assert isinstance(make_engine(EngineSettings(), answer_by_formula, [formula]), Here)
    two = make_engine(EngineSettings(workers=2), answer_by_formula, [formula] * 2)
    assert isinstance(two, LocalProcesses)
    assert len(two.open_workers) == 2


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"kind": "spark"}, r"--engine: got 'spark', wanted local or ray"),
        ({"workers": 0}, r"--workers: got 0, wanted at least 1"),
        ({"kind": "ray", "gpus_per_trial": -1.0}, r"--gpus-per-trial: got -1"),
        ({"address": "host:6379"}, r"--address is for --engine ray"),
        ({"gpus_per_trial": 0.5}, r"--gpus-per-trial is for --engine ray"),
    ],
)
def test_what_cannot_be_is_refused(chosen, message):
    with pytest.raises(ConfigurationError, match=message):
        EngineSettings(**chosen)


def test_ray_that_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "autocompress.driver.engines.ray_tune", raising=False)
    monkeypatch.delattr(choosing.__package__ + ".ray_tune", raising=False)
    with pytest.raises(ConfigurationError, match=r"needs Ray.*pip install"):
        make_engine(EngineSettings("ray"), answer_by_formula, [formula])


def test_gpus_that_are_not_there_are_missed_before_any_work(monkeypatch):
    monkeypatch.setattr(choosing.torch.accelerator, "device_count", lambda: 1)
    for fits in (0.0, 0.5, 1.0):
        check_engine(EngineSettings("ray", gpus_per_trial=fits))
    with pytest.raises(ConfigurationError, match=r"--gpus-per-trial .*got 2, wanted at most 1"):
        check_engine(EngineSettings("ray", gpus_per_trial=2))
