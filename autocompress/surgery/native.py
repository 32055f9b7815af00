"""The costs of the native target: one safetensors file that autocompress itself opens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from autocompress.methods.base import Method, stored_entries
from autocompress.methods.file_size import OVERHEAD, Entry, file_size
from autocompress.methods.target import Target
from autocompress.records import LayerSpec
from autocompress.surgery.placement import prefix_of


@dataclass(frozen=True)
class NativeTarget(Target):
    """transformers with autocompress: it opens every method, and ties nothing."""

    name: ClassVar[str] = "native"

    def entries(self, method: Method, spec: LayerSpec) -> tuple[Entry, ...]:
        """The tensors of a stored matrix, by their names in the file."""
        prefix = prefix_of(spec)
        stored = stored_entries(method, spec)
        return tuple(entry._replace(name=f"{prefix}{entry.name}") for entry in stored)

    def matrix_bytes(self, method: Method, spec: LayerSpec) -> int:
        """See ``Target``."""
        return sum(entry.most_bytes for entry in self.entries(method, spec))

    def rest_bytes(self, tensors: Iterable[Entry]) -> int:
        """See ``Target``."""
        return OVERHEAD + sum(entry.most_bytes for entry in tensors)

    def file_bytes(
        self, tensors: Iterable[Entry], matrices: Iterable[tuple[Method, LayerSpec]]
    ) -> int:
        """See ``Target``; exact, as the whole header is known."""
        return file_size(chain(tensors, *(self.entries(*each) for each in matrices)))


NATIVE = NativeTarget()
