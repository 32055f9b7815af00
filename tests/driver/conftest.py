from __future__ import annotations

from collections import defaultdict

import optuna
import pytest

from autocompress.studies import study_store
from tests.driver import fake_search


@pytest.fixture
def _storages_in_memory(monkeypatch, request):
    """Keep studies in memory, for speed, but for the tests that ask for ``on_disk``."""
    if "on_disk" in request.fixturenames:
        return
    made = defaultdict(optuna.storages.InMemoryStorage)
    monkeypatch.setattr(study_store, "open_storage", made.__getitem__)
    monkeypatch.setattr(fake_search, "default_storage", lambda folder: f"memory:{folder}")


@pytest.fixture
def on_disk():
    """The test is about what SQLite keeps."""
