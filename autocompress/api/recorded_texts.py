"""The texts that an exported folder was made and measured with, as its measurements record them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autocompress.deploy.documents import MEASUREMENTS
from autocompress.evaluation.text_files import absolute_source
from autocompress.paths import BUNDLED
from autocompress.requests.base import options_of
from autocompress.requests.groups import TextRequest
from autocompress.session.session import Session
from autocompress.surgery.loading import is_bundled

TEXTS = "texts"  # the key in the measurements


def texts_to_record(session: Session) -> dict[str, Any] | None:
    """The settings of a session's texts, valid from any folder; ``None`` for texts in memory."""
    if session.own.texts or session.own.tokens:
        return None
    facts = session.sources.to_dict()
    for name, value in facts.items():
        if name.endswith("data") and value is not None:
            facts[name] = absolute_source(value)
    if facts["data"] is None and is_bundled(session.loaded.source):
        facts["data"] = BUNDLED
    return facts


def recorded_texts(folder: str | Path | None) -> TextRequest | None:
    """The texts that a folder was made with; ``None`` where it is no exported one or says none."""
    if folder is None:
        return None
    try:
        facts = json.loads((Path(folder).expanduser() / MEASUREMENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    recorded = facts.get(TEXTS)
    if isinstance(recorded, dict) and recorded.keys() <= options_of(TextRequest).keys():
        return TextRequest(**recorded)
    return TextRequest(data=BUNDLED) if is_bundled(facts.get("model", "")) else None
