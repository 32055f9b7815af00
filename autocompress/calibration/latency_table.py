"""What each way of storing each matrix takes of one decoded token, measured once per machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.calibration.layer_timing import Run, Timed, relative_times
from autocompress.calibration.menu import Menu
from autocompress.calibration.uses import Use, bytes_read, uses_of
from autocompress.layers.base import CompressedEmbedding
from autocompress.methods.base import Method, torch_dtype
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.progress import SILENT, Advance, Progress
from autocompress.records import LayerSpec
from autocompress.store import Cache, content_key
from autocompress.surgery.placement import read_weight
from autocompress.surgery.workbench import Workbench
from autocompress.units import format_cpu

TIMING_VERSION = 3  # raise it when what is timed changes, or layers become faster
BYTES_AT_ONCE = 256 * 2**20  # of layers in memory at a time, one more than that at most
# A few times the last cache of usual processors: what is read beyond it changes nothing.
MOST_STREAMED = 128 * 2**20


@dataclass(frozen=True)
class Place:
    """What a latency depends on beside the layer.

    Attributes:
        device: ``cpu`` or the name of the accelerator.
        processor: of the machine.
        threads: of torch.
        torch_version: of the library that computes.
        batch: sequences decoded at a time.
    """

    device: str
    processor: str
    threads: int
    torch_version: str
    batch: int

    @classmethod
    def here(cls, device: torch.device, batch: int) -> Place:
        """This process on a device."""
        on_cpu = device.type == "cpu"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        processor = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
        threads = torch.get_num_threads() if on_cpu else 0
        return cls(name, processor, threads, torch.__version__, batch)

    def __str__(self) -> str:
        if self.device != "cpu":
            return f"{self.device}, batch {self.batch}"
        return f"{format_cpu(self.threads)}, batch {self.batch}"


class LatencyTable:
    """Milliseconds of one decoded token that each matrix takes, by layer name and method.

    Matrices of the same shape, type and use share their times. A time is the median of some calls,
    taken in turn with the dense layer and kept as a multiple of that layer's: a machine that has
    become slower since does not make the options timed later look worse. What is timed is the
    module as a plan would place it (kept matrices as PyTorch's own layer), its tensors filled at
    random: how long it takes depends on their shapes alone, and nothing needs to be fitted for it.
    Between two calls as many bytes are read as the dense model has, so that a layer waits for
    memory where it would in the model: a small one timed by itself stays in a cache, and is several
    times faster.

    A table of embeddings that a head is tied to counts the lookup and the product. An expert counts
    with the share of tokens that it sees if all experts are used alike.

    Args:
        workbench: the dense model, to which no plan is applied at the moment.
        cache: where times are kept between processes, by the machine they were taken on.
        batch: sequences decoded at a time.
        unused: names of matrices that a text never uses; they take no time.
    """

    def __init__(
        self,
        workbench: Workbench,
        cache: Cache,
        *,
        batch: int = 1,
        unused: Collection[str] = (),
    ) -> None:
        model = workbench.model
        self.specs = tuple(spec for spec in workbench.inventory.layers if spec.name not in unused)
        self.device = next(model.parameters()).device
        self.place = Place.here(self.device, batch)
        self._cache = cache
        self._by_name = {spec.name: spec for spec in self.specs}
        self._uses = {spec.name: uses_of(model, spec) for spec in self.specs}
        # Layers are timed in the type that the model computes in, whatever type stores them.
        self._types = {spec.name: read_weight(model, spec).dtype for spec in self.specs}
        self._streamed = min(bytes_read(model, self.specs), MOST_STREAMED)
        self._records: dict[str, dict[str, Any]] = {}
        # What was asked for before: a search asks for each option and plan many times.
        self._addresses: dict[tuple[LayerSpec, Use], str] = {}
        self._times: dict[tuple[str, Method], float] = {}
        self._totals: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        workbench: Workbench,
        menu: Menu,
        cache: Cache,
        *,
        batch: int = 1,
        unused: Collection[str] = (),
        progress: Progress = SILENT,
    ) -> LatencyTable:
        """Make the table and time every option of a menu that the cache lacks."""
        table = cls(workbench, cache, batch=batch, unused=unused)
        options = {layer.spec.name: layer.on_offer for layer in menu.layers}
        table.measure(
            {spec.name: [option.method for option in options[spec.name]] for spec in table.specs},
            progress,
        )
        return table

    def __getitem__(self, layer_and_method: tuple[str, Method]) -> float:
        """Milliseconds a token of one layer by one method, timed now if it has not been yet."""
        if layer_and_method not in self._times:
            name, method = layer_and_method
            self._times[layer_and_method] = sum(
                count * self._milliseconds(self._by_name[name], use, method)
                for use, count in self._uses.get(name, {}).items()
            )
        return self._times[layer_and_method]

    def _milliseconds(self, spec: LayerSpec, use: Use, method: Method) -> float:
        key = None if method == Keep() else _key(method)
        ratios = self._record(spec, use).get("ratios")
        if ratios is None or (key is not None and key not in ratios):
            self._time(spec, use, [] if key is None else [method])
        record = self._record(spec, use)
        ratio = 1.0 if key is None else record["ratios"][key]
        return float(ratio * record["dense_ms"])

    def total(self, plan: Plan) -> float:
        """Milliseconds a token of all matrices under a plan; those that it does not name are kept.

        Raises:
            MethodError: a method does not fit its layer.
        """
        if plan.hash not in self._totals:
            times = (self[spec.name, plan.get(spec.name, Keep())] for spec in self.specs)
            self._totals[plan.hash] = sum(times)
        return self._totals[plan.hash]

    @property
    def dense_ms(self) -> float:
        """Milliseconds a token of all matrices in the dense model."""
        return self.total(Plan(()))

    def untimed(self, methods: Mapping[str, Sequence[Method]]) -> int:
        """How many methods of some layers have no time yet, each once for equal layers."""
        return sum(len(missing) for *_, missing in self._missing(methods))

    def measure(self, methods: Mapping[str, Sequence[Method]], progress: Progress = SILENT) -> None:
        """Time the methods of some layers that have no time yet, each once for equal layers."""
        wanted = self._missing(methods)
        total = sum(len(missing) for *_, missing in wanted)
        if total == 0:
            return
        with progress.task(f"Timing layers on {self.place} (options)", total) as advance:
            for spec, use, missing in wanted:
                if missing:
                    self._time(spec, use, missing, advance)

    def _missing(
        self, methods: Mapping[str, Sequence[Method]]
    ) -> list[tuple[LayerSpec, Use, list[Method]]]:
        """What has no time yet, by one of the layers that are equal."""
        wanted: dict[str, tuple[LayerSpec, Use, dict[Method, None]]] = {}
        for name, chosen in methods.items():
            for use in self._uses[name]:
                spec = self._by_name[name]
                known = self._record(spec, use).get("ratios", {})
                _, _, missing = wanted.setdefault(self._address(spec, use), (spec, use, {}))
                missing |= {m: None for m in chosen if m != Keep() and _key(m) not in known}
        return [(spec, use, list(missing)) for spec, use, missing in wanted.values()]

    def _time(
        self,
        spec: LayerSpec,
        use: Use,
        methods: Sequence[Method],
        advance: Advance = lambda _options: None,
    ) -> None:
        record = self._record(spec, use) or {"place": str(self.place), "ratios": {}}
        rest_of_model = torch.ones(self._streamed // 4, device=self.device)
        for some in _few_at_a_time(methods, spec):
            with torch.inference_mode():
                dense, *options = (self._timed(spec, use, method) for method in (Keep(), *some))
                dense_ms, ratios = relative_times(
                    dense,
                    dict(zip(map(_key, some), options, strict=True)),
                    self._run(torch.sum, rest_of_model),
                )
            record.setdefault("dense_ms", dense_ms)
            record["ratios"] |= ratios
            advance(len(some))
        address = self._address(spec, use)
        self._records[address] = record
        self._cache.keep_record("latencies", address, record)

    def _timed(self, spec: LayerSpec, use: Use, method: Method) -> Timed:
        x = self._input(spec, use)
        run = self._run(self._layer(spec, use, method), x)
        if method.cost(spec) > MOST_STREAMED:
            return Timed(run)
        return Timed(run, self._run(self._layer(spec, use, method), x))

    def _run(self, compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Run:
        if self.device.type == "cpu":
            return lambda: compute(x)

        def run() -> None:
            compute(x)
            torch.accelerator.synchronize(self.device)

        return run

    def _layer(self, spec: LayerSpec, use: Use, method: Method) -> nn.Module:
        dtype = self._types[spec.name]
        if method == Keep():
            if use is Use.LOOKUP:
                return nn.Embedding(*spec.shape, device=self.device, dtype=dtype)
            rows, columns = spec.shape
            return nn.Linear(columns, rows, spec.bias, device=self.device, dtype=dtype)
        with torch.device(self.device):
            matrix = method.skeleton(spec).randomise_().requires_grad_(False)
        return CompressedEmbedding(matrix, dtype=dtype) if use is Use.LOOKUP else matrix

    def _input(self, spec: LayerSpec, use: Use) -> torch.Tensor:
        shape = (self.place.batch, 1)
        if use is Use.LOOKUP:
            return torch.randint(spec.out_features, shape, device=self.device)
        return torch.randn(*shape, spec.in_features, device=self.device).to(self._types[spec.name])

    def _record(self, spec: LayerSpec, use: Use) -> dict[str, Any]:
        address = self._address(spec, use)
        if address not in self._records:
            self._records[address] = self._cache.record("latencies", address) or {}
        return self._records[address]

    def _address(self, spec: LayerSpec, use: Use) -> str:
        if (spec, use) not in self._addresses:
            layer = [list(spec.shape), spec.dtype, spec.bias, use.value]
            if self._types[spec.name] != torch_dtype(spec):
                layer.append(str(self._types[spec.name]))
            self._addresses[spec, use] = content_key(
                TIMING_VERSION, vars(self.place), self._streamed, layer
            )
        return self._addresses[spec, use]


def _few_at_a_time(methods: Iterable[Method], spec: LayerSpec) -> Iterator[list[Method]]:
    """Lists of methods, two layers of each within ``BYTES_AT_ONCE``; an empty one if none."""
    some: list[Method] = []
    size = 0
    for method in methods:
        if some and size + 2 * method.cost(spec) > BYTES_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(method)
        size += 2 * method.cost(spec)
    yield some


def _key(method: Method) -> str:
    return json.dumps(method.to_dict(), sort_keys=True)


def _processor() -> str:
    """Name of the processor: two machines that share a folder may have different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
