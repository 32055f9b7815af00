"""Writes a compressed model as a folder that transformers loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from autocompress import __version__
from autocompress.deploy.card import model_card
from autocompress.deploy.folder import whole_folder
from autocompress.deploy.weights import tensor_bytes, weight_files, write_weights
from autocompress.errors import ModelError, StorageError
from autocompress.methods.base import stored_tensors, torch_dtype
from autocompress.methods.file_size import Entry, file_size
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.surgery.inventory import Inventory, stored_tensors_of, take_inventory
from autocompress.surgery.loading import LoadedModel, has_own_code, is_exported
from autocompress.surgery.placement import dense_names, home_of, prefix_of
from autocompress.surgery.quantizer import AutocompressConfig, factors_in, state_ties
from autocompress.surgery.stored_types import dtype_name, main_type
from autocompress.surgery.workbench import Build, Workbench

RECIPE = "recipe.yaml"
NO_HEADER: Mapping[str, Any] = MappingProxyType({})
MEASUREMENTS = "measurements.json"


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where it is.
        weight_bytes: bytes of all weights as one file, its header included.
        file_bytes: bytes of the files of weights; more only where there are several.
        tensors: number of tensors.
    """

    folder: Path
    weight_bytes: int
    file_bytes: int
    tensors: int

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def export_checkpoint(
    loaded: LoadedModel,
    plan: Plan,
    build: Build,
    out: Path,
    *,
    measurement: dict[str, Any] | None = None,
    numbers: Mapping[str, Tensor] | None = None,
    header: Mapping[str, Any] = NO_HEADER,
    overwrite: bool = False,
) -> ExportReport:
    """Apply a plan to a dense model and write the result.

    The folder holds config, generation config, tokenizer, weights, recipe, measurements and a model
    card. It is written whole or not at all, and every tensor on disk is compared with what the
    closed form says of it.

    Args:
        loaded: the dense model; it is dense again afterwards.
        plan: what to store how.
        build: makes the compressed matrix of a layer by a method.
        out: the folder to write.
        measurement: what is known of this plan, for the card and ``measurements.json``.
        numbers: stored tensors of a healed plan, see ``Workbench.applied``.
        header: what the recipe says beside the plan, such as the seed.
        overwrite: whether a model in ``out`` may be replaced.

    Raises:
        ModelError: the model is a compressed one already.
        RecipeError: the plan names a layer that the model lacks.
        ConfigurationError: ``out`` is in use.
        StorageError: it cannot be written, or what was written is not what was meant.
    """
    with whole_folder(out, overwrite=overwrite) as folder:
        report = write_checkpoint(
            loaded, plan, build, folder, measurement=measurement, numbers=numbers, header=header
        )
    return replace(report, folder=out.expanduser().absolute())


def write_checkpoint(
    loaded: LoadedModel,
    plan: Plan,
    build: Build,
    folder: Path,
    *,
    measurement: dict[str, Any] | None = None,
    numbers: Mapping[str, Tensor] | None = None,
    header: Mapping[str, Any] = NO_HEADER,
) -> ExportReport:
    """Apply a plan to a dense model and write the result into an empty folder.

    See ``export_checkpoint``, which gives such a folder.
    """
    if is_exported(loaded.model):
        raise ModelError(
            f"{loaded.source} is compressed already", wanted="the dense model it was made from"
        )
    inventory = take_inventory(loaded.model, loaded.stored_types)
    workbench = Workbench(loaded.model, inventory)
    types = _types_by_name(loaded.model, plan, inventory)
    with workbench.applied(plan, build, numbers) as model:
        tensors = {
            name: tensor.to(types.get(name, tensor.dtype))
            for name, tensor in stored_tensors_of(model).items()
        }
        # Not the plan's closed form: in the header BF16, which some scales need, is longer.
        weight_bytes = file_size(Entry.of(name, tensor) for name, tensor in tensors.items())
        weights = write_weights(tensors, folder)
    _write_configuration(loaded, plan, folder, weights, factors_in(inventory))
    _write_documents(loaded, plan, folder, inventory, measurement, header)
    sizes = tensor_bytes(folder)
    check_sizes(sizes, plan, inventory, loaded.model)
    file_bytes = sum(path.stat().st_size for path in weight_files(folder))
    return ExportReport(folder, weight_bytes, file_bytes, len(sizes))


def check_sizes(sizes: dict[str, int], plan: Plan, inventory: Inventory, dense: nn.Module) -> None:
    """Compare the bytes of every tensor on disk with the closed form.

    Raises:
        StorageError: a tensor is missing, unexpected, or of another size.
    """
    types = inventory.stored_types
    wanted = {name: _bytes(t, types.get(name)) for name, t in stored_tensors_of(dense).items()}
    changed = {home_of(dense, name) for name, method in plan.items() if method != Keep()}
    for spec in inventory.layers:
        if home_of(dense, spec.name) not in changed:
            continue
        for name in dense_names(dense, spec):
            wanted.pop(name, None)
        stored = stored_tensors(plan.get(spec.name, Keep()), spec)
        wanted |= {f"{prefix_of(spec)}{part}": size for part, size in stored}
    for name in sorted(wanted.keys() | sizes.keys()):
        if wanted.get(name) != sizes.get(name):
            raise StorageError(
                f"tensor {name} on disk is not what its method stores",
                got=f"{sizes.get(name, 'no')} bytes",
                wanted=f"{wanted.get(name, 'no')} bytes",
                hint="This is a fault of autocompress; the folder was not kept.",
            )


def _types_by_name(dense: nn.Module, plan: Plan, inventory: Inventory) -> dict[str, torch.dtype]:
    """Types to write the tensors beside compressed matrices in, where they are computed in others.

    Experts that a plan keeps beside others that it compresses have names of their own.
    """
    types = dict(inventory.stored_types)
    methods = dict(plan.items())
    changed = {home_of(dense, name) for name, method in methods.items() if method != Keep()}
    for spec in inventory.layers:
        if home_of(dense, spec.name) not in changed:
            continue
        for name in dense_names(dense, spec):
            types.pop(name, None)
        if methods.get(spec.name, Keep()) == Keep():
            stored = stored_tensors(Keep(), spec)
            types |= {f"{prefix_of(spec)}{part}": torch_dtype(spec) for part, _ in stored}
    return types


def _bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _write_configuration(
    loaded: LoadedModel, plan: Plan, folder: Path, weights: str, factors: dict[str, float]
) -> None:
    model = loaded.model
    dtype = str(main_type(model, loaded.stored_types)).removeprefix("torch.")
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    ties = state_ties(model, config)
    stored = AutocompressConfig(plan.to_recipe(), dtype, weights, ties, factors=factors)
    config.quantization_config = stored.to_dict()
    config.save_pretrained(folder)
    generation_config = getattr(model, "generation_config", None)
    if generation_config is not None and model.can_generate():
        # not save_pretrained, which refuses settings that the dense checkpoint was published with
        generation_config.to_json_file(folder / "generation_config.json")
    loaded.tokenizer.save_pretrained(folder)


def _write_documents(
    loaded: LoadedModel,
    plan: Plan,
    folder: Path,
    inventory: Inventory,
    measurement: dict[str, Any] | None,
    header: Mapping[str, Any],
) -> None:
    recipe = plan.to_recipe()
    origin = {
        "version": recipe.pop("version"),
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
    }
    known = {"measurement": measurement} if measurement else {}
    text = yaml.safe_dump(
        origin | known | dict(header) | recipe, sort_keys=False, default_flow_style=None, width=120
    )
    (folder / RECIPE).write_text(text, encoding="utf-8")
    facts = {
        "autocompress": __version__,
        "model": loaded.source,
        "fingerprint": loaded.fingerprint,
        "plan": plan.hash,
        "computed_in": dtype_name(loaded.model.dtype),
        "bytes": inventory.plan_bytes(plan),
        "dense_bytes": inventory.dense_bytes,
        "measurement": measurement,
    }
    if loaded.quantized_by:
        facts["quantized_by"] = loaded.quantized_by
    (folder / MEASUREMENTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    card = model_card(loaded.source, plan, facts, own_code=has_own_code(loaded))
    (folder / "README.md").write_text(card, encoding="utf-8")
