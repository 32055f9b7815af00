"""What a method is: frozen settings that know their rules, exact cost and how to build a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from autocompress.errors import MethodError
from autocompress.layers.base import CompressedMatrix
from autocompress.methods.file_size import Entry
from autocompress.methods.listing import Listable
from autocompress.numerics.metric import Metric
from autocompress.numerics.shrinkage import GramKind
from autocompress.records import LayerSpec

T = TypeVar("T")
FACTOR_BITS = (0, 8, 4)  # bits of a stored factor or core; 0 keeps it in the type of the matrix


class MatrixProblem:
    """One trained matrix, and the metric in which it is to be approximated.

    Decompositions that serve many ranks or methods are computed once per problem, through ``memo``.

    Args:
        spec: which matrix of the model it is.
        weight: ``[out, in]``, any floating-point type.
        metric: what a change of it costs; plain Frobenius when left out.
        bias: ``[out]`` or ``None``.
    """

    def __init__(
        self,
        spec: LayerSpec,
        weight: Tensor,
        metric: Metric | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.spec, self.weight, self.bias = spec, weight, bias
        self.metric = metric or Metric.identity(*spec.shape)
        self.memo: dict[Any, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns; computed at the first call with this key."""
        if key not in self.memo:
            self.memo[key] = compute()
        found: T = self.memo[key]
        return found

    def check(self) -> None:
        """Refuse what no fit can work with; looked at once per problem.

        Raises:
            MethodError: the matrix, or a Gram matrix of its metric, has another shape than the spec
                says, or holds NaN or infinity.
        """
        self.once("checked", self._check_tensors)

    def _check_tensors(self) -> None:
        self._check_tensor("weights", self.weight, self.spec.shape, hint="Check the checkpoint.")
        hint = "Check the calibration text, or load the model in a wider type."
        for term in self.metric.terms:
            grams = zip(
                ("rows", "columns"), (term.rows, term.columns), self.spec.shape, strict=True
            )
            for side, gram, size in grams:
                shape = (size,) if gram.ndim == 1 else (size, size)
                self._check_tensor(f"Gram matrix of the {side}", gram, shape, hint=hint)

    def _check_tensor(
        self, name: str, tensor: Tensor, shape: tuple[int, ...], *, hint: str
    ) -> None:
        what, got = f"layer {self.spec}: {name}", list(tensor.shape)
        if tuple(tensor.shape) != shape:
            raise MethodError(f"{what}, shape", got=got, wanted=f"{list(shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise MethodError(what, got="NaN or infinity", wanted="finite numbers", hint=hint)

    @cached_property
    def weight32(self) -> Tensor:
        """The matrix ``[out, in]`` in fp32."""
        return self.weight.detach().float()

    def loss_increase(self, approximation: Tensor) -> float:
        """Predicted increase of the loss when ``approximation [out, in]`` replaces the matrix.

        The approximation may have padding.
        """
        trimmed = approximation[: self.spec.out_features, : self.spec.in_features].float()
        return self.metric.loss_increase(trimmed - self.weight32)


@dataclass(frozen=True)
class Method(Listable, ABC):
    """Settings of one way to store a matrix. They *are* the method: equal settings, equal methods.

    A subclass is a frozen dataclass with a unique ``name``, registered in ``methods/registry.py``.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1  # of its fit; a raised one is not answered from the cache with older
    factorised: ClassVar[bool] = False  # whether it cuts ranks, alone or beside codes

    @abstractmethod
    def check(self, spec: LayerSpec) -> None:
        """Raise ``MethodError`` when the settings do not fit the matrix."""

    def suits(self, spec: LayerSpec) -> bool:
        """Whether the settings fit the matrix."""
        try:
            self.check(spec)
        except MethodError:
            return False
        return True

    def feasible(self) -> Self:
        """The same with ranks that its own modes allow; itself, where it has none or they do."""
        return self

    def fitting(self, spec: LayerSpec) -> Self:  # noqa: ARG002 - only some have modes and ranks
        """The same with the nearest modes and ranks that a matrix allows; itself, where it fits.

        Other settings that do not fit (a group size that does not divide the row) stay as they are,
        for ``check`` to refuse.
        """
        return self

    def offered_to(self, spec: LayerSpec) -> Self:
        """See ``Listable``."""
        return self.fitting(spec)

    @property
    def is_open(self) -> bool:
        """Whether a setting is left to the matrix, see ``settled``; its bytes are unknown then."""
        return False

    def settled(self, problem: MatrixProblem) -> Self:  # noqa: ARG002 - few leave anything open
        """The same with what it leaves to the matrix; itself, where that is nothing."""
        return self

    @abstractmethod
    def skeleton(self, spec: LayerSpec) -> CompressedMatrix:
        """Make the layer with tensors of the right shapes and types and no meaningful content.

        Called on the meta device to know the cost, and when a stored model is loaded.
        """

    def expected_loss_increase(self, problem: MatrixProblem) -> float | None:  # noqa: ARG002 - not all can
        """Increase of the loss, nats per token, to be expected without a fit, up to a factor.

        The factor is one that fits to similar matrices have in common. ``None`` where a method
        knows nothing without a fit.
        """
        return None

    @abstractmethod
    def fit(self, problem: MatrixProblem) -> dict[str, Tensor]:
        """Compute the stored tensors but the bias, named as in the skeleton's ``state_dict()``."""

    @classmethod
    def prepare(cls, problem: MatrixProblem, methods: Sequence[Self]) -> None:
        """Compute together what these methods are about to be fitted for, into ``problem.memo``.

        Optional: a fit finds there what it needs, or computes it.
        """

    def fit_metric(self, problem: MatrixProblem) -> Metric:
        """The metric that it fits a matrix in."""
        return problem.metric

    def factors_anew(
        self,
        known: CompressedMatrix,  # noqa: ARG002 - only some need a start
        problem: MatrixProblem,
    ) -> CompressedMatrix:
        """What has the ranks of a layer like ``skeleton``'s, refitted to its own matrix.

        Args:
            known: the same at higher ranks, which make up the problem's matrix.
            problem: whose matrix is that of ``known``.
        """
        return self.build(problem)

    def cost(self, spec: LayerSpec) -> int:
        """Exact bytes of what is stored: codes, scales, zero points, factors, padding, the bias."""
        return sum(size for _, size in stored_tensors(self, spec))

    def build(self, problem: MatrixProblem) -> CompressedMatrix:
        """Fit the matrix and return the layer that holds it.

        Raises:
            MethodError: the settings do not fit the matrix, or the matrix or its metric has the
                wrong shape, holds NaN or infinity, or cannot be fitted in.
        """
        self.check(problem.spec)
        if problem.spec.bias != (problem.bias is not None):
            wanted = "one" if problem.spec.bias else "none"
            raise MethodError(
                f"layer {problem.spec}: bias",
                got="none" if wanted == "one" else "one",
                wanted=wanted,
            )
        problem.check()
        if self.is_open:
            return self.settled(problem).build(problem)
        with placed_errors(problem.spec, str(self)):
            with torch.device("meta"):
                layer = self.skeleton(problem.spec)
            tensors = self.fit(problem)
            if layer.bias is not None and problem.bias is not None:
                tensors = tensors | {"bias": problem.bias.detach().to(layer.bias.dtype)}
            layer.load_state_dict(
                {key: value.contiguous() for key, value in tensors.items()}, assign=True
            )
        return layer.requires_grad_(False)

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for recipes: ``{"method": name, **settings}``, tuples as lists."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"method": self.name} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in settings.items()
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Method:
        """Make the method from its settings; lists become tuples.

        Raises:
            MethodError: a setting that is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise MethodError(
                f"method {cls.name} has no setting {unknown[0]!r}", wanted=", ".join(sorted(known))
            )
        try:
            return cls(
                **{
                    key: tuple(value) if isinstance(value, list) else value
                    for key, value in settings.items()
                }
            )
        except TypeError as error:
            raise MethodError(f"method {cls.name}: {error}") from error

    @property
    def is_drawn(self) -> bool:
        """Whether it draws numbers at random, to be trained, in place of fitting the matrix."""
        return False

    def seeded(self, seed: int | None) -> Self:  # noqa: ARG002 - few draw anything
        """The same with what it draws drawn by a seed; itself without one."""
        return self

    @property
    def bits_per_element(self) -> float | None:
        """Bits of its codes, or ``None`` where it stores floating-point numbers."""
        return getattr(self, "bits", 0) or None

    @property
    def gram_kind(self) -> GramKind:
        """How far it trusts the calibrated Gram matrices."""
        kind: GramKind = getattr(self, "gram", "full")
        return kind

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The ranks that it cuts to, one per bond; none where it cuts none."""
        return ()

    def with_ranks(self, ranks: Sequence[int]) -> Self:  # noqa: ARG002 - only some have any
        """The same with other ranks, as far as its modes and the others allow them."""
        return self

    def rank_share(self, spec: LayerSpec) -> float | None:  # noqa: ARG002 - only some cut ranks
        """Smallest share of a possible rank that it keeps, or ``None`` where it cuts no rank."""
        return None

    def parameters(self, spec: LayerSpec) -> int:
        """Weights that it stores: the elements of factors and cores, else of the matrix.

        Codes count for what they stand for, however many bits they have.
        """
        if not self.factorised:
            return spec.parameters
        kept = replace(self, bits=0)  # type: ignore[call-arg]  # of each method with factors
        return sum(entry.elements for entry in stored_entries(kept, spec) if entry.name != "bias")

    @property
    def form(self) -> str:
        """What a plan is counted by: the method, for codes their bits."""
        return self.name

    def __str__(self) -> str:
        """Short label for tables, such as ``quantize 3 bit g64``."""
        return " ".join([self.name, *(f"{f.name}={getattr(self, f.name)}" for f in fields(self))])


@contextmanager
def placed_errors(spec: LayerSpec, method: str) -> Iterator[None]:
    """Put layer and method before an error of a fit, torch's own among them.

    Raises:
        MethodError: whatever the fit raised, and why.
    """
    try:
        yield
    except MethodError as error:
        raise error.within(f"layer {spec}, {method}") from error
    except RuntimeError as error:  # of torch: shapes, memory, a decomposition that fails
        raise MethodError(
            f"layer {spec}, {method} cannot be built",
            got=" ".join(str(error).split()) or type(error).__name__,
            hint="Choose another method or other settings for this layer; --debug shows where it "
            "was raised.",
        ) from error


def repair_notice(wanted: Method, used: Method) -> str:
    """Say which settings were made to fit: ``ranks of tt 8x8 r99 do not fit, used tt 8x8 r64``."""
    changed = [
        field.name
        for field in fields(wanted)
        if getattr(wanted, field.name) != getattr(used, field.name)
    ]
    verb = "does" if changed == ["rank"] else "do"
    return f"{' and '.join(changed)} of {wanted} {verb} not fit, used {used}"


@lru_cache(maxsize=100_000)
def stored_entries(method: Method, spec: LayerSpec) -> tuple[Entry, ...]:
    """What a method stores for a matrix, named within its layer, from its skeleton without data."""
    method.check(spec)
    if method.is_open:
        raise MethodError(
            f"layer {spec}, {method}: its bytes are unknown before it is fitted",
            wanted="a rank",
            hint="A recipe, or the fit of one layer, finds it from the weights.",
        )
    return _entries_of(method, spec.alike)


@lru_cache(maxsize=100_000)
def _entries_of(method: Method, shape: LayerSpec) -> tuple[Entry, ...]:
    with torch.device("meta"):
        layer = method.skeleton(shape)
    return tuple(Entry.of(name, tensor) for name, tensor in layer.state_dict().items())


def stored_tensors(method: Method, spec: LayerSpec) -> tuple[tuple[str, int], ...]:
    """Names and bytes of what a method stores for a matrix."""
    return tuple((entry.name, entry.bytes) for entry in stored_entries(method, spec))


def smallest_share(ranks: tuple[int, ...], limits: tuple[int, ...]) -> float:
    """The smallest of the ranks' shares of what they could be; 1 where there are none."""
    return min((rank / most for rank, most in zip(ranks, limits, strict=True)), default=1.0)


def torch_dtype(spec: LayerSpec) -> torch.dtype:
    """The torch type that a spec names."""
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def whole_number(
    method: str,
    setting: str,
    value: object,
    *,
    least: int | None = None,
    allowed: tuple[int, ...] = (),
) -> None:
    """Check one setting of a method.

    Raises:
        MethodError: not a whole number, below ``least``, or not among those ``allowed``.
    """
    wanted = (
        f"one of {', '.join(map(str, allowed))}"
        if allowed
        else f"a whole number of at least {least}"
    )
    right = isinstance(value, int) and not isinstance(value, bool)
    if right and allowed:
        right = value in allowed
    if not right or (least is not None and isinstance(value, int) and value < least):
        raise MethodError(f"method {method}, {setting}", got=repr(value), wanted=wanted)


def one_of(method: str, setting: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check a setting that is one of a few words.

    Raises:
        MethodError: it is not.
    """
    if value not in allowed:
        raise MethodError(f"method {method}, {setting}", got=repr(value), wanted=", ".join(allowed))


def whole_numbers(method: str, setting: str, values: object, *, empty: bool = False) -> None:
    """Check a setting that is a list of numbers.

    Raises:
        MethodError: no list, an empty one unless that is allowed, or one with anything but whole
            numbers from 1.
    """
    if not isinstance(values, tuple) or not (values or empty):
        raise MethodError(
            f"method {method}, {setting}", got=repr(values), wanted="a list of whole numbers"
        )
    for value in values:
        whole_number(method, setting, value, least=1)
