"""The curve of healing as metrics with steps, and as a picture."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.pictures.healing_png import write_healing_png

CURVES = ("loss", "kl", "nll")
PICTURE = "healing.png"


def send_healing(
    client: Any, run: str, checks: Sequence[Mapping[str, float]], title: str = "Healing"
) -> None:
    """Log ``heal_loss``, ``heal_kl`` and ``heal_nll`` by step into a new run, and their picture.

    Args:
        client: of MLflow.
        run: of the healed trial.
        checks: ``step``, ``loss`` on the healing text, ``kl`` and ``nll`` on the selection text;
            what is no finite number is left out.
        title: of the picture.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(f"heal_{curve}", check[curve], now, int(check["step"]))
        for curve in CURVES
        for check in checks
        if math.isfinite(check[curve])
    ]
    client.log_batch(run, metrics, synchronous=True)
    with tempfile.TemporaryDirectory() as scratch:
        picture = write_healing_png(checks, Path(scratch) / PICTURE, title)
        if picture.exists():
            client.log_artifact(run, str(picture))
