"""The plans a person would write: one setting for every matrix. The search must beat them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.listing import Baseline
from autocompress.methods.plan import Plan
from autocompress.methods.registry import METHODS
from autocompress.methods.target import Target
from autocompress.records import LayerSpec
from autocompress.surgery.native import NATIVE

UNIFORM_SHARE = 0.5  # of the parameters, for the factorised plans of a search without a budget


def baseline_plans(
    specs: Sequence[LayerSpec],
    budget_share: float | None = None,
    *,
    methods: Collection[str] = (),
    kept: Collection[str] = (),
    held: Mapping[str, Method] | None = None,
    target: Target = NATIVE,
) -> list[tuple[str, Plan]]:
    """Make the labelled uniform plans: the baselines of every method.

    Factorised plans are as large as the budget (a share of the dense bytes) allows, as a person
    would set their ranks.

    Matrices that cannot take a setting (a group that does not divide the row, a matrix too small)
    fall back to the nearest that they can take: whole rows, or kept.

    Args:
        specs: the matrices.
        budget_share: of the dense bytes.
        methods: make the plans of these methods alone; of all when empty.
        kept: names of matrices that stay as they are.
        held: the method that some matrices take in every plan, by name.
        target: what the plans are for; matrices that it refuses to open by a method are kept, and a
            plan of which nothing is left is left out.
    """
    share = UNIFORM_SHARE if budget_share is None else budget_share
    plans = [
        (f"uniform {baseline.label}", _uniform(specs, baseline, kept))
        for name, method in METHODS.items()
        if not methods or name in methods
        for baseline in method.baselines(share)
    ]
    wanted = [(label, Plan.of({**plan, **(held or {})})) for label, plan in plans]
    opened = [(label, plan, target.opened(plan, specs)) for label, plan in wanted]
    return [
        (label, found)
        for label, plan, found in opened
        if found == plan or any(method != Keep() for method in found.values())
    ]


def _uniform(specs: Sequence[LayerSpec], baseline: Baseline, kept: Collection[str]) -> Plan:
    methods: dict[str, Method] = {}
    for spec in specs:
        method = Keep() if spec.name in kept else baseline.of(spec).fitting(spec)
        try:
            method.check(spec)
        except MethodError:
            method = Keep()
        methods[spec.name] = method
    return Plan.of(methods)
