"""What the methods whose rows are cut into groups have in common."""

from __future__ import annotations

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.numerics.rounding import group_length
from autocompress.records import LayerSpec


def check_group(method: Method, spec: LayerSpec, group_size: int) -> None:
    """Check that groups divide the rows of a matrix.

    Raises:
        MethodError: they do not; the message names those that do.
    """
    try:
        group_length(spec.in_features, group_size)
    except MethodError as error:
        raise error.within(f"layer {spec}, {method}") from error


def group_label(group_size: int) -> str:
    """Short label of a group size: ``g64``, or ``row``."""
    return f"g{group_size}" if group_size else "row"
