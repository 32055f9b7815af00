"""The family of a method of another package: every combination of its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.records import LayerSpec
from autocompress.space.families.base import Family


@dataclass(frozen=True)
class ProductFamily(Family):
    """All combinations of listed settings that the method accepts.

    Attributes:
        method: class of the method.
        settings: name and values of each setting.
    """

    method: type[Method]
    settings: tuple[tuple[str, tuple[Any, ...]], ...]
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.method.name)

    def methods(self) -> Iterator[Method]:
        """Yield every combination that the method accepts.

        Raises:
            MethodError: it accepts none.
        """
        refused: MethodError | None = None
        accepted = False
        names = [name for name, _ in self.settings]
        for values in itertools.product(*(values for _, values in self.settings)):
            try:
                method = self.method(**dict(zip(names, values, strict=True)))
            except MethodError as error:
                refused = error
                continue
            accepted = True
            yield method
        if refused is not None and not accepted:
            raise refused

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination, as the nearest that a matrix allows."""
        for method in self.methods():
            yield method.fitting(spec)
