"""The metrics of a model's matrices in the cache, read one at a time when they are asked for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from autocompress.calibration.collection import entry_of
from autocompress.errors import StorageError
from autocompress.numerics.metric import Curvature, Metric
from autocompress.store import Cache, content_key

UPPER = "_upper"  # of a symmetric matrix what is on the diagonal and above it


class KeptMetrics(Mapping[str, Metric]):
    """Metrics by layer name. Each is read from the cache when it is asked for, and held by nobody.

    Args:
        cache: holds them.
        key: of the calibration that they are from.
        names: the layers.
    """

    def __init__(self, cache: Cache, key: str, names: Sequence[str]) -> None:
        self.cache, self._names = cache, dict.fromkeys(names)
        self._kind = f"statistics/{key}"

    def __getitem__(self, name: str) -> Metric:
        """Read the metric of a layer.

        Raises:
            KeyError: the model has no such layer.
            StorageError: it has been removed from the cache since.
        """
        if name not in self._names:
            raise KeyError(name)
        metric = from_tensors(self._entry(entry_of(name)), name)
        if metric is None:
            raise StorageError(
                f"layer {name}: its statistics are gone from the cache folder {self.cache.root}",
                hint="Start again; they are collected anew.",
            )
        return metric

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def missing(self) -> list[str]:
        """The layers whose metrics are not there, or cannot be read."""
        entries: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            entries[entry_of(name)].append(name)
        there = {
            entry: all(_place(name, 0) + "tokens" in tensors for name in names)
            for entry, names in entries.items()
            for tensors in [self._entry(entry)]
        }
        return [name for name in self._names if not there[entry_of(name)]]

    def keep(self, metrics: Mapping[str, Metric]) -> None:
        """Write metrics, those of the experts of one layer together."""
        entries: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, metric in metrics.items():
            entries[entry_of(name)].update(to_tensors(metric, name))
        for entry, tensors in entries.items():
            self.cache.keep_tensors(self._kind, content_key(entry), tensors)

    def _entry(self, entry: str) -> dict[str, Tensor]:
        return self.cache.tensors(self._kind, content_key(entry)) or {}


class MetricsToCome(Mapping[str, Metric]):
    """Metrics by layer name that are collected when the first is asked for.

    Args:
        collect: collects them.
    """

    def __init__(self, collect: Callable[[], Mapping[str, Metric]]) -> None:
        self._collect = collect

    @cached_property
    def _metrics(self) -> Mapping[str, Metric]:
        return self._collect()

    def __getitem__(self, name: str) -> Metric:
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)


def to_tensors(metric: Metric, name: str) -> dict[str, Tensor]:
    """Flatten a metric for the cache: ``<layer>|<term>|rows``, ``...|columns``, ``...|tokens``.

    Of a Gram matrix the upper triangle is kept, under ``rows_upper`` or ``columns_upper``: half the
    bytes.
    """
    tensors: dict[str, Tensor] = {}
    for index, term in enumerate(metric.terms):
        place = _place(name, index)
        tensors[f"{place}tokens"] = torch.as_tensor(term.tokens)
        for part, gram in (("rows", term.rows), ("columns", term.columns)):
            if gram.ndim == 2:
                tensors[f"{place}{part}{UPPER}"] = gram[_upper(len(gram))]
            else:
                tensors[f"{place}{part}"] = gram
    return tensors


def from_tensors(tensors: Mapping[str, Tensor], name: str) -> Metric | None:
    """Read what ``to_tensors`` wrote; ``None`` when it is not there."""
    terms: list[Curvature] = []
    while (place := _place(name, len(terms))) + "tokens" in tensors:
        rows, columns = (_gram(tensors, place + part) for part in ("rows", "columns"))
        terms.append(Curvature(rows, columns, int(tensors[f"{place}tokens"])))
    return Metric(tuple(terms)) if terms else None


def _place(name: str, term: int) -> str:
    """What the names of a term's tensors begin with."""
    return f"{name}|{term}|"


def _gram(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """A Gram matrix ``[n, n]`` from its triangle ``[n (n + 1) / 2]``, or its diagonal ``[n]``."""
    triangle = tensors.get(f"{key}{UPPER}")
    if triangle is None:
        return tensors[key]
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    upper = torch.zeros(size, size, dtype=triangle.dtype)
    upper[_upper(size)] = triangle
    return upper + upper.triu(1).T


def _upper(size: int) -> Tensor:
    """Where the upper triangle of a matrix ``[size, size]`` is."""
    return torch.ones(size, size, dtype=torch.bool).triu()
