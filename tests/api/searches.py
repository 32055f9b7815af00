"""Small searches of half the bundled model: few tokens of its texts, few options, few trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.evaluation.corpus import bundled_text
from autocompress.surgery.loading import load_model

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 2], group_sizes: [64]}
"""
CHARACTERS = 6_000
TRIALS = 4
BLOCKS = 2  # of the bundled model's four: searches take half of the time


def write_inputs(folder: Path) -> dict[str, str]:
    """Write a model, a text and a space, and give them as arguments of a search."""
    text, space, model = folder / "text.txt", folder / "tiny.yaml", folder / "half demo"
    if not model.exists():
        write_half_demo(model)
    text.write_text(bundled_text("selection")[:CHARACTERS], encoding="utf-8")
    space.write_text(SPACE, encoding="utf-8")
    return {"model": str(model), "data": str(text), "space": str(space)}


def write_half_demo(folder: Path) -> None:
    """Write the first blocks of the bundled model, with its tokenizer."""
    loaded = load_model(None)
    model: Any = loaded.model
    model.model.layers = model.model.layers[:BLOCKS]
    model.config.num_hidden_layers = BLOCKS
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
