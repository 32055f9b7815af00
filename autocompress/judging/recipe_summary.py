"""A plan in a few words, for tables, hover boxes and trackers."""

from __future__ import annotations

from collections import Counter

from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec


def methods_by_role(specs: tuple[LayerSpec, ...], plan: Plan) -> dict[str, str]:
    """How each role's matrices are stored, in model order: ``{"up": "3 svd r48, 1 keep"}``.

    A method that stores every matrix of its role is named without a count.
    """
    methods: dict[str, Counter[str]] = {}
    for spec in specs:
        methods.setdefault(spec.role.value, Counter())[str(plan.get(spec.name, Keep()))] += 1
    return {role: _counted(counts) for role, counts in methods.items()}


def _counted(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {method}" for method, count in counts.most_common())


def recipe_lines(
    specs: tuple[LayerSpec, ...], plan: Plan, *, most: int = 12, width: int = 64
) -> list[str]:
    """The same as lines of at most ``width`` characters, and at most ``most`` of them."""
    lines = [f"{role}: {methods}" for role, methods in methods_by_role(specs, plan).items()]
    cut = [line if len(line) <= width else line[: width - 3].rstrip(" ,") + "..." for line in lines]
    return cut if len(cut) <= most else [*cut[: most - 1], f"and {len(cut) - most + 1} more roles"]


def bits_per_weight(specs: tuple[LayerSpec, ...], plan: Plan) -> float:
    """Stored bits per element of the compressible matrices, scales and padding included."""
    elements = sum(spec.parameters for spec in specs)
    return 8 * plan.layer_bytes(specs) / max(elements, 1)
