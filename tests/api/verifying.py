"""Scores an exported folder in this process, where what a fresh one costs is not to be tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.deploy.verify import Verification
from autocompress.evaluation.scoring import score
from autocompress.evaluation.windows import Windows
from autocompress.surgery.inventory import stored_bytes
from autocompress.surgery.loading import load_model


def score_here(folder: Path, windows: Windows, **settings: Any) -> Verification:
    loaded = load_model(str(folder), **settings)
    model = loaded.model
    scored = score(model, windows)
    return Verification(scored.perplexity, scored.tokens, stored_bytes(model, loaded.stored_types))
