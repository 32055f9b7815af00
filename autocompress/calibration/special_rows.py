"""Rows of tokens that no plain text holds, in the metric of a token embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autocompress.numerics.metric import Metric
from autocompress.records import Kind, LayerSpec, Role


def at_least_average(metric: Metric, spec: LayerSpec, special: Sequence[int]) -> Metric:
    """Give special tokens at least the average frequency of a token.

    Chat markers and the end of a text do not occur in a calibration text, yet every use of the
    model may hold them.

    Args:
        metric: of the matrix, with its lookup first.
        spec: the matrix.
        special: ids of the special tokens.
    """
    if spec.kind is not Kind.EMBEDDING or spec.role is not Role.EMBEDDING:
        return metric
    lookup = metric.terms[0]
    known = [index for index in special if index < len(lookup.rows)]
    if not known:
        return metric
    rows = lookup.rows.clone()
    rows[known] = rows[known].clamp_min(1 / len(rows))
    return Metric((replace(lookup, rows=rows), *metric.terms[1:]))
