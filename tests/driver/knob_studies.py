"""Ranges of the knobs, and a study to record them in."""

from __future__ import annotations

import optuna

RANGES = {
    "measured": (0.0, 1.5),
    "exponent": (0.8, 1.4),
    "attention": (0.5, 2.0),
    "mlp": (0.5, 2.0),
    "embedding": (0.5, 2.0),
    "slope": (-0.5, 0.5),
    "factorised": (1.0, 16.0),
    "two_bit": (0.5, 2.0),
    "least_bits": (1, 3),
    "distrust": (1.0, 4.0),
}
PRICE = {"price": (0.0, 2.0)}


def new_study() -> optuna.Study:
    return optuna.create_study(
        directions=["minimize"] * 3, storage=optuna.storages.InMemoryStorage()
    )
