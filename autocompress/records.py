"""Records that travel between floors: no tensors, picklable, cheap to import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a matrix does in a transformer."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QKV = "qkv"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    EMBEDDING = "embedding"
    HEAD = "head"
    OTHER = "other"

    @property
    def part(self) -> str:
        """The part of the transformer: ``attention``, ``mlp``, ``embedding`` or ``other``."""
        return _PARTS.get(self, "other")


_PARTS = {
    **dict.fromkeys((Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.OUTPUT), "attention"),
    **dict.fromkeys((Role.GATE, Role.UP, Role.DOWN), "mlp"),
    **dict.fromkeys((Role.EMBEDDING, Role.HEAD), "embedding"),
}


class Kind(StrEnum):
    """Which module holds the matrix, hence how its weight is laid out."""

    LINEAR = "linear"  # weight [out, in]
    CONV1D = "conv1d"  # GPT-2 style: weight [in, out]
    EMBEDDING = "embedding"  # weight [vocabulary, hidden]: out is the vocabulary


@dataclass(frozen=True)
class LayerSpec:
    """One compressible matrix ``[out, in]``.

    Attributes:
        name: path of the module that owns the matrix, as in ``model.named_modules()``; for experts
            in one tensor its name and the number of the expert.
        role: what it does.
        kind: which module holds it.
        out_features: rows of the matrix; for an embedding the vocabulary.
        in_features: columns of the matrix; for an embedding the hidden size.
        dtype: torch name of the stored type, such as ``float32``.
        bias: whether the owning module has a bias (stored with the matrix and counted in its
            bytes).
        depth: index of the transformer block, or ``None`` outside the blocks.
        tied: paths of the other modules that use the same matrix (a head tied to the embedding).
        factors: of the embeddings among these that return their rows times a constant, by path.
    """

    name: str
    role: Role
    kind: Kind
    out_features: int
    in_features: int
    dtype: str = "float32"
    bias: bool = False
    depth: int | None = None
    tied: tuple[str, ...] = ()
    factors: tuple[tuple[str, float], ...] = ()

    def factor_of(self, path: str) -> float:
        """What the embedding at a path multiplies its rows by."""
        return dict(self.factors).get(path, 1.0)

    @property
    def alike(self) -> LayerSpec:
        """The same without what tells matrices of different blocks apart; blocks repeat shapes."""
        return replace(self, name="", depth=None, tied=())

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.out_features, self.in_features

    @property
    def parameters(self) -> int:
        """Number of elements of the matrix, bias not counted."""
        return self.out_features * self.in_features

    def __str__(self) -> str:
        return f"{self.name} [{self.out_features} x {self.in_features}]"


@dataclass(frozen=True)
class Gauge:
    """The words and the scale in which people read how good a kind of model is.

    Attributes:
        figure: name of the figure; also its key in JSON and in MLflow.
        loss: name of the loss that the figure comes from; its key is ``loss_key``.
        loss_key: see ``loss``.
        divergence: name of the divergence from the dense model; its key is in lower case.
        unit: of loss and divergence.
        exponential: whether the figure is the exponential of the loss, and the lower the better;
            else it is 1 less the loss, and the higher the better.
        form: how tables format the figure.
    """

    figure: str
    loss: str
    loss_key: str
    divergence: str
    unit: str
    exponential: bool
    form: str = ".4g"

    def figure_of(self, loss: float) -> float:
        """The figure of a loss; infinite where an exponential overflows."""
        if not self.exponential:
            return 1 - loss
        return exponential(loss)

    def shown(self, figure: float) -> str:
        """A figure with its name: ``perplexity 17.4``."""
        return f"{self.figure} {figure:{self.form}}"

    def excess(self, figure: float, worst: float) -> float:
        """By what share a figure is worse than the worst that is wanted; negative where better."""
        if self.exponential:
            return figure / max(worst, LEAST_FIGURE) - 1
        return (1 - figure) / max(1 - worst, LEAST_FIGURE) - 1

    @property
    def bound(self) -> str:
        """How a limit of the figure begins."""
        return "at most" if self.exponential else "at least"

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A mapping, and those in it, with this gauge's keys.

        ``figure``, ``divergence`` and ``loss`` are renamed, the first two behind other words too
        (``selection_divergence``).
        """
        keys = {"figure": self.figure, "divergence": self.divergence.lower()}
        named = {}
        for key, value in values.items():
            before, line, last = key.rpartition("_")
            name = self.loss_key if key == "loss" else before + line + keys.get(last, last)
            named[name] = self._named(value)
        return named

    def _named(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.named(value)
        return [self._named(each) for each in value] if isinstance(value, list | tuple) else value


def exponential(loss: float) -> float:
    """The exponential of a loss; infinite where it overflows."""
    return math.exp(loss) if not loss > MOST_EXPONENT else math.inf


MOST_EXPONENT = 700.0  # its exponential is a number yet
LEAST_FIGURE = 1e-9  # of a limit, to divide by
PERPLEXITY = Gauge("perplexity", "log-perplexity", "nll", "KL", "nats per token", exponential=True)


@dataclass(frozen=True)
class WindowScores:
    """The same scores window by window, to compare plans in pairs on common tokens.

    Attributes:
        tokens: scored tokens of each window.
        loss: mean loss of each.
        divergence: mean divergence from the dense model of each.
    """

    tokens: tuple[int, ...]
    loss: tuple[float, ...]
    divergence: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """What one model, dense or compressed, was seen to cost and to lose on one text.

    What the three figures of quality are is for its ``Gauge`` to say: for causal language models
    perplexity, log-perplexity and KL divergence.

    Attributes:
        figure: what people read of the quality.
        loss: mean loss that it comes from; lower is better.
        divergence: mean divergence from the dense model.
        tokens: number of scored tokens that these are means over.
        bytes: stored tensors of the whole model.
        latency_ms: median time of one decoded token at batch 1; ``None`` when not measured.
        latency_spread_ms: half the interquartile range of that time.
        text: which text was scored: ``selection``, ``report`` or the name of a file.
        device: where it ran, such as ``cpu (2 threads)``.
        plan_hash: hash of the plan that was applied while measuring.
        cache_bytes_per_token: bytes by which the smallest exact cache of keys and values grows with
            each token; ``None`` when not measured, or when there is no such cache.
        prefill_ms: median time of reading a prompt; ``None`` when not measured.
        windows: the scores of each window; ``None`` in records that were made without.
        cosine: mean cosine between the hidden states before the head and the dense model's at each
            token; ``None`` when not measured.
    """

    figure: float
    loss: float
    divergence: float
    tokens: int
    bytes: int
    latency_ms: float | None
    latency_spread_ms: float | None
    text: str
    device: str
    plan_hash: str
    cache_bytes_per_token: int | None = None
    prefill_ms: float | None = None
    windows: WindowScores | None = field(default=None, repr=False)
    cosine: float | None = None

    def with_times_of(self, other: Measurement) -> Measurement:
        """The same with the times and the cache of another, of the same form on another text."""
        return replace(
            self,
            latency_ms=other.latency_ms,
            latency_spread_ms=other.latency_spread_ms,
            prefill_ms=other.prefill_ms,
            cache_bytes_per_token=other.cache_bytes_per_token,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Read what ``to_dict`` gave, through JSON or not."""
        windows = values.get("windows")
        scores = windows and WindowScores(**{name: tuple(each) for name, each in windows.items()})
        return cls(**{**values, "windows": scores})


@dataclass(frozen=True)
class Skipped:
    """A matrix that was left as it is.

    Attributes:
        name: of the module, or of the parameter where the module has others.
        reason: why.
        bytes: that it takes; those of a tied one count where it is named first.
    """

    name: str
    reason: str
    bytes: int = 0
