"""The curve of healing as metrics with steps, and as a picture."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.pictures.healing_png import write_healing_png
from autocompress.records import Gauge

PICTURE = "healing.png"


def send_healing(
    client: Any,
    run: str,
    checks: Sequence[Mapping[str, float]],
    gauge: Gauge,
    title: str = "Healing",
) -> None:
    """Log the curves of healing by step into a new run, and their picture.

    They are ``heal_loss``, on the healing text, and under the gauge's keys, such as ``heal_kl`` and
    ``heal_nll``, divergence and loss on the selection text.

    Args:
        client: of MLflow.
        run: of the healed trial.
        checks: ``step``, ``training_loss``, ``divergence`` and ``loss``; what is no finite number
            is left out.
        gauge: the names of the curves.
        title: of the picture.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    curves = {
        "training_loss": "loss",
        "divergence": gauge.divergence.lower(),
        "loss": gauge.loss_key,
    }
    metrics = [
        Metric(f"heal_{name}", check[curve], now, int(check["step"]))
        for curve, name in curves.items()
        for check in checks
        if math.isfinite(check[curve])
    ]
    client.log_batch(run, metrics, synchronous=True)
    with tempfile.TemporaryDirectory() as scratch:
        picture = write_healing_png(checks, Path(scratch) / PICTURE, gauge, title)
        if picture.exists():
            client.log_artifact(run, str(picture))
