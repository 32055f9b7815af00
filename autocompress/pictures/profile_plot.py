"""A model's sensitivity as an interactive plot: by role and depth, and option by option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.calibration.profile import Profile, best_at
from autocompress.errors import StorageError

PLOT_RATIO = 10
HOVER = "%{fullData.name}<br>%{text}<br>%{x:.1f}x smaller, %{y:.2e} nats per token<extra></extra>"
LEAST_LOSS_INCREASE = (
    1e-9  # so that options without loss increase have a place on a logarithmic axis
)


def profile_figure(profile: Profile) -> Any:
    """Draw the least loss increase by role and depth, above the options by bytes.

    The least loss increase is that of the options that take a tenth of the bytes or less.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=1,
        row_heights=[0.42, 0.58],
        vertical_spacing=0.16,
        subplot_titles=(
            f"Least predicted loss increase at 1/{PLOT_RATIO} of a matrix's bytes (nats per token)",
            "Every option on the way from most to fewest bytes, by matrix",
        ),
    )
    figure.add_trace(_heatmap(go, profile), row=1, col=1)
    for layer in profile.menu.layers:
        options = layer.undominated
        dense = max(option.bytes for option in layer.options)
        figure.add_trace(
            go.Scatter(
                x=[dense / option.bytes for option in options],
                y=[max(option.loss_increase, LEAST_LOSS_INCREASE) for option in options],
                text=[f"{option.method}<br>cosine {option.cosine:.4f}" for option in options],
                hovertemplate=HOVER,
                name=layer.spec.name,
                mode="lines+markers",
                marker={"size": 5},
                line={"width": 1},
            ),
            row=2,
            col=1,
        )
    figure.update_xaxes(title_text="transformer block", row=1, col=1)
    figure.update_xaxes(title_text="times smaller than dense", type="log", row=2, col=1)
    figure.update_yaxes(
        title_text="predicted loss increase, nats per token",
        type="log",
        exponentformat="power",
        row=2,
        col=1,
    )
    figure.update_layout(
        title=f"Sensitivity of {profile.model} ({profile.tokens} calibration tokens)",
        template="plotly_white",
        height=1000,
        legend={"font": {"size": 10}, "y": 0.0, "yanchor": "bottom"},
    )
    return figure


def _heatmap(go: Any, profile: Profile) -> Any:
    import math

    layers = profile.menu.layers
    roles = list(dict.fromkeys(layer.spec.role.value for layer in layers))
    depths = [
        "outside",
        *map(str, sorted({layer.spec.depth for layer in layers if layer.spec.depth is not None})),
    ]
    cells: dict[tuple[str, str], float] = {}
    for layer in layers:
        option = best_at(layer, PLOT_RATIO)
        place = (
            layer.spec.role.value,
            "outside" if layer.spec.depth is None else str(layer.spec.depth),
        )
        if option is not None:
            cells[place] = cells.get(place, 0.0) + option.loss_increase
    loss_increases = [[cells.get((role, depth)) for depth in depths] for role in roles]
    return go.Heatmap(
        x=depths,
        y=roles,
        z=[
            [None if d is None else math.log10(max(d, LEAST_LOSS_INCREASE)) for d in row]
            for row in loss_increases
        ],
        text=[["" if d is None else f"{d:.1e}" for d in row] for row in loss_increases],
        texttemplate="%{text}",
        hovertemplate="%{y}, block %{x}: %{text} nats per token<extra></extra>",
        colorscale="Cividis",
        showscale=False,
        xgap=2,
        ygap=2,
    )


def write_profile_html(profile: Profile, path: Path) -> Path:
    """Write the plot with plotly.js inside, so that it opens without a network.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile_figure(profile).to_html(include_plotlyjs=True), encoding="utf-8")
    except OSError as error:
        what = f"the plot {path} cannot be written: {error.strerror}"
        raise StorageError(what, hint="Name another file with --html.") from error
    return path
