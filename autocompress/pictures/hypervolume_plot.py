"""How the hypervolume grew with the trials, drawn small under the picture of the front."""

from __future__ import annotations

import html
from typing import Any

from autocompress.judging.hypervolume import Growth, hypervolume_series, reference_increase
from autocompress.studies.study import StudyRecord

LINE, INK = "#555555", "#222222"
# Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = {"baseline": "#E69F00", "allocation": "#56B4E9"}
SEARCHED = "#0072B2"
HEIGHT = 330


def hypervolume_figure(study: StudyRecord) -> Any:
    """Draw the curve as a plotly figure, a dot for each measured trial, coloured by its phase."""
    import plotly.graph_objects as go

    series = hypervolume_series(study)
    labels = {trial.number: trial.label for trial in study.trials}
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[step.trial for step in series],
            y=[step.hypervolume for step in series],
            mode="lines",
            line={"color": LINE, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for phase in dict.fromkeys(step.phase for step in series):
        steps = [step for step in series if step.phase == phase]
        figure.add_trace(
            go.Scatter(
                x=[step.trial for step in steps],
                y=[step.hypervolume for step in steps],
                mode="markers",
                name=html.escape(phase),
                marker={"color": COLOURS.get(phase, SEARCHED), "size": 8},
                text=[_hover(step, labels[step.trial]) for step in steps],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    _decorate(figure, reference_increase(study), study.gauge.unit)
    return figure


def _hover(step: Growth, label: str) -> str:
    return f"<b>trial {step.trial}: {html.escape(label)}</b><br>hypervolume {step.hypervolume:.4f}"


def _decorate(figure: Any, reference: float, unit: str) -> None:
    what = f"octaves of size times {unit}, below an increase of {reference:g}"
    title = f"<b>Hypervolume against trials</b><br><span style='font-size:12px'>{what}</span>"
    grid = {"gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside", "linecolor": INK}
    figure.update_xaxes(title="trial", **grid)
    figure.update_yaxes(title="hypervolume, selection text", **grid)
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.01, "xanchor": "left"},
        font={"color": INK, "size": 13},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        margin={"l": 110, "r": 30, "t": 75, "b": 60},
    )
