from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from autocompress.driver.study_choice import request_of
from autocompress.driver.worker import WorkerSettings
from autocompress.errors import ModelError, StorageError
from autocompress.evaluation.jobs import Job
from autocompress.evaluation.latency import Latency


@pytest.fixture
def settings(record, workplace) -> WorkerSettings:
    """Those of a worker of the finished search."""
    return WorkerSettings(
        replace(request_of(record), runs_dir=workplace / "runs"),
        dense_latency=Latency(5.0, 0.1),
        fingerprint=record.fingerprint,
        threads=torch.get_num_threads(),
    )


def test_a_worker_measures_what_the_search_measured(settings, record):
    measure = pickle.loads(pickle.dumps(settings)).open()
    for trial in record.complete[:2]:
        outcome = pickle.loads(pickle.dumps(measure(Job(trial.number, trial.plan))))
        assert outcome.error == ""
        assert outcome.number == trial.number
        assert outcome.measurement.figure == trial.selection.figure
        assert outcome.measurement.divergence == trial.selection.divergence
        assert outcome.measurement.bytes == trial.bytes


def test_a_worker_that_would_load_other_weights_refuses(settings):
    with pytest.raises(ModelError, match=r"other weights.*got .*wanted 0123.*same copy"):
        replace(settings, fingerprint="0123").open()


def test_a_worker_that_does_not_see_the_cache_refuses(settings, tmp_path):
    with pytest.raises(StorageError, match=r"no statistics.*--runs-dir"):
        elsewhere(settings, tmp_path / "elsewhere").open()


def elsewhere(settings, runs_dir):
    return replace(settings, request=replace(settings.request, runs_dir=runs_dir))


def test_workers_share_the_threads_and_the_gpus(settings, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert [each.threads for each in settings.spread(2)] == [3, 3]
    assert [each.threads for each in settings.spread(7)] == [1] * 7
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, devices in (
        ("cpu", ["cpu"] * 3),
        ("cuda", ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", ["cuda:1"] * 3),
    ):
        on_device = replace(settings, request=replace(settings.request, device=device))
        assert [each.request.device for each in on_device.spread(3)] == devices
