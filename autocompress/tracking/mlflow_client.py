"""MLflow opened quietly, and the one experiment that everything is logged to."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

EXPERIMENT = "autocompress"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development"
}  # else the pages are those for chat agents
# Seconds and attempts that the user has not set: a search does not wait for minutes on a server
# that is gone.
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def load_mlflow() -> Any:
    """Import MLflow, quiet and without telemetry, unless the user's environment says otherwise."""
    for variable, value in IMPATIENT.items():
        os.environ.setdefault(variable, value)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.ERROR)
    return mlflow


def open_experiment(client: Any, uri: str) -> str:
    """Find or make the experiment in the store at ``uri``, and return its id."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    location = _beside_database(uri)
    return str(
        client.create_experiment(EXPERIMENT, artifact_location=location, tags=EXPERIMENT_TAGS)
    )


def without_password(uri: str) -> str:
    """A store's URI as it may be shown."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def how_to_browse(uri: str | None) -> str:
    """What a person does to see what a store holds: a command, or an address to open.

    Args:
        uri: of the store; where MLflow itself would look when left out.
    """
    named = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        return "mlflow ui"
    shown = without_password(named)
    if named.startswith(("http://", "https://")):
        return f"open {shown}"
    if named.startswith("databricks"):
        return f"open the workspace of {shown}"
    return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"


def _beside_database(uri: str) -> str | None:
    """Where artifacts of a SQLite store lie: beside the database, wherever the command was started.

    ``None`` for other stores, which decide themselves.
    """
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()
    return (database.parent / "mlruns" / EXPERIMENT).as_uri()


def allowed_name(name: str) -> str:
    """A name of a parameter or metric that MLflow accepts: letters, digits, ``_-./``, spaces."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)[:250]
