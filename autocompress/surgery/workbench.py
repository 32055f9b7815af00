"""The one place where a model is changed: applies a plan and puts everything back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from autocompress.errors import AutocompressError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.numerics.metric import Metric
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.compressed_model import class_adopted
from autocompress.surgery.inventory import Inventory, take_inventory
from autocompress.surgery.placement import bias_of, home_of, place, set_module, weight_of
from autocompress.surgery.stored_weights import StoredWeights

Build = Callable[[str, Method], CompressedMatrix]


class Workbench:
    """A dense model to which plans are applied for a while.

    The dense modules themselves are set aside and put back, so afterwards every tensor is the same
    object with the same bits, tied weights included.

    Args:
        model: the dense model.
        inventory: its matrices; taken from the model when left out.
    """

    def __init__(self, model: nn.Module, inventory: Inventory | None = None) -> None:
        self.model = model
        self.inventory = inventory or take_inventory(model)
        self._homes = {spec.name: home_of(model, spec.name) for spec in self.inventory.layers}
        self._dense = {
            path: model.get_submodule(path)
            for spec in self.inventory.layers
            for path in (self._homes[spec.name], *spec.tied)
        }
        self._applied = False

    def problem(self, name: str, metric: Metric | None = None) -> MatrixProblem:
        """The dense matrix of a layer as a problem to approximate, also while a plan is applied.

        Raises:
            RecipeError: the model has no such layer.
        """
        spec = self.inventory[name]
        home = self._dense[self._homes[name]]
        return MatrixProblem(spec, weight_of(home, spec), metric, bias_of(home, spec))

    @contextmanager
    def applied(self, plan: Plan | Compressed, build: Build) -> Iterator[nn.Module]:
        """Give the model with a plan applied; on exit, also by an exception, it is dense again.

        Args:
            plan: a plan, with stored weights or without. Layers that it keeps, or does not name,
                stay untouched. Parameters beside its matrices are replaced as well, where it has
                weights of them.
            build: makes the compressed matrix of a layer of which there are no weights.

        Raises:
            RecipeError: the plan names a layer that the model lacks, or the weights do not fit it.
            AutocompressError: another plan is applied at the moment.
        """
        if self._applied:
            raise AutocompressError(
                "a plan is already applied to this model", hint="Leave the first one before."
            )
        compressed = Compressed.of(plan)
        specs = [(self.inventory[name], method) for name, method in compressed.plan.items()]
        stored = StoredWeights(compressed.weights)
        self._applied = True
        replaced: list[str] = []
        put_back: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for spec, method in specs:
                if method == Keep():
                    continue
                device = weight_of(self._dense[self._homes[spec.name]], spec).device
                matrix = stored.matrix(spec, method, device) or build(spec.name, method)
                replaced += (self._homes[spec.name], *spec.tied)
                place(self.model, spec, matrix)
            for module, name, parameter in stored.others(self.model):
                put_back.append((module, name, module.get_parameter(name)))
                module.register_parameter(name, parameter)
            with class_adopted(self.model):
                yield self.model
        finally:
            for module, name, parameter in reversed(put_back):
                module.register_parameter(name, parameter)
            for path in replaced:
                set_module(self.model, path, self._dense[path])
            self._applied = False
