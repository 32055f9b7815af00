"""The native target: a folder that transformers loads with autocompress."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.deploy.exported import Export, ExportReport
from autocompress.deploy.format import Format
from autocompress.deploy.weights import tensor_bytes, weight_files, write_weights
from autocompress.errors import StorageError
from autocompress.methods.base import stored_tensors, torch_dtype
from autocompress.methods.file_size import Entry, file_size
from autocompress.methods.keep import Keep
from autocompress.methods.plan import Plan
from autocompress.surgery.inventory import Inventory, stored_tensors_of
from autocompress.surgery.loading import LoadedModel
from autocompress.surgery.native import NativeTarget
from autocompress.surgery.placement import dense_names, home_of, prefix_of
from autocompress.surgery.quantizer import AutocompressConfig, factors_in, state_ties
from autocompress.surgery.stored_types import main_type

_HOW_TO_LOAD = """```python
import autocompress  # without it transformers does not know how to read the weights
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder"{trust})
tokenizer = AutoTokenizer.from_pretrained("this folder"{trust})
```

`model, tokenizer = autocompress.load("this folder"{trust})` does the same.

The model generates, is saved with `save_pretrained` and pushed to the hub as any other. \
`dtype=` when loading, or `model.to(...)` later, choose the type it computes in; codes, scales and \
factors stay as they are stored. To train it further:

```python
from peft import PeftModel, get_peft_model

adapted = get_peft_model(model, autocompress.lora_config(model, r=16))  # train it, save it
config = autocompress.lora_config(model, "adapter")
adapted = PeftModel.from_pretrained(model, "adapter", config=config)
```

A `LoraConfig` made otherwise finds only the layers that were kept dense. An adapter cannot \
be merged into compressed layers. `Trainer` trains such adapters, and refuses the stored weights \
themselves: `autocompress heal` trains those. New tokens need a dense embedding: \
resize the dense model, then compress it.
"""


class Native(NativeTarget, Format):
    """A folder that transformers loads where autocompress is imported."""

    def write_model(self, export: Export, folder: Path) -> ExportReport:
        """See ``Format``. Every tensor on disk is compared with its closed form."""
        loaded, plan, inventory = export.loaded, export.plan, export.workbench.inventory
        types = _types_by_name(loaded.model, plan, inventory)
        with export.workbench.applied(export.compressed, export.build) as model:
            tensors = {
                name: tensor.to(types.get(name, tensor.dtype))
                for name, tensor in stored_tensors_of(model).items()
            }
            # Not the plan's closed form: in the header BF16, which some scales need, is longer.
            weight_bytes = file_size(Entry.of(name, tensor) for name, tensor in tensors.items())
            weights = write_weights(tensors, folder)
        _write_configuration(loaded, plan, folder, weights, factors_in(inventory))
        sizes = tensor_bytes(folder)
        check_sizes(sizes, plan, inventory, loaded.model)
        file_bytes = sum(path.stat().st_size for path in weight_files(folder))
        return ExportReport(folder, weight_bytes, file_bytes, len(sizes))

    def how_to_load(self, own_code: bool) -> str:
        """See ``Format``."""
        return _HOW_TO_LOAD.format(trust=_trust(own_code))

    def call_to_load(self, folder: Path, own_code: bool) -> str:
        """See ``Format``."""
        return f"autocompress.load({json.dumps(str(folder))}{_trust(own_code)})"


def _trust(own_code: bool) -> str:
    """What a call that loads a model takes besides the folder."""
    return ", trust_remote_code=True" if own_code else ""


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
