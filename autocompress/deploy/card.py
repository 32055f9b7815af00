"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.methods.plan import Plan
from autocompress.units import format_bytes

_TEMPLATE = """---
library_name: transformers
tags:
- autocompress
- compressed
---

# {source}, compressed by autocompress

{size} of weights; the dense model has {dense} ({ratio:.3g} times as much). \
Layers: {summary}.{quality}

Which method stores which matrix is in `recipe.yaml`, and what was measured in `measurements.json`.

```python
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


def trust_of(own_code: bool) -> str:
    """What a call that loads a model takes besides the folder."""
    return ", trust_remote_code=True" if own_code else ""


def model_card(source: str, plan: Plan, facts: Mapping[str, Any], *, own_code: bool = False) -> str:
    """Say in a few lines what the folder holds and how to load it."""
    measurement = facts["measurement"] or {}
    quality = ""
    if "perplexity" in measurement:
        text = measurement.get("text")
        where = f" on the {text} text" if text in ("selection", "report") else ""
        quality = f"\nPerplexity{where}: {measurement['perplexity']:.4f}."
    local = Path(source)
    return _TEMPLATE.format(
        source=local.name if local.is_absolute() else source,
        size=format_bytes(facts["bytes"]),
        dense=format_bytes(facts["dense_bytes"]),
        ratio=facts["dense_bytes"] / facts["bytes"],
        summary=plan.summary() or "all kept",
        quality=quality,
        trust=trust_of(own_code),
    )
