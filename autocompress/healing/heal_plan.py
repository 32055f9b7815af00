"""Heals one plan of a session's model: what trials and folders have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from autocompress.healing.shrink import shrink
from autocompress.healing.student import Student
from autocompress.healing.teacher import DenseTeacher
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.requests.healing import HealSettings
from autocompress.session.session import Session
from autocompress.store import content_key, tensor_key
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.dense_copies import dense_copies
from autocompress.surgery.placement import prefix_of

REFIT_VERSION = 2  # raise it when what refitting does changes
WINDOWS_AT_ONCE, TOKENS_AT_ONCE = 16, 4_096  # in a pass of the refitting, at most


class HealedPlan(NamedTuple):
    """What came of healing a plan.

    Attributes:
        compressed: the same plan, or one with lower ranks where the settings ask to shrink it, with
            its stored weights.
        healed: how it went, before anything was shrunk.
    """

    compressed: Compressed
    healed: Healed


def heal_plan(
    session: Session,
    compressed: Compressed,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None = None,
    teacher: DenseTeacher | None = None,
) -> HealedPlan:
    """Heal a plan of a session's model, which stays dense.

    Args:
        session: the dense model, its texts and its layers.
        compressed: what stores which matrix how, and the weights to start from; those that the
            methods fit where it has none.
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
        healed = _healed(session, compressed, ids, settings, checkpoint, teacher)
    plan = compressed.plan
    if settings.shrink is None:
        return HealedPlan(Compressed(plan, healed.weights), healed)
    layers, progress = session.workbench.inventory.layers, session.progress
    shrunk = shrink(plan, healed.weights, layers, session.metrics, settings.shrink, progress)
    if shrunk.plan == plan and not settings.steps and not settings.refit:
        raise AutocompressError(
            "no rank can be cut",
            wanted=f"some that lose at most {settings.shrink:g} of a matrix's squared norm",
            hint="Raise --shrink, or train with a --penalty first.",
        )
    for cut in shrunk.cuts:
        what = cut.reason or f"{cut.before} to {cut.after}, {cut.measured:.2%} of its norm lost"
        progress.note(f"{cut.name}: {what}")
    return HealedPlan(Compressed(shrunk.plan, shrunk.weights), healed)


def _healed(
    session: Session,
    compressed: Compressed,
    ids: Tensor,
    settings: HealSettings,
    checkpoint: Checkpoint | None,
    teacher: DenseTeacher | None,
) -> Healed:
    selection = session.windows(session.selection_ids)
    seen: Score | None = None
    if not compressed.weights and settings.refit:
        tokens = settings.tokens_at_once or TOKENS_AT_ONCE
        at_once = min(WINDOWS_AT_ONCE, tokens // session.context)
        compressed, seen = _refitted(session, compressed.plan, ids, max(1, at_once))
        if not (compressed.weights or settings.steps or settings.shrink is not None):
            raise AutocompressError(
                "refitting its matrices lowers the divergence no further",
                hint="Train them: autocompress heal with --steps 300.",
            )
    if not settings.steps:
        return _untrained(session, compressed, seen)
    return Healer(
        session.workbench.model,
        Student(session.workbench, compressed, session.builder.build),
        ids[: _tokens_to_train_on(session, settings)],
        selection,
        settings,
        checkpoint,
        session.progress,
        session.metrics if settings.penalties else None,
        teacher,
    ).run()


def _untrained(session: Session, compressed: Compressed, seen: Score | None) -> Healed:
    """Stored weights of a plan as they are given, or as they are fitted; scored if not ``seen``."""
    stored = dict(compressed.weights)
    for name, method in compressed.plan.items():
        prefix = prefix_of(session.workbench.inventory[name])
        if method != Keep() and not any(key.startswith(prefix) for key in stored):
            built = session.builder.build(name, method).state_dict()
            stored |= {prefix + part: tensor for part, tensor in built.items()}
    if seen is None:
        (seen,) = _scores(session, Compressed(compressed.plan, stored))
    check = Check(0, math.nan, seen.divergence, seen.loss)
    return Healed(stored, (check,), check, 0)


def _refitted(session: Session, plan: Plan, ids: Tensor, at_once: int) -> tuple[Compressed, Score]:
    """A plan with its matrices refitted, or kept from before; without, if they lose more.

    Also how what is kept scores.
    """
    ids = ids[: refit_tokens(session)]
    key = content_key(session.statistics_key, plan.hash, tensor_key(ids), REFIT_VERSION)
    weights = session.cache.tensors("refits", key)
    if weights is None:
        weights = refit(
            session.workbench,
            plan,
            session.builder.build,
            session.metrics,
            torch.split(windows_of(ids, session.context, session.begin), at_once),
            progress=session.progress,
            folder=session.cache.root,
        )
        session.cache.keep_tensors("refits", key, weights)
    both = Compressed(plan), Compressed(plan, weights)
    fitted, anew = _scores(session, *both)
    nearer = anew.divergence < fitted.divergence
    session.progress.note(
        "Refitted to what the compressed model gives each matrix: "
        f"{session.objective.gauge.divergence} {fitted.divergence:.4f} to "
        f"{anew.divergence:.4f} on the selection text"
        + ("." if nearer else ", so the first fits are kept.")
    )
    return (both[1], anew) if nearer else (both[0], fitted)


def _scores(session: Session, *each: Compressed) -> Iterator[Score]:
    """Score some after others on the watched part of the selection."""
    windows = session.windows(session.selection_ids)
    watched = windows.first(CHECK_TOKENS // session.context)
    text = session.scored_windows("selection", watched)
    for compressed in each:
        with (
            session.workbench.applied(compressed, session.builder.build) as model,
            dense_copies(model),
        ):
            yield score(model, watched, text.teacher)


def refit_tokens(session: Session) -> int:
    """How many tokens matrices are refitted on, where the text has as many."""
    least = LEAST_WINDOWS * session.context
    return max(session.tokens.refit, least)


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
