from __future__ import annotations

import pytest
import torch

from autocompress.calibration.special_rows import at_least_average
from autocompress.calibration.statistics import collect_statistics
from autocompress.errors import ModelError
from autocompress.evaluation.encoding import special_tokens
from autocompress.progress import SILENT
from autocompress.requests.groups import SessionRequest
from autocompress.session import session as module
from autocompress.session.session import OwnContent, Session
from autocompress.store import Cache
from autocompress.surgery.loading import LoadedModel
from tests.conftest import VOCABULARY

CONTEXT = 16


class Told:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, description, total=None):
        return SILENT.task(description, total)

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (4 * CONTEXT,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def open_it(tiny_llama, tiny_tokenizer, tmp_path, ids):
    def make(seed=0):
        loaded = LoadedModel(tiny_llama, tiny_tokenizer, "tiny", "0123456789abcdef")
        own = OwnContent(tokens={"calibration": ids})
        request = SessionRequest(context=CONTEXT, progress=Told(), seed=seed)
        return Session(loaded, request, Cache(tmp_path), own=own)

    return make


@pytest.fixture
def calibrated(monkeypatch):
    """Names of the matrices that statistics are collected of, call by call."""
    calls, stream = [], module.stream_statistics

    def counted(model, specs, *args, **settings):
        calls.append([spec.name for spec in specs])
        return stream(model, specs, *args, **settings)

    monkeypatch.setattr(module, "stream_statistics", counted)
    return calls


def test_a_session_calibrates_once_for_each_seed(open_it, calibrated, ids):
    session = open_it()
    specs = session.workbench.inventory.layers
    windows = [window[None] for window in ids.split(CONTEXT)]
    special = special_tokens(session.loaded.tokenizer)
    expected = {
        spec.name: at_least_average(metric, spec, special)
        for spec, metric in zip(
            specs, collect_statistics(session.loaded.model, specs, windows).values(), strict=True
        )
    }
    for opened in (session, open_it()):
        assert list(opened.metrics) == list(expected)
        for name, metric in opened.metrics.items():
            torch.testing.assert_close(metric.rows, expected[name].rows)
            torch.testing.assert_close(metric.columns, expected[name].columns)
        assert opened.progress.notes == []
    assert calibrated == [list(expected)]
    assert len(open_it(seed=1).metrics) == len(expected)
    assert calibrated == [list(expected)] * 2


def test_a_calibration_that_was_killed_goes_on_with_the_blocks_that_are_missing(
    open_it, calibrated, monkeypatch
):
    keep, kept = module.KeptMetrics.keep, []

    def killed(self, metrics):
        if any(".layers.0." in name for name in metrics):
            raise KeyboardInterrupt
        kept.extend(metrics)
        keep(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(module.KeptMetrics, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            open_it().metrics  # noqa: B018
    assert len(kept) == 7  # of the last block
    metrics = open_it().metrics
    assert calibrated[1] == [name for name in metrics if name not in kept]
    assert metrics.missing() == []


def test_a_model_that_computes_nan_is_refused(open_it, tiny_llama):
    tiny_llama.model.layers[0].mlp.down_proj.weight.data[0] = torch.nan
    session = open_it()
    with pytest.raises(ModelError, match=r"NaN.*--compute-dtype float32"):
        session.metrics  # noqa: B018
    assert session.progress.notes == []


def test_gradients_that_are_not_finite_are_refused(open_it, monkeypatch):
    monkeypatch.setattr(
        "autocompress.calibration.gram_sums.GramSum.mean",
        lambda self, _count: torch.full((self.size,), torch.inf),
    )
    with pytest.raises(ModelError, match=r"layer lm_head|layer model.*not finite numbers"):
        open_it().metrics  # noqa: B018
