"""What is left dense, said before the work: what no method can take, and what no text reaches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.listing import usual_group
from autocompress.methods.quantize import Quantize
from autocompress.records import LayerSpec, Skipped
from autocompress.requests.groups import KEEP
from autocompress.session.session import Session
from autocompress.space.space import Space
from autocompress.units import format_bytes

MUCH = 0.05  # of the model's bytes: so much left dense is worth a line
NAMED = 2  # matrices that a line names


def within_reach(session: Session, space: Space, wish: str) -> Space:
    """Narrow a space to what the target opens and the text reaches, and say what is left dense.

    What the calibration text never reaches is held at one method.

    Args:
        session: the model and the text.
        space: what may be chosen.
        wish: ``keep`` or ``8bit``, for the matrices that are not reached.

    Raises:
        DataError: the calibration text cannot be used.
    """
    inventory = session.workbench.inventory
    held = {name: _held(inventory[name], space, wish) for name in session.unreached}
    reached = space.holding(held).opened_in(session.target, inventory.layers)
    for line in _lines(session, reached):
        session.progress.note(line)
    return reached


def unreached_of(session: Session) -> tuple[Skipped, ...]:
    """The matrices that the calibration text never reaches, with the reason and their bytes."""
    inventory = session.workbench.inventory
    return tuple(
        Skipped(name, reason, Keep().cost(inventory[name]))
        for name, reason in session.unreached.items()
    )


def refused_of(space: Space, specs: Iterable[LayerSpec]) -> tuple[Skipped, ...]:
    """The matrices that the target keeps dense, with the reason and their bytes."""
    reasons = ((spec, space.refused(spec)) for spec in specs)
    return tuple(
        Skipped(spec.name, reason, Keep().cost(spec)) for spec, reason in reasons if reason
    )


def warn_of_unreached(session: Session, names: Iterable[str], by: str) -> None:
    """Say which matrices are compressed although the calibration text never reaches them."""
    known = {each.name: each for each in unreached_of(session)}
    chosen = [known[name] for name in names if name in known]
    if chosen:
        session.progress.note(
            f"Warning: {by} compresses {_some(chosen)} of which no loss increase is known: "
            f"{_reasons(chosen)}."
        )


def summary_of(unreached: Sequence[Skipped]) -> str:
    """One line about matrices that are not reached."""
    return f"{_some(unreached)}: {_reasons(unreached)}"


def _held(spec: LayerSpec, space: Space, wish: str) -> Method:
    rule = space.rule_for(spec)
    if wish == KEEP or (rule is not None and rule.methods == (Keep.name,)):
        return Keep()
    method = Quantize(8, usual_group(spec.in_features))
    return method if method.cost(spec) < Keep().cost(spec) else Keep()


def _lines(session: Session, space: Space) -> list[str]:
    inventory = session.workbench.inventory
    kept: list[Skipped] = []
    coded: list[Skipped] = []
    pinned: list[str] = []
    for each in unreached_of(session):
        spec = inventory[each.name]
        if not space.holds(spec) and space.options(spec) != (Keep(),):
            pinned.append(each.name)
        elif space.options(spec) == (Keep(),):
            kept.append(each)
        else:
            coded.append(each)
    lines = []
    if kept:
        lines.append(
            f"Left dense: {_some(kept)} of which no loss increase is known: {_reasons(kept)}. "
            "--unreached 8bit stores them in 8 bits; a recipe that names them is obeyed."
        )
    if coded:
        lines.append(
            f"Stored in 8 bits, as --unreached asks: {_some(coded)} of which no loss increase is "
            f"known: {_reasons(coded)}."
        )
    if refused := refused_of(space, inventory.layers):
        lines.append(
            f"Left dense: {_some(refused)}, which the target {space.target.name} does not open "
            f"otherwise: {_reasons(refused)}."
        )
    warn_of_unreached(session, pinned, f"the search space {space.name}")
    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for each in inventory.skipped:
        by_reason[each.reason].append(each)
    left = sum(each.bytes for each in inventory.skipped)
    if left >= MUCH * inventory.dense_bytes:
        groups = sorted(by_reason.items(), key=lambda group: -sum(each.bytes for each in group[1]))
        lines.append(
            f"Left dense: {format_bytes(left)} of the model's "
            f"{format_bytes(inventory.dense_bytes)}, which no method can take: "
            + "; ".join(f"{_some(some)}: {reason}" for reason, some in groups if _bytes(some))
            + "."
        )
    return lines


def _some(matrices: Sequence[Skipped]) -> str:
    """Count, bytes and the first names: ``3 matrices of 1.2 MB (a, b and 1 more)``."""
    names = ", ".join(each.name for each in matrices[:NAMED])
    more = f" and {len(matrices) - NAMED} more" if len(matrices) > NAMED else ""
    noun = "matrix" if len(matrices) == 1 else "matrices"
    return f"{len(matrices)} {noun} of {format_bytes(_bytes(matrices))} ({names}{more})"


def _reasons(matrices: Iterable[Skipped]) -> str:
    return "; ".join(dict.fromkeys(each.reason for each in matrices))


def _bytes(matrices: Iterable[Skipped]) -> int:
    return sum(each.bytes for each in matrices)
