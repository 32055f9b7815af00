"""Time and memory of a model as a table, the dense model beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocompress.units import format_bytes

WIDEST_NOTE = 100


def print_speed(speed: Mapping[str, Any], console: Console) -> None:
    """Print the figures of a model and of the dense one, their ratios, and how they were taken."""
    model, dense, ratio = speed["model"], speed["dense"], speed["ratio"] or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Speed and memory")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("")
    columns = [model] if dense is None else [model, dense]
    for figures in columns:
        table.add_column(_heading(figures, beside=figures is dense), justify="right")
    if dense is not None:
        table.add_column("ratio", justify="right")
    prompt = f"{speed['prompt_tokens']} tokens"
    for title, key in (
        ("decode, a token", "decode"),
        (f"prefill, {prompt}", "prefill"),
        (f"first token, {prompt}", "first_token"),
    ):
        cells = [_milliseconds(figures[f"{key}_ms"]) for figures in columns]
        table.add_row(*map(Text, [title, *cells, *_ratio(ratio, key)]))
    for title, key in (
        ("peak memory", "peak_memory"),
        ("  before loading", "libraries_memory"),
        ("accelerator memory", "accelerator_memory"),
        ("weights", ""),
    ):
        values = [figures.get(f"{key}_bytes" if key else "bytes") for figures in columns]
        if any(values):
            cells = [format_bytes(value) if value else "" for value in values]
            table.add_row(*map(Text, [title, *cells, *_ratio(ratio, key or "bytes")]))
    console.print(table)
    note = " ".join(_conditions(speed))
    console.print(textwrap.fill(note, min(console.width, WIDEST_NOTE)), markup=False)


def _heading(figures: Mapping[str, Any], *, beside: bool) -> Text:
    kind = "compressed" if figures["exported"] else "dense" if beside else "model"
    return Text(f"{kind}, {figures['dtype']}")


def _milliseconds(latency: Mapping[str, float]) -> str:
    return f"{latency['median_ms']:.3g} ± {latency['spread_ms']:.2g} ms"


def _ratio(ratio: Mapping[str, float], key: str) -> list[str]:
    """The cell of a row's ratio, where there is such a column."""
    if not ratio:
        return []
    return [f"{ratio[key]:.2f}x" if key in ratio else ""]


def _conditions(speed: Mapping[str, Any]) -> list[str]:
    """How the figures were taken, in sentences."""
    turns = " in turn with the dense model" if speed["dense"] else ""
    lines = [
        f"On {speed['device']}, one sequence: medians ± half the interquartile range of "
        f"{speed['rounds']} rounds{turns}, {speed['decode_tokens']} tokens decoded after a prompt "
        f"of {speed['decode_prompt_tokens']}.",
        "The first token is that of model.generate.",
    ]
    if speed["model"].get("peak_memory_bytes"):
        lines.append(
            "Peak memory is the resident memory of a fresh process that loads one model alone and "
            "does the same; the libraries hold part of it before the model is loaded."
        )
    if speed["ratio"]:
        lines.append(f"Ratios are multiples of {speed['dense']['model']}.")
    return lines
