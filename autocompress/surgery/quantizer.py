"""Lets transformers load an export: ``from_pretrained`` finds this in its quantizer registry.

A process that has not imported autocompress must not run such a folder with random weights.
transformers 5.23 only warns about a ``quant_method`` it does not know, skips it, and initialises
whatever the checkpoint lacks. Two things make it fail instead: an export keeps its weights in a
file of another name than the one transformers looks for (``OSError: no file named
model.safetensors``), and what ``save_pretrained`` writes under the usual name holds an empty tensor
under the name of each compressed weight, or stack of experts (``RuntimeError``, sizes do not
match).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from autocompress.errors import ConfigurationError, ModelError, RecipeError
from autocompress.surgery.experts import slot_of
from autocompress.surgery.stored_types import dtype_name

QUANT_METHOD = "autocompress"
FORMAT_VERSION = 1


@register_quantization_config(QUANT_METHOD)
class AutocompressConfig(QuantizationConfigMixin):
    """What ``config.json`` says about the stored form of the weights.

    Args:
        recipe: the plan, as ``Plan.to_recipe`` writes it.
        dtype: torch name of the model's type; the first stored tensor need not have it.
        weights: name of the file, or index of files, that holds the tensors; ``None`` for the usual
            names.
        ties: parameters that are one with another, by name, and that other; ``None`` where the
            model's configuration says it rightly.
        version: version of the format.
        quant_method: always ``autocompress``.
        factors: what embeddings multiply their rows by, by the paths of those that are subclasses.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        dtype: str,
        weights: str | None = None,
        ties: dict[str, str] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        factors: dict[str, float] | None = None,
        **unknown: Any,
    ) -> None:
        if unknown or version != FORMAT_VERSION:
            raise ConfigurationError(
                "the folder was exported by another version of autocompress",
                got=f"format {version}" + "".join(f", {key}" for key in unknown),
                wanted=f"format {FORMAT_VERSION}",
                hint="Export it again, or install the version that wrote it.",
            )
        self.quant_method = quant_method  # type: ignore[assignment]  # declared as transformers' own enum
        self.version, self.recipe, self.dtype, self.weights = version, recipe, dtype, weights
        self.ties, self.factors = ties, factors or {}
        self.read_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The settings as ``config.json`` has them: ties and factors only where there are any."""
        settings: dict[str, Any] = super().to_dict()
        del settings["read_from"]
        if self.ties is None:
            del settings["ties"]
        if not self.factors:
            del settings["factors"]
        return settings


@register_quantizer(QUANT_METHOD)
class AutocompressQuantizer(HfQuantizer):  # type: ignore[misc,no-any-unimported,unused-ignore]
    """Builds the compressed layers before the weights are loaded, and keeps their stored types."""

    requires_calibration = True  # nothing is compressed on the fly by from_pretrained
    quantization_config: AutocompressConfig
    _model: Callable[[], nn.Module | None] = staticmethod(lambda: None)

    def attach(self, model: nn.Module) -> None:
        """Know the model whose quantizer this is, without keeping it alive."""
        self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the model, which attaches itself when it is copied or read."""
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse what would not work.

        Raises:
            ConfigurationError: the model is to be spread over several devices.
        """
        if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
            raise ConfigurationError(
                "a model compressed by autocompress cannot be spread over several devices",
                got=f"device_map {device_map}",
                wanted="one device for the whole model",
            )

    def update_device_map(self, device_map: Any) -> Any:
        """Choose one device where accelerate would be left to spread the model."""
        if isinstance(device_map, str) and device_map in (
            "auto",
            "balanced",
            "balanced_low_0",
            "sequential",
        ):
            accelerator = torch.accelerator.current_accelerator()
            return {"": accelerator or torch.device("cpu")}
        return device_map

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of weights and the model's type, in the last call before both are used."""
        config.transformers_weights = self.quantization_config.weights
        config.dtype = getattr(torch, self.quantization_config.dtype)
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:  # noqa: ARG002
        from autocompress.methods.plan import Plan

        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        if self.quantization_config.ties is not None:
            model.all_tied_weights_keys = _ties_in(model, self.quantization_config.ties)
        plan = Plan.from_recipe(self.quantization_config.recipe)
        self.stored = _place_skeletons(model, plan, self.quantization_config.factors)
        guards = _guards(model, (*self.stored, *self.quantization_config.recipe["layers"]))
        model._keys_to_ignore_on_load_unexpected |= {rf"^{re.escape(name)}$" for name in guards}

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Leave tensors of compressed layers in their stored types; others become ``dtype``."""
        path = converter.target_patterns[0].rpartition(".")[0]
        if any(path == stored or path.startswith(f"{stored}.") for stored in self.stored):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        from autocompress.surgery.compressed_model import adopt_class

        # save_pretrained writes the usual file name, whichever this model was loaded from
        self.quantization_config.read_from = self.quantization_config.weights
        self.quantization_config.weights = None
        adopt_class(model)
        self.quantization_config.dtype = dtype_name(model.dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Add an empty tensor under each compressed weight's name: other loaders stop at it."""
        # Experts are written as they are: transformers would cut up what is no stack any more.
        model._weight_conversions = [
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or []
            if not isinstance(conversion, WeightConverter)
        ]
        guards = dict.fromkeys(_guards(model, self.stored), torch.empty(0))
        return model.state_dict() | guards, {}

    def is_serializable(self) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Stored weights cannot; the Trainer asks for this when it is made.

        Raises:
            ModelError: there is no adapter that it could train.
        """
        model = self._model()
        if model is not None and not has_adapter(model):
            raise ModelError(
                "the Trainer cannot train the stored weights of a compressed model",
                wanted="a LoRA adapter on it",
                hint="Attach one: peft.get_peft_model(model, autocompress.lora_config(model)). "
                "`autocompress heal FOLDER` trains the stored weights themselves, against the "
                "dense model.",
            )
        return False


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT has put an adapter on some layer."""
    return any(hasattr(module, "adapter_layer_names") for module in model.modules())


def factors_in(inventory: Any) -> dict[str, float]:
    """What the embeddings of a model multiply their rows by, as a configuration keeps it."""
    return {path: factor for spec in inventory.layers for path, factor in spec.factors}


def _place_skeletons(model: Any, plan: Any, factors: Mapping[str, float]) -> tuple[str, ...]:
    """Replace layers of a model on the meta device by empty compressed ones; return their paths."""
    from autocompress.methods.keep import Keep
    from autocompress.surgery.inventory import take_inventory
    from autocompress.surgery.placement import place

    _tie(model)
    prefix = f"{model.base_model_prefix}."  # with a head or without, paths have it or not
    known = {
        place: factor
        for path, factor in factors.items()
        for place in (path, path.removeprefix(prefix), prefix + path)
    }
    inventory = take_inventory(model, factors=known)
    stored: list[str] = []
    gone: set[str] = set()
    for name, method in plan.items():
        path = _path_in(model, name, inventory)
        if method == Keep() or path is None:
            continue
        spec = inventory[path]
        method.check(spec)
        with torch.device("meta"):
            place(model, spec, method.skeleton(spec).requires_grad_(False))
        stored.append(path)
        gone |= {f"{each}.weight" for each in (path, *spec.tied)}
    forget_ties(model, gone)
    return tuple(stored)


def _guards(model: nn.Module, paths: Iterable[str]) -> set[str]:
    """Names that the tensors of compressed layers have in a dense checkpoint."""
    slots = {path: slot_of(model, path) for path in paths}
    return {slot.stack_path if slot else f"{path}.weight" for path, slot in slots.items()}


def _path_in(model: Any, name: str, inventory: Any) -> str | None:
    """Where a layer of the exported model is in this one: the same, or the same without its head.

    Raises:
        RecipeError: the model has no such layer.
    """
    if name in inventory:
        return name
    prefix = f"{model.base_model_prefix}."
    if name.removeprefix(prefix) in inventory:
        return name.removeprefix(prefix)
    if f"{prefix}{name}" in inventory:
        return f"{prefix}{name}"
    without_head = type(model).base_model is not None and not any(
        known.startswith(prefix) for known in (spec.name for spec in inventory.layers)
    )
    if without_head and not name.startswith(prefix):
        return None
    raise RecipeError(
        f"{type(model).__name__} has no layer {name!r} that this folder stores compressed",
        hint="The folder may be damaged, or written for another architecture.",
    )


def _tie(model: Any) -> None:
    """Let tied weights be one object, as in the exported model; from_pretrained ties them later."""
    for target, source in model.all_tied_weights_keys.items():
        parent, _, name = target.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_parameter(source))


def _ties_in(model: Any, ties: Mapping[str, str]) -> dict[str, str]:
    """Those ties of the exported model that are in this one: the same, or one without its head."""
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    own = {
        name: name if name in known else name.removeprefix(prefix) for name in chain(*ties.items())
    }
    return {own[a]: own[b] for a, b in ties.items() if {own[a], own[b]} <= known}


def state_ties(model: Any, config: Any) -> dict[str, str] | None:
    """Let a configuration say which weights of a dense model are one, as far as it can.

    transformers keeps a head of its own that a checkpoint has, whatever ``tie_word_embeddings``
    says. In memory weights may be shared though it says no.

    Args:
        model: the dense model.
        config: its configuration; ``tie_word_embeddings`` is put right.

    Returns:
        The ties, where a model made from the given configuration would have had others.
    """
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    every = model.get_expanded_tied_weights_keys(all_submodels=True)
    declared = {a: b for a, b in every.items() if {a, b} <= known}
    ties = _ties_of(model, declared)
    if _partition(declared) == _partition(ties):
        return None
    if not ties or not declared:
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = bool(ties)
    return ties


def _ties_of(model: nn.Module, declared: Mapping[str, str]) -> dict[str, str]:
    """Names of parameters that are the same object as another one, and that other's name."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    ties: dict[str, str] = {}
    for names in groups.values():
        owner, *others = sorted(names, key=lambda name: name in declared)
        ties |= dict.fromkeys(others, owner)
    return ties


def _partition(ties: Mapping[str, str]) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for target, source in ties.items():
        groups.setdefault(source, {source}).add(target)
    return {frozenset(group) for group in groups.values()}


def forget_ties(model: nn.Module, gone: set[str]) -> None:
    """Take weights that no longer exist out of the tables by which transformers ties weights."""
    for prefix, module in model.named_modules():
        for table in ("_tied_weights_keys", "all_tied_weights_keys"):
            ties = getattr(module, table, None)
            if isinstance(ties, dict):
                dot = f"{prefix}." if prefix else ""
                kept = {a: b for a, b in ties.items() if not {f"{dot}{a}", f"{dot}{b}"} & gone}
                setattr(module, table, kept)
