"""Heals one plan of a session's model: what trials and folders have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from autocompress.api.session import Session
from autocompress.calibration.cache import content_key, tensor_key
from autocompress.errors import ConfigurationError
from autocompress.evaluation.corpus import PARTS, check_disjoint, read_source, token_ids
from autocompress.evaluation.scoring import Teacher, score
from autocompress.evaluation.windows import Windows
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.hardware import explained_memory
from autocompress.healing.healer import CHECK_TOKENS, Healed, Healer
from autocompress.healing.refit import refit
from autocompress.healing.schedule import LEAST_WINDOWS, windows_of
from autocompress.healing.settings import HealSettings
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.healing.teacher import DenseTeacher
from autocompress.methods.plan import Plan
from autocompress.records import Measurement

REFIT_TEXT = 4  # times as many tokens of the healing text as statistics were collected on
REFIT_VERSION = 1  # raise it when what refitting does changes
WINDOWS_AT_ONCE = 16  # in a pass of the refitting, at most


def with_times_of(before: Measurement, seen: Measurement) -> Measurement:
    """What was seen of healed numbers, with the times that their form was seen to take."""
    return replace(
        seen,
        latency_ms=before.latency_ms,
        latency_spread_ms=before.latency_spread_ms,
        prefill_ms=before.prefill_ms,
        cache_bytes_per_token=before.cache_bytes_per_token,
    )


class HealedPlan(NamedTuple):
    """What came of healing a plan.

    Attributes:
        plan: the same, or with lower ranks where the settings ask to shrink it.
        numbers: its stored tensors.
        healed: how it went, before anything was shrunk.
    """

    plan: Plan
    numbers: dict[str, Tensor]
    healed: Healed


def heal_plan(
    session: Session,
    plan: Plan,
    numbers: Mapping[str, Tensor] | None,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None = None,
    teacher: DenseTeacher | None = None,
) -> HealedPlan:
    """Heal a plan of a session's model, which stays dense.

    Args:
        session: the dense model, its texts and its layers.
        plan: what stores which matrix how.
        numbers: stored tensors to start from; as fitted when left out.
        ids: tokens ``[n]`` to train on.
        settings: how to heal.
        checkpoint: where the run is kept.
        teacher: the dense model's predictions, to share among plans that are healed alike.

    Raises:
        DataError: too few tokens.
        ConfigurationError: no steps, and numbers that cannot be fitted anew.
        AutocompressError: healing diverges, or there is not enough memory.
    """
    if numbers is not None and not settings.steps and settings.shrink is None:
        raise ConfigurationError(
            "there is nothing to fit anew",
            got="numbers that were trained or fitted anew before",
            wanted="at least 1 step",
            hint="Say with --steps how many, or name a trial that was not healed.",
        )
    if checkpoint is not None:
        checkpoint.check()
    with explained_memory(settings):
        healed = _trained(session, plan, numbers, ids, settings, checkpoint, teacher)
    if settings.shrink is None:
        return HealedPlan(plan, healed.numbers, healed)
    layers, progress = session.workbench.inventory.layers, session.progress
    shrunk = shrink(plan, healed.numbers, layers, session.metrics, settings.shrink, progress)
    for cut in shrunk.cuts:
        what = cut.reason or f"{cut.before} to {cut.after}, {cut.measured:.2%} of its norm lost"
        progress.note(f"{cut.name}: {what}")
    return HealedPlan(shrunk.plan, shrunk.numbers, healed)


def _trained(
    session: Session,
    plan: Plan,
    numbers: Mapping[str, Tensor] | None,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None,
    teacher: DenseTeacher | None,
) -> Healed:
    selection = Windows(session.selection_ids, session.context)
    dense = session.workbench.model
    if numbers is None and settings.refit:
        at_once = min(WINDOWS_AT_ONCE, (settings.tokens_at_once or ids.numel()) // session.context)
        watched = selection.first(CHECK_TOKENS // session.context)
        numbers = _refitted(session, plan, ids, watched, max(1, at_once))
    student = Student(session.workbench, plan, session.build, numbers)
    metrics = session.metrics if settings.penalties else None
    progress = session.progress
    return Healer(
        dense, student, ids, selection, settings, checkpoint, progress, metrics, teacher
    ).run()


def _refitted(
    session: Session, plan: Plan, ids: Tensor, selection: Windows, at_once: int
) -> dict[str, Tensor] | None:
    """Stored numbers of matrices fitted anew, or kept from before; ``None`` if they lose more."""
    ids = ids[: refit_tokens(session)]
    key = content_key(session.statistics_key, plan.hash, tensor_key(ids), REFIT_VERSION)
    numbers = session.cache.tensors("refits", key)
    workbench = session.workbench
    if numbers is None:
        batches = torch.split(windows_of(ids, session.context), at_once)
        numbers = refit(
            workbench,
            plan,
            session.build,
            session.metrics,
            batches,
            progress=session.progress,
            folder=session.cache.root,
        )
        session.cache.keep_tensors("refits", key, numbers)
    teacher = Teacher.of(workbench.model, selection)
    divergences = []
    for stored in (None, numbers):
        with workbench.applied(plan, session.build, stored) as model:
            divergences.append(score(model, selection, teacher).kl)
    fitted, anew = divergences
    session.progress.note(
        "Fitted anew to what the compressed model gives each matrix: "
        f"KL {fitted:.4f} to {anew:.4f} on the selection text"
        + ("." if anew < fitted else ", so the first fits are kept.")
    )
    return numbers if anew < fitted else None


def refit_tokens(session: Session) -> int:
    """How many tokens matrices are fitted anew on, where the text has as many."""
    return REFIT_TEXT * session.settings.calibration_tokens


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
    least = LEAST_WINDOWS * session.context
    refitted = refit_tokens(session) if settings.refit else 0
    limit = max(settings.steps * max(settings.tokens, session.context), least, refitted)
    if data is None and "calibration" in session.own.tokens:
        ids = session.own.tokens["calibration"][:limit]
    else:
        tokenizer = session.loaded.tokenizer
        ids = token_ids(own, tokenizer, limit=limit, least=1, name=f"the healing text {name}")
    windows_of(ids, session.context)  # refuses what is too short before anything is done
    return name, ids
