"""The curve of healing, divergence and loss against steps, as a picture for MLflow and folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.errors import StorageError
from autocompress.records import Gauge

Checks = Sequence[Mapping[str, float]]

# Okabe and Ito's palette, told apart by colour-blind readers.
INK, FAINT, DIVERGENCE, LOSS = "#222222", "#555555", "#0072B2", "#D55E00"
LOSS_TITLE = "training loss,\nhealing text"
BEFORE, KEPT = "before healing", "kept"
STEPS = "steps"


def best_of(checks: Checks) -> Mapping[str, float]:
    """The check whose weights are kept: of least divergence, penalties included."""
    return min(checks, key=lambda check: check["divergence"] + check.get("penalty", 0.0))


def summary(checks: Checks, gauge: Gauge) -> str:
    """What healing did to the figures of the selection text, before and after, in a line."""
    before, after = checks[0], best_of(checks)
    form = f"#{gauge.form}"
    figures = [f"{gauge.figure_of(check['loss']):{form}}" for check in (before, after)]
    return (
        f"selection text: {gauge.divergence} {before['divergence']:.4f} to "
        f"{after['divergence']:.4f}, {gauge.figure} {' to '.join(figures)}, "
        f"best at step {after['step']:g}"
    )


def write_healing_png(checks: Checks, path: Path, gauge: Gauge, title: str = "Healing") -> Path:
    """Draw the curve by matplotlib, without a browser or display; nothing where there is none.

    Args:
        checks: ``step``, ``training_loss`` on the healing text (NaN before the first step),
            ``divergence`` and ``loss`` on the selection text, in the order of their steps.
        path: the file.
        gauge: the words and the scale of the figures.
        title: what was healed.

    Raises:
        StorageError: the file cannot be written.
    """
    finite = [check for check in checks if math.isfinite(check["divergence"])]
    if len(finite) < 2:
        return path
    figure = _draw(finite, gauge, title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _draw(checks: Checks, gauge: Gauge, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for axes, (key, colour, name) in zip((upper, lower), _panels(gauge), strict=True):
        axes.plot(*_curve(checks, key), color=colour, marker="o", markersize=4)
        axes.set_ylabel(name, color=INK, fontsize=9)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    before, after = checks[0], best_of(checks)
    upper.axhline(before["divergence"], color=FAINT, linestyle=":", linewidth=1.2)
    upper.annotate(
        BEFORE, (1, before["divergence"]), (-4, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", fontsize=9, color=FAINT,
    )  # fmt: skip
    place = after["step"], after["divergence"]
    upper.plot(*place, "*", color=DIVERGENCE, markersize=14, markeredgecolor=INK)
    upper.annotate(
        KEPT, place, (0, -9), textcoords="offset points", ha="center", va="top", fontsize=9
    )
    upper.set_ylim(0, _top(checks))
    lower.set_xlim(left=0)
    lower.set_xlabel(STEPS, color=INK)
    upper.set_title(title, loc="left", fontweight="bold", fontsize=12, pad=20, color=INK)
    upper.text(0, 1.03, summary(checks, gauge), transform=upper.transAxes, fontsize=9, color=FAINT)
    return figure


def _panels(gauge: Gauge) -> tuple[tuple[str, str, str], ...]:
    """Key, colour and title of each panel, from above."""
    title = f"{gauge.divergence} from dense, selection text,\n{gauge.unit}"
    return (("divergence", DIVERGENCE, title), ("training_loss", LOSS, LOSS_TITLE))


def _top(checks: Checks) -> float:
    """Where the axis of divergence ends, with room for words above the highest."""
    return 1.15 * max(check["divergence"] for check in checks)


def _curve(checks: Checks, key: str) -> tuple[list[float], list[float]]:
    """Steps and values where the value is a finite number."""
    points = [(check["step"], check[key]) for check in checks if math.isfinite(check[key])]
    return [step for step, _ in points], [value for _, value in points]


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}", got=error.strerror, hint="Name a folder you may write to."
    )
