"""Small searches of the bundled model: few tokens of its texts, few options, few trials."""

from __future__ import annotations

from pathlib import Path

from autocompress.evaluation.corpus import bundled_text

SPACE = """\
version: 1
name: tiny
methods:
  keep: true
  quantize: {bits: [8, 4, 2], group_sizes: [64]}
"""
CHARACTERS = 6_000
TRIALS = 4


def write_inputs(folder: Path) -> dict[str, str]:
    """Write a text and a space, and give them as arguments of a search."""
    text, space = folder / "text.txt", folder / "tiny.yaml"
    text.write_text(bundled_text("selection")[:CHARACTERS], encoding="utf-8")
    space.write_text(SPACE, encoding="utf-8")
    return {"data": str(text), "space": str(space)}
