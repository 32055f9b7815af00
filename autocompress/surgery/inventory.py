"""Finds the matrices of a model that can be compressed, and what the model costs as it is."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autocompress.errors import ModelError, RecipeError
from autocompress.layers.base import CompressedEmbedding, CompressedMatrix, TiedHead
from autocompress.methods.file_size import Entry, file_size
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.methods.target import Target
from autocompress.records import Kind, LayerSpec, Role, Skipped
from autocompress.surgery.experts import bias_name, expert_specs, stacks_of
from autocompress.surgery.forms import KINDS, Form, factors_by_path, form_of
from autocompress.surgery.native import NATIVE
from autocompress.surgery.placement import dense_names, home_of, weight_path
from autocompress.surgery.roles import depth_of, embedding_role, is_router, role_of
from autocompress.surgery.stored_types import dtype_name
from autocompress.surgery.tied import TiedEmbedding

NO_TYPES: Mapping[str, torch.dtype] = MappingProxyType({})
SMALLEST_SIDE = (
    8  # a matrix with fewer rows or columns costs more in scales and names than it could save
)
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COMPRESSED = (CompressedMatrix, CompressedEmbedding, TiedHead, TiedEmbedding)


@dataclass(frozen=True)
class Inventory:
    """The compressible matrices of a model and the bytes of everything.

    Attributes:
        layers: compressible matrices in the order of the model; tied ones are there once.
        skipped: modules that hold a matrix and are left as they are, with the reason.
        rest_bytes: most bytes that what is outside ``layers`` takes in the target's container
            (norms, skipped modules, biases of tied heads, buffers, the frame of the header).
        dense_bytes: bytes of the file of weights of the model as it is, header included.
        dense_elements: number of stored elements.
        stored_types: types of tensors that are stored in another type than they are computed in.
        tensors: what that file holds; without it, sizes of plans leave the header out.
        places: of each layer the module that holds it, and its tensors in that file.
        target: the runtime that plans are for, which knows their bytes.
    """

    layers: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    rest_bytes: int
    dense_bytes: int
    dense_elements: int
    stored_types: Mapping[str, torch.dtype] = field(default_factory=dict, compare=False, repr=False)
    tensors: tuple[Entry, ...] = field(default=(), repr=False)
    places: Mapping[str, tuple[str, tuple[str, ...]]] = field(
        default_factory=dict, hash=False, repr=False
    )
    target: Target = field(default=NATIVE, repr=False)

    @cached_property
    def _by_name(self) -> dict[str, LayerSpec]:
        return {spec.name: spec for spec in self.layers}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> LayerSpec:
        """The matrix of that name.

        Raises:
            RecipeError: the model has no compressible matrix of that name; the message says the
                nearest.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise RecipeError(
                "the model has no such layer to compress", got=repr(name), hint=self._hint(name)
            ) from None

    def _hint(self, name: str) -> str:
        for skipped in self.skipped:
            if skipped.name == name:
                return f"It is left as it is: {skipped.reason}."
        for spec in self.layers:
            if name in spec.tied:
                return f"It is tied to {spec.name!r}; name that one."
        near = difflib.get_close_matches(name, self._by_name, n=1)
        return (
            f"The nearest name is {near[0]!r}."
            if near
            else "The recipe may belong to another model."
        )

    def plan_bytes(self, plan: Plan) -> int:
        """Bytes of the target's container under a plan, header included.

        Experts are taken apart where one is compressed.
        """
        if not self.tensors:
            return plan.layer_bytes(self.layers) + self.rest_bytes
        changed = {self.places[name][0] for name, method in plan.items() if method != Keep()}
        apart = [spec for spec in self.layers if self.places[spec.name][0] in changed]
        gone = {tensor for spec in apart for tensor in self.places[spec.name][1]}
        return self.target.file_bytes(
            (entry for entry in self.tensors if entry.name not in gone),
            ((plan.get(spec.name, Keep()), spec) for spec in apart),
        )

    @property
    def bf16_bytes(self) -> int:
        """Bytes of the file of weights at two bytes an element."""
        header = self.dense_bytes - sum(entry.bytes for entry in self.tensors)
        return 2 * self.dense_elements + (header if self.tensors else 0)


def stored_tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Each tensor of a checkpoint of the model, once: of tied names, the one others are tied to."""
    targets = getattr(model, "all_tied_weights_keys", {})
    names: dict[int, list[str]] = defaultdict(list)
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    chosen = {min(group, key=lambda name: name in targets) for group in names.values()}
    return {name: tensor.detach() for name, tensor in tensors.items() if name in chosen}


def stored_bytes(model: nn.Module, types: Mapping[str, torch.dtype] = NO_TYPES) -> int:
    """Bytes of the file of weights of a model, dense or compressed, its header included.

    Args:
        model: the model.
        types: of tensors that are stored in another type than they are computed in.
    """
    return file_size(_entries_of(model, types))


def _entries_of(model: nn.Module, types: Mapping[str, torch.dtype]) -> tuple[Entry, ...]:
    tensors = stored_tensors_of(model).items()
    return tuple(Entry.of(name, tensor, types.get(name)) for name, tensor in tensors)


def take_inventory(
    model: nn.Module,
    stored_types: Mapping[str, torch.dtype] = NO_TYPES,
    factors: Mapping[str, float] | None = None,
    target: Target = NATIVE,
) -> Inventory:
    """List the compressible matrices of a model. Needs no data: a model on the meta device will do.

    ``nn.Linear``, ``Conv1D`` and ``nn.Embedding`` are taken, and those of their subclasses that
    compute the same, an embedding up to a constant factor. Other subclasses (an adapter, a table of
    positions) are skipped, and so is whatever is tied to them. Experts that transformers stacks in
    one tensor are a matrix each.

    Args:
        model: the dense model.
        stored_types: of tensors that are stored in another type than they are computed in.
        factors: of embeddings by path, where they are known: on the meta device they may be lost.
        target: the runtime that plans are for.

    Raises:
        ModelError: nothing to compress.
    """
    layers, skipped = _sort_out(model, factors or {})
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has nothing to compress",
            wanted="at least one nn.Linear, Conv1D or nn.Embedding with floating-point weights",
            hint=f"First reason: {skipped[0].name}: {skipped[0].reason}." if skipped else "",
        )
    layers = [_as_stored(spec, model, stored_types) for spec in layers]
    tensors = _entries_of(model, stored_types)
    stored = {entry.name for entry in tensors}
    places = {
        spec.name: (
            home_of(model, spec.name),
            tuple(name for name in dense_names(model, spec) if name in stored),
        )
        for spec in layers
    }
    inside = {name for _, names in places.values() for name in names}
    rest = target.rest_bytes(entry for entry in tensors if entry.name not in inside)
    elements = sum(entry.elements for entry in tensors)
    dense, left = file_size(tensors), tuple(skipped)
    known = stored_types, tensors, places, target
    return Inventory(tuple(layers), left, rest, dense, elements, *known)


def _as_stored(spec: LayerSpec, model: nn.Module, types: Mapping[str, torch.dtype]) -> LayerSpec:
    """The same with the type that the checkpoint stores the matrix in."""
    dtype = types.get(weight_path(model, spec))
    return spec if dtype is None else replace(spec, dtype=dtype_name(dtype))


@dataclass(frozen=True)
class _Use:
    """One module that uses a weight as a matrix, or some other way."""

    path: str
    module: nn.Module
    attribute: str
    form: Form | None

    @property
    def is_matrix(self) -> bool:
        return self.is_stack or (self.form is not None and self.attribute == "weight")

    @property
    def is_lookup(self) -> bool:
        """Whether the module looks rows up."""
        return self.form is not None and self.form.kind is Kind.EMBEDDING

    @property
    def is_stack(self) -> bool:
        """Whether it is one matrix for each of several experts."""
        return self.attribute in stacks_of(self.module)

    @property
    def is_stacked_bias(self) -> bool:
        """Whether it is one bias for each of several experts, stored with their matrices."""
        return self.attribute in map(bias_name, stacks_of(self.module))

    @property
    def name(self) -> str:
        """What to call it: the layer, or the parameter where the layer has others."""
        own = self.is_matrix and not self.is_stack
        return self.path if own else f"{self.path}.{self.attribute}"


def _uses(model: nn.Module, factors: Mapping[str, float]) -> Iterator[tuple[nn.Parameter, _Use]]:
    for path, module in model.named_modules(remove_duplicate=False):
        form = form_of(module, factors.get(path))
        for attribute, parameter in module.named_parameters(recurse=False):
            yield parameter, _Use(path, module, attribute, form)


def _sort_out(
    model: nn.Module, factors: Mapping[str, float]
) -> tuple[list[LayerSpec], list[Skipped]]:
    groups: dict[int, list[_Use]] = defaultdict(list)
    inside_compressed = {
        id(m) for root in model.modules() if isinstance(root, _COMPRESSED) for m in root.modules()
    }
    for parameter, use in _uses(model, factors):
        if id(use.module) not in inside_compressed:
            groups[id(parameter)].append(use)
    paths = {path for path, _ in model.named_modules()}
    named = _named_by_model(model)
    layers: list[LayerSpec] = []
    skipped = [
        Skipped(path, "already compressed")
        for path, module in model.named_modules()
        if isinstance(module, _COMPRESSED)
        and not isinstance(model.get_submodule(path.rpartition(".")[0]), _COMPRESSED)
    ]
    for uses in groups.values():
        parameter = getattr(uses[0].module, uses[0].attribute)
        if uses[0].is_stacked_bias:
            continue
        if parameter.ndim < 2 and not any(use.is_matrix for use in uses):
            continue
        reason = _reason_to_skip(uses, parameter, groups, paths)
        if reason:
            sizes = [parameter.nbytes, *[0] * (len(uses) - 1)]
            skipped += [Skipped(u.name, reason, size) for u, size in zip(uses, sizes, strict=True)]
        elif uses[0].is_stack:
            layers += expert_specs(uses[0].path, uses[0].module, uses[0].attribute)
        else:
            layers.append(_spec(uses, named))
    return layers, skipped


def _named_by_model(model: nn.Module) -> dict[int, Role]:
    """Roles of the modules that a transformers model names as its token embedding and its head."""
    roles = {}
    for getter, role in (
        ("get_input_embeddings", Role.EMBEDDING),
        ("get_output_embeddings", Role.HEAD),
    ):
        try:
            module = getattr(model, getter, lambda: None)()
        except (NotImplementedError, AttributeError):  # a model without one says so in either way
            continue
        roles[id(module)] = role
    return roles


def _reason_to_skip(
    uses: list[_Use], parameter: Tensor, groups: dict[int, list[_Use]], paths: set[str]
) -> str | None:
    foreign = next((use for use in uses if not use.is_matrix), None)
    if foreign is not None:
        where = "" if len(uses) == 1 else f"tied to {foreign.path}: "
        return where + _foreign_reason(foreign, parameter)
    first = uses[0]
    if len({id(use.module) for use in uses}) < len(uses):
        return "one module at several places"
    if parameter.dtype not in FLOATING:
        return f"weights of type {parameter.dtype} are not floating point"
    if len(uses) > 1 and any(use.is_stack for use in uses):
        return "experts that several modules share"
    if min(parameter.shape[-2:]) < SMALLEST_SIDE:
        return f"a side shorter than {SMALLEST_SIDE}"
    for use in uses:
        if use.path.rpartition(".")[2] == "relative_attention_bias":
            return "a table of attention biases, whose weight the model reads itself"
        if not use.is_lookup and is_router(use.path, paths.__contains__):
            return "a router among experts"
        if "lora_" in use.path:
            return "part of an adapter; merge it first"
        if isinstance(use.module, nn.Embedding) and use.module.max_norm is not None:
            return "an embedding that renormalises its rows"
    if len(uses) > 1 and any(isinstance(use.module, Conv1D) for use in uses):
        return "a tied matrix that one module stores transposed"
    bias = getattr(_owner(uses).module, "bias", None)
    if bias is not None and len(groups[id(bias)]) > 1:
        return "its bias is shared with " + next(
            u.path for u in groups[id(bias)] if u.module is not first.module
        )
    return None


def _foreign_reason(use: _Use, parameter: Tensor) -> str:
    kind = type(use.module).__name__
    base = next((base.__name__ for base in KINDS if isinstance(use.module, base)), None)
    if base is not None and use.attribute == "weight":
        return f"{kind} is a subclass of {base} that computes something else"
    if base is not None:
        return f"a parameter from which a {kind} makes its weight"
    if parameter.ndim == 3:
        return f"{type(use.module).__name__} stacks matrices in a way of its own"
    return (
        f"a parameter of {type(use.module).__name__}, which is no nn.Linear, Conv1D or nn.Embedding"
    )


def _owner(uses: list[_Use]) -> _Use:
    return next((use for use in uses if use.is_lookup), uses[0])


def _spec(uses: list[_Use], named: dict[int, Role]) -> LayerSpec:
    owner = _owner(uses)
    weight = owner.module.weight
    assert isinstance(weight, Tensor)
    assert owner.form is not None
    kind = owner.form.kind
    out_features, in_features = weight.shape if kind is not Kind.CONV1D else weight.T.shape
    tied = tuple(use.path for use in uses if use is not owner)
    role = embedding_role(owner.path) if kind is Kind.EMBEDDING else role_of(owner.path)
    return LayerSpec(
        name=owner.path,
        role=named.get(id(owner.module), role),
        kind=kind,
        out_features=out_features,
        in_features=in_features,
        dtype=dtype_name(weight.dtype),
        bias=getattr(owner.module, "bias", None) is not None,
        depth=depth_of(owner.path),
        tied=tied,
        factors=factors_by_path({use.path: use.form for use in uses if use.form is not None}),
    )
