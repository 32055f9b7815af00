"""The plans a person would write: one setting for every matrix. The search must beat them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.grouping import USUAL_GROUP, WHOLE_ROW, usual_group
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.methods.tensor_train import TensorTrain
from autocompress.methods.trellis import Trellis
from autocompress.numerics.shapes import aligned_rank, balanced_modes
from autocompress.records import LayerSpec

UNIFORM_BITS = (8, 4, 3, 2)
UNIFORM_TRELLIS_BITS = (4, 3, 2)
UNIFORM_SHARE = 0.5  # of the parameters, for the factorised plans of a search without a budget


def hand_written_plans(
    specs: Sequence[LayerSpec],
    budget_share: float | None = None,
    *,
    methods: Collection[str] = (),
    kept: Collection[str] = (),
    held: Mapping[str, Method] | None = None,
) -> list[tuple[str, Plan]]:
    """Make the labelled uniform plans: every bit width, plain and by trellis, SVD, tensor train.

    Bit widths come with the usual and with the cheapest grouping. Factorised plans are as large as
    the budget (a share of the dense bytes) allows, as a person would set their ranks.

    Matrices that cannot take a setting (a group that does not divide the row, a matrix too small)
    fall back to the nearest that they can take: whole rows, or kept.

    Args:
        specs: the matrices.
        budget_share: of the dense bytes.
        methods: make the plans of these methods alone; of all when empty.
        kept: names of matrices that stay as they are.
        held: the method that some matrices take in every plan, by name.
    """
    share = UNIFORM_SHARE if budget_share is None else budget_share
    settings: list[tuple[str, str, Callable[[LayerSpec], Method]]] = []
    for bits in UNIFORM_BITS:
        settings += [
            (Quantize.name, f"{bits} bit, groups of {USUAL_GROUP}", partial(_quantize, bits=bits)),
            (Quantize.name, f"{bits} bit, whole rows", partial(_whole_rows, bits=bits)),
        ]
    settings += [
        (Trellis.name, f"{bits} bit trellis", partial(_trellis, bits=bits))
        for bits in UNIFORM_TRELLIS_BITS
    ]
    part = f"{share:.0%} of the parameters"
    settings += [
        (Svd.name, f"SVD, {part}", partial(_svd, share=share)),
        (TensorTrain.name, f"tensor train, {part}", partial(_tensor_train, share=share)),
    ]
    plans = [
        (f"uniform {label}", _uniform(specs, method_for, kept))
        for name, label, method_for in settings
        if not methods or name in methods
    ]
    return [(label, Plan.of({**plan, **(held or {})})) for label, plan in plans]


def _uniform(
    specs: Sequence[LayerSpec],
    method_for: Callable[[LayerSpec], Method],
    kept: Collection[str],
) -> Plan:
    methods: dict[str, Method] = {}
    for spec in specs:
        method = Keep() if spec.name in kept else method_for(spec).fitting(spec)
        try:
            method.check(spec)
        except MethodError:
            method = Keep()
        methods[spec.name] = method
    return Plan.of(methods)


def _whole_rows(_spec: LayerSpec, bits: int) -> Quantize:
    return Quantize(bits, WHOLE_ROW)


def _trellis(_spec: LayerSpec, bits: int) -> Trellis:
    return Trellis(bits, WHOLE_ROW)


def _quantize(spec: LayerSpec, bits: int) -> Quantize:
    return Quantize(bits, usual_group(spec.in_features))


def _svd(spec: LayerSpec, share: float) -> Svd:
    rank = share * spec.parameters / (spec.out_features + spec.in_features)
    return Svd(rank=aligned_rank(rank))


def _tensor_train(spec: LayerSpec, share: float) -> Method:
    out_modes, in_modes = balanced_modes(spec.out_features, 2), balanced_modes(spec.in_features, 2)
    first, last = out_modes[0] * in_modes[0], out_modes[1] * in_modes[1]
    rank = min(int(share * spec.parameters / (first + last)), first, last)
    return TensorTrain(ranks=(max(rank, 1),), out_modes=out_modes, in_modes=in_modes)
