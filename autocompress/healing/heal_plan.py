"""Heals one plan of a session's model: what trials and folders have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from autocompress.errors import AutocompressError
from autocompress.evaluation.corpus import PARTS, check_disjoint, read_source
from autocompress.evaluation.encoding import check_known, token_ids
from autocompress.evaluation.scoring import Score, score
from autocompress.healing.checkpoint import Checkpoint
from autocompress.healing.hardware import explained_memory
from autocompress.healing.healer import CHECK_TOKENS, Check, Healed, Healer
from autocompress.healing.refit import refit
from autocompress.healing.schedule import LEAST_WINDOWS, windows_of
from autocompress.healing.settings import HealSettings
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.healing.teacher import DenseTeacher
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.session.session import Session
from autocompress.store import content_key, tensor_key
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.placement import prefix_of

REFIT_VERSION = 2  # raise it when what refitting does changes
WINDOWS_AT_ONCE, TOKENS_AT_ONCE = 16, 4_096  # in a pass of the refitting, at most


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
        AutocompressError: healing diverges, there is not enough memory, or, without steps, fitting
            anew gains nothing or no rank can be cut.
    """
    if checkpoint is not None:
        checkpoint.check()
    with explained_memory(settings):
        healed = _healed(session, plan, numbers, ids, settings, checkpoint, teacher)
    if settings.shrink is None:
        return HealedPlan(plan, healed.numbers, healed)
    layers, progress = session.workbench.inventory.layers, session.progress
    shrunk = shrink(plan, healed.numbers, layers, session.metrics, settings.shrink, progress)
    if shrunk.plan == plan and not settings.steps and not settings.refit:
        raise AutocompressError(
            "no rank can be cut",
            wanted=f"some that lose at most {settings.shrink:g} of a matrix's squared norm",
            hint="Raise --shrink, or train with a --penalty first.",
        )
    for cut in shrunk.cuts:
        what = cut.reason or f"{cut.before} to {cut.after}, {cut.measured:.2%} of its norm lost"
        progress.note(f"{cut.name}: {what}")
    return HealedPlan(shrunk.plan, shrunk.numbers, healed)


def _healed(
    session: Session,
    plan: Plan,
    numbers: Mapping[str, Tensor] | None,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None,
    teacher: DenseTeacher | None,
) -> Healed:
    selection = session.windows(session.selection_ids)
    seen: Score | None = None
    if numbers is None and settings.refit:
        tokens = settings.tokens_at_once or TOKENS_AT_ONCE
        at_once = min(WINDOWS_AT_ONCE, tokens // session.context)
        numbers, seen = _refitted(session, plan, ids, max(1, at_once))
        if numbers is None and not settings.steps and settings.shrink is None:
            raise AutocompressError(
                "fitting its matrices anew lowers the divergence no further",
                hint="Train them: autocompress heal with --steps 300.",
            )
    if not settings.steps:
        return _untrained(session, plan, numbers, seen)
    return Healer(
        session.workbench.model,
        Student(session.workbench, plan, session.build, numbers),
        ids[: _tokens_to_train_on(session, settings)],
        selection,
        settings,
        checkpoint,
        session.progress,
        session.metrics if settings.penalties else None,
        teacher,
    ).run()


def _untrained(
    session: Session, plan: Plan, numbers: Mapping[str, Tensor] | None, seen: Score | None
) -> Healed:
    """Stored numbers of a plan as they are given, or as they are fitted; scored if not ``seen``."""
    stored = dict(numbers or {})
    for name, method in plan.items():
        prefix = prefix_of(session.workbench.inventory[name])
        if method != Keep() and not any(key.startswith(prefix) for key in stored):
            built = session.build(name, method).state_dict()
            stored |= {prefix + part: tensor for part, tensor in built.items()}
    if seen is None:
        (seen,) = _scores(session, plan, stored)
    check = Check(0, math.nan, seen.kl, seen.nll)
    return Healed(stored, (check,), check, 0)


def _refitted(
    session: Session, plan: Plan, ids: Tensor, at_once: int
) -> tuple[dict[str, Tensor] | None, Score]:
    """Stored numbers of matrices fitted anew, or kept from before; ``None`` if they lose more.

    Also how what is kept scores.
    """
    ids = ids[: refit_tokens(session)]
    key = content_key(session.statistics_key, plan.hash, tensor_key(ids), REFIT_VERSION)
    numbers = session.cache.tensors("refits", key)
    if numbers is None:
        numbers = refit(
            session.workbench,
            plan,
            session.build,
            session.metrics,
            torch.split(windows_of(ids, session.context, session.begin), at_once),
            progress=session.progress,
            folder=session.cache.root,
        )
        session.cache.keep_tensors("refits", key, numbers)
    fitted, anew = _scores(session, plan, None, numbers)
    nearer = anew.kl < fitted.kl
    session.progress.note(
        "Fitted anew to what the compressed model gives each matrix: "
        f"KL {fitted.kl:.4f} to {anew.kl:.4f} on the selection text"
        + ("." if nearer else ", so the first fits are kept.")
    )
    return (numbers, anew) if nearer else (None, fitted)


def _scores(session: Session, plan: Plan, *stored: Mapping[str, Tensor] | None) -> Iterator[Score]:
    """Score a plan with some stored numbers after others on the watched part of the selection."""
    windows = session.windows(session.selection_ids)
    watched = windows.first(CHECK_TOKENS // session.context)
    text = session.scored_windows("selection", watched)
    for numbers in stored:
        with (
            session.workbench.applied(plan, session.build, numbers) as model,
            dense_copies(model),
        ):
            yield score(model, watched, text.teacher)


def refit_tokens(session: Session) -> int:
    """How many tokens matrices are fitted anew on, where the text has as many."""
    least = LEAST_WINDOWS * session.context
    return max(session.settings.refit_tokens, least)


def _tokens_to_train_on(session: Session, settings: HealSettings) -> int:
    """How many tokens the steps can use, each once."""
    least = LEAST_WINDOWS * session.context
    return max(settings.steps * max(settings.tokens, session.context), least)


def healing_text(session: Session, data: str | None, settings: HealSettings) -> tuple[str, Tensor]:
    """Name and tokens ``[n]`` of the text to heal on: as many as healing can use.

    Raises:
        DataError: it is too short, or overlaps with the selection or the report text.
    """
    texts = session.texts
    own = texts.calibration if data is None else read_source(data, "calibration")
    name = texts.names["calibration"] if data is None else data
    if data is not None:
        held_out = {part: getattr(texts, part) for part in PARTS if part != "calibration"}
        check_disjoint(held_out | {"healing": own}, {**texts.names, "healing": data})
    refitted = refit_tokens(session) if settings.refit else 0
    limit = max(_tokens_to_train_on(session, settings), refitted)
    if data is None and "calibration" in session.own.tokens:
        ids = session.own.tokens["calibration"][:limit]
    else:
        tokenizer = session.loaded.tokenizer
        ids = token_ids(own, tokenizer, limit=limit, least=1, name=f"the healing text {name}")
    check_known(ids, session.loaded.model, session.loaded.tokenizer, f"the healing text {name}")
    # Refuses what is too short before anything is done.
    windows_of(ids, session.context, session.begin)
    return name, ids
