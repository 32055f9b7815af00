"""A real SQLite store that the tests of tracking share: making one takes seconds."""

from __future__ import annotations

import pytest

from autocompress.tracking.mlflow_client import load_mlflow


@pytest.fixture(scope="package")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return load_mlflow().MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
