"""Builds compressed layers once, and hands them out from memory or from the cache afterwards."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autocompress.free_memory import give_back_memory
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.base import MatrixProblem, Method, placed_errors
from autocompress.methods.keep import Keep
from autocompress.methods.registry import version_of
from autocompress.numerics.metric import Metric
from autocompress.records import LayerSpec
from autocompress.store import Cache, content_key, tensor_key
from autocompress.surgery.workbench import Workbench

MOST_BUILT_BYTES = 256 * 2**20  # of built layers that are held


class LayerBuilder:
    """Compressed layers of one model in one set of metrics, by layer name and method.

    Several threads may fit and keep layers at a time.

    Args:
        workbench: holds the dense model.
        metrics: metric by layer name.
        cache: where built layers are kept between processes.
        memory_bytes: how much of what was built is held, memory-mapped from the cache; the oldest
            goes first.
    """

    def __init__(
        self,
        workbench: Workbench,
        metrics: Mapping[str, Metric],
        cache: Cache,
        *,
        memory_bytes: int = MOST_BUILT_BYTES,
    ) -> None:
        self.workbench, self.metrics, self.cache = workbench, metrics, cache
        self.memory_bytes = memory_bytes
        self._built: OrderedDict[tuple[str, Method], CompressedMatrix] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # the problem that each thread works on
        self._content: dict[str, str] = {}

    def problem(self, name: str) -> MatrixProblem:
        """The matrix with its metric; the last one is remembered with what was factorised of it.

        A matrix that calibration never reached is fitted in the plain metric.
        """
        last: MatrixProblem | None = getattr(self._of_thread, "problem", None)
        if last is None or last.spec.name != name:
            metric = self.metrics.get(name)
            known = metric if metric is not None and metric.reached else None
            last = self._of_thread.problem = self.workbench.problem(name, known)
        return last

    def content_of(self, name: str) -> str:
        """Hash of all that a fit of this layer depends on: weight, bias and metric."""
        if name not in self._content:
            problem = self.problem(name)
            tensors: list[Tensor] = [
                problem.weight,
                *([] if problem.bias is None else [problem.bias]),
            ]
            for term in problem.metric.terms:
                tensors += [term.rows, term.columns]
            self._content[name] = content_key(
                [tensor_key(tensor) for tensor in tensors], problem.spec.dtype
            )
        return self._content[name]

    def key(self, name: str, method: Method) -> str:
        """Address of a built layer in the cache."""
        package = version_of(method.name)
        installed = [package] if package else []  # a fit of another package changes with it
        versions = [method.version, *installed]
        return content_key(self.content_of(name), method.to_dict(), *versions)

    def prepare(self, name: str, methods: Sequence[Method]) -> None:
        """Compute together what several methods are about to be fitted for.

        Raises:
            MethodError: the matrix or its metric has the wrong shape, or holds NaN or infinity.
        """
        kinds: dict[type[Method], list[Method]] = {}
        for method in methods:
            kinds.setdefault(type(method), []).append(method)
        for kind, chosen in kinds.items():
            self.problem(name).check()
            with placed_errors(self.problem(name).spec, kind.name):
                kind.prepare(self.problem(name), chosen)

    def forget_work(self, name: str) -> None:
        """Drop what was factorised of a matrix, keeping the matrix and its metric."""
        self.problem(name).memo.clear()
        give_back_memory()

    def forget_problem(self) -> None:
        """Drop the last matrix with all that was factorised of it: of a large one, gigabytes."""
        self._of_thread.problem = None
        give_back_memory()

    def fit(self, name: str, method: Method) -> CompressedMatrix:
        """Build a layer afresh, keeping nothing."""
        return method.build(self.problem(name))

    def keep(self, name: str, method: Method, layer: CompressedMatrix) -> None:
        """Keep a built layer in the cache, not in memory."""
        self.cache.keep_tensors("layers", self.key(name, method), layer.state_dict())

    def drop(self, name: str, method: Method) -> None:
        """Remove a layer from the cache that is not worth its place."""
        self.cache.drop_tensors("layers", self.key(name, method))

    def build(self, name: str, method: Method) -> CompressedMatrix:
        """Return the layer, from memory, from the cache, or built and kept."""
        known = self._built.get((name, method))
        if known is not None:
            self._built.move_to_end((name, method))
            return known
        layer = self._kept(name, method)
        if layer is None:
            layer = self.fit(name, method)
            self.keep(name, method, layer)
            layer = self._kept(name, method) or layer  # memory-mapped, so that memory can be freed
        device = self.problem(name).weight.device if layer.state_dict() else torch.device("cpu")
        layer = layer.to(device)
        self._remember((name, method), layer)
        return layer

    def _kept(self, name: str, method: Method) -> CompressedMatrix | None:
        tensors = self.cache.tensors("layers", self.key(name, method))
        if tensors is None:
            return None
        return self._from_tensors(self.workbench.inventory[name], method, tensors)

    @staticmethod
    def _from_tensors(
        spec: LayerSpec, method: Method, tensors: dict[str, Tensor]
    ) -> CompressedMatrix:
        with torch.device("meta"):
            layer = method.skeleton(spec)
        layer.load_state_dict(tensors, assign=True)
        return layer.requires_grad_(False)

    def _remember(self, key: tuple[str, Method], layer: CompressedMatrix) -> None:
        with self._lock:
            if key in self._built or isinstance(key[1], Keep):
                return
            self._built[key] = layer
            self._held_bytes += _size(layer)
            while self._held_bytes > self.memory_bytes and len(self._built) > 1:
                _, oldest = self._built.popitem(last=False)
                self._held_bytes -= _size(oldest)


def _size(layer: CompressedMatrix) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
