"""The same picture of a front as PNG, drawn by matplotlib: no browser, no display."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

from autocompress.errors import StorageError
from autocompress.pictures.front_picture import X_TITLE, Dot, FrontPicture, picture_of
from autocompress.pictures.front_plot import BUDGET, INK, LINE, PLAIN
from autocompress.studies.study import StudyRecord

SUBTITLE = 112  # letters of a line under the title
GROUPS = (
    # group, legend, marker, area, opacity, width of the outline, layer
    ("other", "other plans", "o", 26, 0.6, 0.4, 2),
    ("baseline", "uniform baselines", "D", 62, 1.0, 0.9, 4),
    ("front", "front", "o", 80, 1.0, 0.9, 5),
)
# Where a label may stand around its dot, in points, the preferred place first.
PLACES = (
    (9, 7),
    (9, -13),
    (-9, 7),
    (-9, -13),
    (0, 13),
    (0, -19),
    (14, 20),
    (14, -27),
    (-14, 20),
    (-14, -27),
    (26, 34),
)
MARK_DIRECTIONS = ((34, 26), (44, 14), (-34, -34), (34, -34), (-34, 30))
MARK_PLACES = tuple(
    (reach * across, reach * up) for reach in (1, 1.5, 2, 2.6) for across, up in MARK_DIRECTIONS
)


def write_front_png(study: StudyRecord, path: Path) -> Path:
    """Draw the front and write it as PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = _draw(picture_of(study))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}", got=error.strerror, hint="Name another file with --png."
        ) from error
    return path


def _draw(picture: FrontPicture) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    _scales(axes, picture)
    axes.plot(*_positions(picture.front_line), color=LINE, linewidth=1.3, zorder=3)
    span = picture.latency_range
    colours: dict[str, Any] = (
        {"cmap": "viridis", "vmin": span and span[0], "vmax": span and span[1]} if span else {}
    )
    drawn = None
    for group, legend, marker, area, opacity, outline, layer in GROUPS:
        dots = picture.group(group)
        _bars(axes, dots)
        if dots:
            paint = colours | {"c": [_time(dot) for dot in dots]} if span else {"c": PLAIN}
            style = {
                "marker": marker,
                "s": area,
                "alpha": opacity,
                "edgecolors": INK,
                "linewidths": outline,
            }
            drawn = axes.scatter(
                *_positions(dots), **paint, **style, zorder=layer, label=legend, plotnonfinite=True
            )
        hollow = picture.group(group, hollow=True)
        if hollow:
            edges = {
                "edgecolors": _edges(hollow, span),
                "facecolors": "none",
                "linewidths": 1.3,
                "alpha": 0.8,
            }
            note = f"{legend}, selection text"
            axes.scatter(
                *_positions(hollow), marker=marker, s=area, zorder=layer, label=note, **edges
            )
    timed = span is not None and picture.dense_latency_ms is not None
    paint = colours | {"c": [picture.dense_latency_ms]} if timed else {"c": PLAIN}
    axes.scatter(
        [picture.dense_bytes], [picture.floor], marker="*", s=230, edgecolors=INK, linewidths=0.9,
        zorder=6, label="dense model (increase 0)", clip_on=False, **paint,
    )  # fmt: skip
    if span is not None and drawn is not None:
        bar: Any = figure.colorbar(
            drawn, ax=axes, label="latency, ms a token", pad=0.015, aspect=30
        )
        bar.solids.set_alpha(1.0)
    axes.set_title(picture.title, loc="left", fontweight="bold", fontsize=13, pad=40, color=INK)
    axes.text(
        0, 1.055, textwrap.fill(picture.subtitle, SUBTITLE), transform=axes.transAxes,
        fontsize=9.5, color=LINE, va="bottom",
    )  # fmt: skip
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9.5, handletextpad=0.3)
    axes.annotate(
        picture.footnote, (1, 0), (0, -52), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="top", fontsize=8, color=LINE,
    )  # fmt: skip
    _label(figure, axes, picture)
    return figure


def _positions(dots: tuple[Dot, ...]) -> tuple[list[int], list[float]]:
    return [dot.bytes for dot in dots], [dot.height for dot in dots]


def _bars(axes: Any, dots: tuple[Dot, ...]) -> None:
    """Draw the intervals of the increases, under the dots."""
    ends = [(dot.bytes, *dot.span) for dot in dots if dot.span]
    if ends:
        axes.vlines(*zip(*ends, strict=True), color=LINE, linewidth=1.1, zorder=1.9)
        caps = [(size, height) for size, *span in ends for height in span]
        axes.scatter(
            *zip(*caps, strict=True), marker="_", s=28, color=LINE, linewidths=1.1, zorder=1.9
        )


def _time(dot: Dot) -> float:
    return float("nan") if dot.latency_ms is None else dot.latency_ms


def _edges(dots: tuple[Dot, ...], span: tuple[float, float] | None) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    if span is None:
        return PLAIN
    shade = Normalize(*span)
    return [colormaps["viridis"](shade(_time(dot))) for dot in dots]


def _scales(axes: Any, picture: FrontPicture) -> None:
    axes.set(xscale="log", yscale="log", xlim=picture.x_range, ylim=picture.y_range)
    axes.set_xticks(
        [size for size, _, _ in picture.x_ticks],
        [f"{size}\n{ratio}" for _, size, ratio in picture.x_ticks],
    )
    axes.set_yticks(
        [height for height, _ in picture.y_ticks], [text for _, text in picture.y_ticks]
    )
    axes.minorticks_off()
    axes.set_xlabel(X_TITLE, color=INK)
    axes.set_ylabel(picture.y_title, color=INK, fontsize=9.5)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if picture.budget_bytes is not None:
        axes.axvline(picture.budget_bytes, color=BUDGET, linestyle="--", linewidth=1.3, zorder=1)
        axes.annotate(
            picture.budget_text, (picture.budget_bytes, 1), (0, 3),
            xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", va="bottom", color=BUDGET, fontsize=9.5,
        )  # fmt: skip


def _label(figure: Any, axes: Any, picture: FrontPicture) -> None:
    """Write marks and uniform baselines' names where they cover neither dots nor one another."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    taken = [_box_around(axes, dot.bytes, dot.height, 7) for dot in picture.dots]
    taken.append(_box_around(axes, picture.dense_bytes, picture.floor, 11))
    for first, second in pairwise(picture.front_line):
        taken += _boxes_along(axes, first, second)
    if picture.budget_bytes is not None:
        taken.append(_box_down(axes, picture.budget_bytes))
    for mark in picture.marks:
        style = {"fontsize": 9.5, "fontweight": "bold", "color": INK, "zorder": 8}
        arrow = {"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 5}
        _place(
            axes, renderer, taken, mark.text, mark.dot, MARK_PLACES, style | {"arrowprops": arrow}
        )
    for dot in (*picture.group("baseline"), *picture.group("baseline", hollow=True)):
        style = {"fontsize": 8, "color": LINE, "zorder": 7}
        _place(axes, renderer, taken, dot.trial.label, dot, PLACES, style, must=False)


def _box_around(axes: Any, x: float, y: float, radius: float) -> Any:
    from matplotlib.transforms import Bbox

    across, up = axes.transData.transform((x, y))
    return Bbox.from_extents(across - radius, up - radius, across + radius, up + radius)


def _box_down(axes: Any, x: float) -> Any:
    from matplotlib.transforms import Bbox

    across = axes.transData.transform((x, 1.0))[0]
    return Bbox.from_extents(across - 2, axes.bbox.y0, across + 2, axes.bbox.y1)


def _boxes_along(axes: Any, first: Dot, second: Dot) -> list[Any]:
    from matplotlib.transforms import Bbox

    (x0, y0), (x1, y1) = axes.transData.transform(
        [(first.bytes, first.height), (second.bytes, second.height)]
    )
    steps = [step / 12 for step in range(13)]
    middles = [(x0 + (x1 - x0) * step, y0 + (y1 - y0) * step) for step in steps]
    return [Bbox.from_extents(x - 1, y - 1, x + 1, y + 1) for x, y in middles]


def _place(
    axes: Any,
    renderer: Any,
    taken: list[Any],
    text: str,
    dot: Dot,
    places: Any,
    style: dict[str, Any],
    *,
    must: bool = True,
) -> None:
    """Write at the first free place; if none is free, at the last if the text ``must`` be there."""
    inside = axes.get_window_extent(renderer)
    for index, (across, up) in enumerate(places):
        last = index == len(places) - 1
        side = "left" if across > 0 else "right" if across < 0 else "center"
        note = axes.annotate(
            text,
            (dot.bytes, dot.height),
            (across, up),
            textcoords="offset points",
            ha=side,
            va="baseline",
            **style,
        )
        note.set_in_layout(False)
        box = type(note).get_window_extent(note, renderer)
        words = _words_only(note, renderer) if note.arrow_patch is not None else box
        fits = (
            inside.x0 <= words.x0
            and words.x1 <= inside.x1
            and inside.y0 <= words.y0
            and words.y1 <= inside.y1
        )
        if (fits and not any(words.overlaps(other) for other in taken)) or (last and must):
            taken.append(words)
            return
        note.remove()


def _words_only(note: Any, renderer: Any) -> Any:
    from matplotlib.text import Text

    return Text.get_window_extent(note, renderer)
