"""Whether a budget can be met at all, in closed form, before anything is computed."""

from __future__ import annotations

import math

from autocompress.errors import BudgetUnreachable
from autocompress.methods.keep import Keep
from autocompress.space.space import Space
from autocompress.surgery.inventory import Inventory
from autocompress.units import format_bytes


def smallest_model_bytes(space: Space, inventory: Inventory) -> int:
    """Fewest bytes of any plan of a space: its smallest options, and what is not compressed."""
    matrix_bytes, total = inventory.target.matrix_bytes, inventory.rest_bytes
    grouped: set[str] = set()
    for members in space.grouped(inventory.layers):
        total += min(
            sum(matrix_bytes(method, spec) for spec in members)
            for method in space.shared_options(members)
        )
        grouped.update(spec.name for spec in members)
    free = [spec for spec in inventory.layers if spec.name not in grouped]
    return total + sum(
        min(matrix_bytes(method, spec) for method in space.options(spec)) for spec in free
    )


def check_reachable(space: Space, inventory: Inventory, limit_bytes: int | None) -> None:
    """Make sure that some plan fits the byte limit.

    Raises:
        BudgetUnreachable: none does; the message says the smallest that can be reached.
    """
    if limit_bytes is None:
        return
    least, dense = smallest_model_bytes(space, inventory), inventory.dense_bytes
    if least > limit_bytes:
        reachable = f"{math.floor(dense / least * 100) / 100:.2f}x"
        raise BudgetUnreachable(
            f"no plan of the search space {space.name!r} is as small as the budget",
            got=f"{format_bytes(limit_bytes)} ({dense / max(limit_bytes, 1):.4g}x)",
            wanted=f"at least {format_bytes(least)} ({reachable})",
            hint=f"Ask for --budget {reachable} or less, or allow smaller forms with --space"
            f"{_or_more(space)}.{what_stays(space, inventory)}",
        )


def _or_more(space: Space) -> str:
    """What narrows the space, as what else might be loosened."""
    options = [f"--{name}" for name in space.selection.to_dict()]
    return f", or more with {' and '.join(options)}" if options else ""


def what_stays(space: Space, inventory: Inventory) -> str:
    """What keeps a model from becoming smaller, with what can be done; empty if nothing does."""
    kept = [
        Keep().cost(spec)
        for spec in inventory.layers
        if space.holds(spec) and space.options(spec) == (Keep(),)
    ]
    skipped = sum(matrix.bytes for matrix in inventory.skipped)
    parts = []
    if kept:
        parts.append(
            f"{format_bytes(sum(kept))} stay dense in {len(kept)} matrices that the calibration "
            "text never reaches: --unreached 8bit stores them in 8 bits."
        )
    if skipped:
        parts.append(f"{format_bytes(skipped)} stay dense that no method can take.")
    return "".join(f" {part}" for part in parts)
