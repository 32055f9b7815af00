"""A plan with a bit of everything, for models whose figures do not matter."""

from __future__ import annotations

from collections.abc import Callable

from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.quantize import Quantize
from autocompress.methods.svd import Svd
from autocompress.surgery.inventory import Inventory
from autocompress.surgery.workbench import Workbench

CHOICES: tuple[Method, ...] = (
    Quantize(4, 16),
    Svd(4),
    Keep(),
    Quantize(3, 0),
    Svd(8, bits=8),
    Quantize(8, 16, symmetric=True),
    Quantize(2, 16),
)


def mixed_plan(inventory: Inventory, start: int = 0) -> Plan:
    """Give each layer the next method."""
    return Plan.of(
        {s.name: CHOICES[(start + i) % len(CHOICES)] for i, s in enumerate(inventory.layers)}
    )


def builder(workbench: Workbench) -> Callable[[str, Method], CompressedMatrix]:
    """Build every layer afresh, without calibration."""
    return lambda name, method: method.build(workbench.problem(name))
