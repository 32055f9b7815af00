"""The interactive picture of a front: one HTML file that opens offline."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from autocompress.errors import StorageError
from autocompress.pictures.front_picture import X_TITLE, Dot, FrontPicture, picture_of
from autocompress.pictures.hypervolume_plot import HEIGHT, hypervolume_figure
from autocompress.studies.study import StudyRecord

# Okabe and Ito's palette, told apart by colour-blind readers; latency runs over viridis, which is
# even in lightness.
INK, LINE, BUDGET, PLAIN = "#222222", "#555555", "#D55E00", "#0072B2"
COLOUR_SCALE = "Viridis"
GROUPS = (
    # group, legend, symbol, size, opacity, width of the outline
    ("other", "other plans", "circle", 8, 0.55, 0.5),
    ("baseline", "uniform baselines", "diamond", 13, 1.0, 1.2),
    ("front", "front", "circle", 14, 1.0, 1.2),
)


def front_figure(study: StudyRecord) -> Any:
    """Draw the front as a plotly figure."""
    import plotly.graph_objects as go

    picture = picture_of(study)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[dot.bytes for dot in picture.front_line],
            y=[dot.height for dot in picture.front_line],
            mode="lines",
            line={"color": LINE, "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for group, legend, symbol, size, opacity, outline in GROUPS:
        dots = picture.group(group)
        if dots:
            marker = {
                "symbol": symbol,
                "size": size,
                "opacity": opacity,
                "line": {"color": INK, "width": outline},
            }
            figure.add_trace(_scatter(go, dots, legend, marker | _colours(dots, picture)))
        hollow = picture.group(group, hollow=True)
        if hollow:
            marker = {
                "symbol": f"{symbol}-open",
                "size": size,
                "opacity": 0.8,
                "line": {"width": 1.5},
            }
            figure.add_trace(
                _scatter(
                    go, hollow, f"{legend}, selection text", marker | _colours(hollow, picture)
                )
            )
    figure.add_trace(_dense(go, picture))
    _decorate(figure, picture)
    return figure


def write_front_html(study: StudyRecord, path: Path) -> Path:
    """Write the interactive picture, with plotly.js inside so that it opens without a network.

    Under it, how the hypervolume grew with the trials.

    Raises:
        StorageError: the file cannot be written.
    """
    config = {"displaylogo": False}
    text = front_figure(study).to_html(include_plotlyjs=True, config=config, default_height="88vh")
    if len(study.complete) > 1:
        curve = hypervolume_figure(study).to_html(
            full_html=False, include_plotlyjs=False, config=config, default_height=f"{HEIGHT}px"
        )
        text = text.replace("</body>", f"{curve}</body>", 1)
    style = "<style>body{margin:0;overflow-x:hidden}</style>"
    head = f"<head><title>{html.escape(study.name)}</title>{style}"
    text = text.replace("<head>", head, 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot write {path}", got=error.strerror, hint="Name another file with --html."
        ) from error
    return path


def _scatter(go: Any, dots: tuple[Dot, ...], legend: str, marker: dict[str, Any]) -> Any:
    return go.Scatter(
        x=[dot.bytes for dot in dots],
        y=[dot.height for dot in dots],
        mode="markers",
        name=legend,
        marker=marker,
        error_y=_bars(dots),
        text=[_hover(dot) for dot in dots],
        hovertemplate="%{text}<extra></extra>",
    )


def _bars(dots: tuple[Dot, ...]) -> dict[str, Any] | None:
    if not any(dot.span for dot in dots):
        return None
    spans = [dot.span or (dot.height, dot.height) for dot in dots]
    return {
        "array": [high - dot.height for (_, high), dot in zip(spans, dots, strict=True)],
        "arrayminus": [dot.height - low for (low, _), dot in zip(spans, dots, strict=True)],
        "color": LINE,
        "thickness": 1.3,
        "width": 4,
    }


def _hover(dot: Dot) -> str:
    head, *lines = (html.escape(line) for line in dot.lines)
    return "<br>".join([f"<b>{head}</b>", *lines])


def _colours(dots: tuple[Dot, ...], picture: FrontPicture) -> dict[str, Any]:
    span = picture.latency_range
    if span is None:
        return {"color": PLAIN}
    times = [math.nan if dot.latency_ms is None else dot.latency_ms for dot in dots]
    return {"color": times, "coloraxis": "coloraxis"}


def _dense(go: Any, picture: FrontPicture) -> Any:
    timed = picture.latency_range is not None and picture.dense_latency_ms is not None
    colour: dict[str, Any] = (
        {"color": [picture.dense_latency_ms], "coloraxis": "coloraxis"}
        if timed
        else {"color": PLAIN}
    )
    time = (
        f"<br>{picture.dense_latency_ms:.3g} ms a token"
        if picture.dense_latency_ms is not None
        else ""
    )
    return go.Scatter(
        x=[picture.dense_bytes],
        y=[picture.floor],
        mode="markers",
        name="dense model (increase 0)",
        marker={"symbol": "star", "size": 19, "line": {"color": INK, "width": 1.2}} | colour,
        hovertemplate=f"<b>{html.escape(picture.dense_text)}</b>{time}<extra></extra>",
        cliponaxis=False,
    )


def _decorate(figure: Any, picture: FrontPicture) -> None:
    log = math.log10
    grid = {
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "ticks": "outside",
        "linecolor": INK,
        "mirror": False,
    }
    figure.update_xaxes(
        type="log",
        range=[log(edge) for edge in picture.x_range],
        title=X_TITLE,
        tickvals=[size for size, _, _ in picture.x_ticks],
        ticktext=[f"{size}<br>{ratio}" for _, size, ratio in picture.x_ticks],
        **grid,
    )
    figure.update_yaxes(
        type="log",
        range=[log(edge) for edge in picture.y_range],
        title=picture.y_title,
        tickvals=[height for height, _ in picture.y_ticks],
        ticktext=[text for _, text in picture.y_ticks],
        **grid,
    )
    for index, mark in enumerate(picture.marks):
        figure.add_annotation(
            x=log(mark.dot.bytes),
            y=log(mark.dot.height),
            text=html.escape(mark.text),
            ax=(70, 95)[index % 2],
            ay=(-50, -85)[index % 2],
            xanchor="left",
            showarrow=True,
            arrowhead=2,
            standoff=8,
            bgcolor="rgba(255,255,255,0.85)",
            bordercolor=LINE,
            borderpad=3,
        )
    if picture.budget_bytes is not None:
        line = {"color": BUDGET, "dash": "dash", "width": 1.5}
        figure.add_shape(
            type="line",
            x0=picture.budget_bytes,
            x1=picture.budget_bytes,
            y0=0,
            y1=1,
            yref="paper",
            line=line,
            layer="below",
        )
        figure.add_annotation(
            x=log(picture.budget_bytes), y=1, yref="paper", yanchor="bottom", showarrow=False,
            text=picture.budget_text, font={"color": BUDGET},
        )  # fmt: skip
    lines = f"{html.escape(picture.subtitle)}<br>{html.escape(picture.footnote)}"
    title = f"<b>{html.escape(picture.title)}</b><br><span style='font-size:12px'>{lines}</span>"
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top"},
        font={"color": INK, "size": 13},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left"},
        margin={"l": 110, "r": 30, "t": 135, "b": 100},
        coloraxis={
            "colorscale": COLOUR_SCALE,
            "colorbar": {"title": {"text": "latency, ms a token", "side": "right"}},
        },
    )
