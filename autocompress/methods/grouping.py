"""What the methods whose rows are cut into groups have in common."""

from __future__ import annotations

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.numerics.rounding import group_length
from autocompress.records import LayerSpec

WHOLE_ROW = 0  # the group size that means one group per row
USUAL_GROUP = 64  # what a person would take


def usual_group(columns: int) -> int:
    """The usual group size for rows of so many columns: the whole row, where it divides none."""
    return USUAL_GROUP if columns % USUAL_GROUP == 0 else WHOLE_ROW


def named_group(columns: int, group_size: int) -> int:
    """The group size by its one name: a group as long as the row *is* the whole row."""
    return WHOLE_ROW if group_size == columns else group_size


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
