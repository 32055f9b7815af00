"""The types that a checkpoint stores its tensors in, whatever type they are computed in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

# Names as in the headers of safetensors files.
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
StoredTypes = Mapping[str, torch.dtype]


def stored_types(model: Any, place: str, weights: str | None = None) -> dict[str, torch.dtype]:
    """Types of those tensors of a loaded model that its checkpoint stores in another one.

    Args:
        model: as ``from_pretrained`` gives it.
        place: the folder, or the name on the hub, that it was loaded from.
        weights: name of the file of weights, or of their index; the usual names when left out.

    Returns:
        By name in ``state_dict()``. A tensor that transformers makes of several has the type of the
        first.
    """
    tensors = model.state_dict(keep_vars=True)
    found: dict[str, torch.dtype] = {}
    headers = _headers(place, weights)
    for key, dtype in headers.items():
        for name in _names_in(model, key, tensors):
            found.setdefault(name, dtype)
    by_tensor = {id(tensors[name]): dtype for name, dtype in found.items()}
    types = {name: by_tensor.get(id(tensor), tensor.dtype) for name, tensor in tensors.items()}
    return {
        name: dtype
        for name, dtype in types.items()
        if tensors[name].is_floating_point() and dtype != tensors[name].dtype
    }


def dtype_name(dtype: torch.dtype) -> str:
    """What torch calls a type: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def main_type(model: nn.Module, types: StoredTypes) -> torch.dtype:
    """The type that most elements of a model are stored in."""
    counts: dict[torch.dtype, int] = {}
    for name, parameter in model.named_parameters():
        dtype = types.get(name, parameter.dtype)
        counts[dtype] = counts.get(dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _names_in(model: Any, key: str, tensors: Mapping[str, Any]) -> Iterable[str]:
    """What a tensor of the checkpoint is called in the model, after what transformers renames."""
    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    name, source = rename_source_key(
        key, renamings, converters, model.base_model_prefix, dict(tensors)
    )
    names = [name, key]
    for converter in converters:
        if source in converter.source_patterns:
            first, *others = converter.target_patterns
            names += [name.replace(first, other) for other in others]
    return [name for name in names if name in tensors]


def _headers(place: str, weights: str | None) -> dict[str, torch.dtype]:
    """Type of each floating-point tensor in the files of a checkpoint."""
    types: dict[str, torch.dtype] = {}
    for path in _files(place, weights):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  # it is no mapping
                    name = file.get_slice(key).get_dtype()
                    if name in _TYPES:
                        types[key] = _TYPES[name]
        else:
            tensors = torch.load(path, map_location="meta", weights_only=True, mmap=True)
            types |= {key: t.dtype for key, t in tensors.items() if t.is_floating_point()}
    return types


def _files(place: str, weights: str | None) -> Iterator[Path]:
    usual = [
        f"{stem}{end}"
        for stem in ("model.safetensors", "pytorch_model.bin")
        for end in ("", ".index.json")
    ]
    for name in [weights] if weights else usual:
        path = _file(place, name)
        if path is None:
            continue
        if path.suffix != ".json":
            yield path
            return
        index = json.loads(path.read_text("utf-8"))["weight_map"]
        for shard in sorted(set(index.values())):
            part = _file(place, shard)
            if part is not None:
                yield part
        return


def _file(place: str, name: str) -> Path | None:
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    found = try_to_load_from_cache(place, name)
    return Path(found) if isinstance(found, str) else None
