#!/usr/bin/env bash
# peft 0.21.2: LoRA around a custom layer, registered by LoraConfig._register_custom_module, that
# holds its matrix in buffers (integer codes and scales, as quantized layers do) and so has no
# parameter and no attribute named weight.
#
#   - The LoRA layer is built and put into the model. Then the place of the adapter is looked up as
#     qweight, W_q, weight, in_proj_weight, else the first parameter. There is none, and
#     get_peft_model raises StopIteration without a message.
#   - The model is left half changed: the layer is already wrapped, nothing is frozen.
#   - Inside list(map(...)) the StopIteration is taken for the end: an empty list, no error.
#
# The same layer with any tensor under the name qweight works, and so does a layer with a parameter
# of another name.
#
# Exit code 0: seen as described. 1: the behaviour or a version is another one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -I -m pip install --quiet --disable-pip-version-check \
    peft==0.21.2 torch==2.13.0 transformers==5.24.0 accelerate==1.15.0

cat >"$folder/finding.py" <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

VERSION = "0.21.2"


class CodesInBuffers(nn.Module):
    """A linear layer that stores integer codes and a scale per row."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 8
        self.register_buffer("codes", torch.arange(64, dtype=torch.int8).reshape(8, 8) % 15 - 7)
        self.register_buffer("scale", torch.full((8, 1), 0.1))

    def forward(self, x):
        return x @ (self.codes * self.scale).T


class CodesNamedQweight(CodesInBuffers):
    @property
    def qweight(self):
        return self.codes


class ScaleAsParameter(CodesInBuffers):
    def __init__(self):
        super().__init__()
        del self.scale
        self.scale = nn.Parameter(torch.full((8, 1), 0.1))


class LoraCodes(LoraLinear):
    """PEFT's own LoRA layer, registered for the custom ones."""


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.dense, self.custom = nn.Linear(8, 8), layer

    def forward(self, x):
        return self.custom(self.dense(x))


def adapt(model):
    config = LoraConfig(r=2, target_modules=["custom"])
    config._register_custom_module({CodesInBuffers: LoraCodes})
    return get_peft_model(model, config)


def attempt(layer):
    """The error of putting an adapter on, if any, and the model afterwards."""
    torch.manual_seed(0)
    model, x = Model(layer), torch.randn(3, 8)
    before = model(x)
    try:
        adapted = adapt(model)
    except Exception as err:
        return err, model
    torch.testing.assert_close(adapted(x), before)  # a new adapter adds nothing
    return None, model


def main():
    warnings.simplefilter("ignore")  # PEFT says of each custom layer that it is not supported
    for package in ("peft", "torch", "transformers"):
        print(package, version(package))
    seen = {f"peft is {VERSION}": version("peft") == VERSION}

    for layer in (CodesNamedQweight(), ScaleAsParameter()):
        err, model = attempt(layer)
        print(f"{type(layer).__name__}: error {err!r}; dense layer frozen: ", end="")
        print(not model.dense.weight.requires_grad)
        seen[f"{type(layer).__name__} works"] = err is None and not model.dense.weight.requires_grad

    err, model = attempt(CodesInBuffers())
    wrapped, trainable = type(model.custom).__name__, model.dense.weight.requires_grad
    print(f"CodesInBuffers: error {err!r}, its message {str(err)!r}")
    print(f"afterwards: the custom layer is {wrapped}; dense layer frozen: {not trainable}")
    seen["CodesInBuffers: StopIteration without a message"] = (
        type(err) is StopIteration and str(err) == ""
    )
    seen["the model is left half changed"] = wrapped == "LoraCodes" and trainable

    adapted = list(map(adapt, [Model(CodesInBuffers()), Model(CodesInBuffers())]))
    print(f"list(map(adapt, two models)) has {len(adapted)} entries")
    seen["the error is lost in list(map(...))"] = adapted == []

    changed = [label for label, holds in seen.items() if not holds]
    for label in changed:
        print(f"CHANGED: {label}")
    print("behaviour has changed" if changed else "seen as described")
    return 1 if changed else 0


sys.exit(main())
PYTHON

HF_HOME="$folder/huggingface" HF_HUB_OFFLINE=1 "$python" -I "$folder/finding.py"
