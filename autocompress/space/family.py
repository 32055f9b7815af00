"""A method with the settings that a space lists for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autocompress.methods.base import Method
from autocompress.methods.listing import Listed
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Family:
    """All settings of one method that a search space offers; an option is one combination.

    Attributes:
        method: its class.
        listed: the values of every key, see ``Listable.space_keys``.
    """

    method: type[Method]
    listed: tuple[tuple[str, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, method: type[Method], **given: tuple[Any, ...]) -> Family:
        """The family with some keys given, and the others as they are where a file has none."""
        return cls(
            method,
            tuple(
                (name, given.get(name, key.default or ()))
                for name, key in method.space_keys().items()
            ),
        )

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.name

    def candidates(self, spec: LayerSpec) -> Iterator[Method]:
        """Yield every combination for one matrix; some may not fit it, some may be equal."""
        return self.method.candidates(self._listed, spec)

    def notices(self, spec: LayerSpec) -> Iterator[str]:
        """Yield what was corrected to suit one matrix; the space names the matrix."""
        return self.method.notices(self._listed, spec)

    @property
    def _listed(self) -> Listed:
        return dict(self.listed)
