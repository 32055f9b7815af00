"""Scores an exported folder in this process, where what a fresh one costs is not to be tested."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from autocompress.deploy.verify import Opening, Verification
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import load_model


def score_here(folder: Path, windows: Windows, opening: Opening, _opener: str) -> Verification:
    loaded = load_model(str(folder), **asdict(opening))
    model = loaded.model
    scored = score(model, windows)
    return Verification(scored.figure, scored.tokens, stored_bytes(model, loaded.stored_types))
