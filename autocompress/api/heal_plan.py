"""Heals one plan of a session's model: what trials and folders have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from autocompress.api.session import Session
from autocompress.evaluation.corpus import PARTS, check_disjoint, read_source, token_ids
from autocompress.evaluation.windows import Windows
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.healer import Healed, Healer
from autocompress.healing.settings import HealSettings
from autocompress.healing.student import Student
from autocompress.methods.plan import Plan
from autocompress.records import Measurement


def with_times_of(before: Measurement, seen: Measurement) -> Measurement:
    """What was seen of healed numbers, with the times that their form was seen to take."""
    return replace(
        seen,
        latency_ms=before.latency_ms,
        latency_spread_ms=before.latency_spread_ms,
        prefill_ms=before.prefill_ms,
        cache_bytes_per_token=before.cache_bytes_per_token,
    )


def heal_plan(
    session: Session,
    plan: Plan,
    numbers: Mapping[str, Tensor] | None,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None = None,
) -> Healed:
    """Heal a plan of a session's model, which stays dense.

    Args:
        session: the dense model, its texts and its layers.
        plan: what stores which matrix how.
        numbers: stored tensors to start from; as fitted when left out.
        ids: tokens ``[n]`` to train on.
        settings: how to heal.
        checkpoint: where the run is kept.

    Raises:
        DataError: too few tokens.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    student = Student(session.workbench, plan, session.build, numbers)
    selection = Windows(session.selection_ids, session.context)
    dense = session.workbench.model
    healer = Healer(dense, student, ids, selection, settings, checkpoint, session.progress)
    return healer.run()


def healing_text(session: Session, data: str | None, settings: HealSettings) -> tuple[str, Tensor]:
    """Name and tokens ``[n]`` of the text to heal on: as many as the steps can use.

    Raises:
        DataError: it is too short, or overlaps with the selection or the report text.
    """
    texts = session.texts
    own = texts.calibration if data is None else read_source(data)
    name = texts.names["calibration"] if data is None else data
    if data is not None:
        held_out = {part: getattr(texts, part) for part in PARTS if part != "calibration"}
        check_disjoint(held_out | {"healing": own}, {**texts.names, "healing": data})
    limit = settings.steps * max(settings.tokens, session.context)
    if data is None and "calibration" in session.own.tokens:
        return name, session.own.tokens["calibration"][:limit]
    return name, token_ids(
        own, session.loaded.tokenizer, limit=limit, least=1, name=f"the healing text {name}"
    )
