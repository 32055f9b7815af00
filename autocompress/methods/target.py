"""What a target is: a runtime that an exported model is to open in, an input of the search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from autocompress.errors import MethodError
from autocompress.methods.base import Method
from autocompress.methods.file_size import Entry
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.records import LayerSpec


@dataclass(frozen=True)
class Target(ABC):
    """What a search asks a runtime: which methods it opens, what must be alike, what things cost.

    Every runtime opens dense matrices. How a model is written for it, verified and described is the
    part of a target that lies in ``deploy``; see ``Format``.
    """

    name: ClassVar[str]

    def refuses(self, method: Method, spec: LayerSpec) -> str | None:  # noqa: ARG002 - some open all
        """Say why the runtime does not open a method for a matrix; ``None`` where it does.

        ``keep`` is never asked about.
        """
        return None

    def grouped(self, specs: Sequence[LayerSpec]) -> tuple[tuple[str, ...], ...]:  # noqa: ARG002 - some tie none
        """Names of the matrices that must be stored by the same method, set by set."""
        return ()

    @abstractmethod
    def matrix_bytes(self, method: Method, spec: LayerSpec) -> int:
        """Most bytes of a stored matrix in the container, with its entries in the header."""

    @abstractmethod
    def rest_bytes(self, tensors: Iterable[Entry]) -> int:
        """Most bytes of the container beside matrices: its frame, and tensors that stay."""

    def file_bytes(
        self, tensors: Iterable[Entry], matrices: Iterable[tuple[Method, LayerSpec]]
    ) -> int:
        """Bytes of the container that holds tensors as they are, and matrices by methods."""
        return self.rest_bytes(tensors) + sum(self.matrix_bytes(*each) for each in matrices)

    def opens(self, method: Method, spec: LayerSpec) -> bool:
        """Whether the runtime opens a method for a matrix."""
        return method == Keep() or self.refuses(method, spec) is None

    def check_method(self, method: Method, spec: LayerSpec) -> None:
        """Make sure that the runtime opens a method for a matrix.

        Raises:
            MethodError: it does not; the message says the layer, the method and the reason.
        """
        if not self.opens(method, spec):
            raise MethodError(
                f"layer {spec}, {method}: the target {self.name} does not open it",
                got=self.refuses(method, spec),
                hint="Give the layer another method, keep it dense, or name another target.",
            )

    def check(self, plan: Plan, specs: Sequence[LayerSpec]) -> None:
        """Make sure that the runtime opens all of a plan.

        Raises:
            MethodError: it does not open the method of a matrix, or two matrices that it ties are
                stored by different ones.
        """
        methods = {spec.name: plan.get(spec.name, Keep()) for spec in specs}
        for spec in specs:
            self.check_method(methods[spec.name], spec)
        for first, *others in self.grouped(specs):
            for other in others:
                if methods[other] != methods[first]:
                    raise MethodError(
                        f"layers {first} and {other} differ, which the target {self.name} ties",
                        got=f"{methods[first]} and {methods[other]}",
                        wanted="the same method",
                    )

    def opened(self, plan: Plan, specs: Sequence[LayerSpec]) -> Plan:
        """The plan with the matrices kept dense that the runtime would not open by its methods."""
        methods = dict(plan)
        for spec in specs:
            if spec.name in methods and not self.opens(methods[spec.name], spec):
                methods[spec.name] = Keep()
        for names in self.grouped(specs):
            if len({methods.get(name, Keep()) for name in names}) > 1:
                methods |= dict.fromkeys(names, Keep())
        return Plan.of(methods)
