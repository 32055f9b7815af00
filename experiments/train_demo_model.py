"""Train the model that ships with autocompress, from nothing but a Python installation.

    python experiments/train_demo_model.py --out autocompress/demo --tokens 20M

Writes the model, its tokenizer, the three held-out texts and ``metadata.json`` with the perplexity
on the report text. The learning rate is constant until the last part of the run and then falls
linearly to zero ("warm-up, stable, decay": Hu et al. 2024, arXiv 2404.06395), so a run that was
killed, or that should go on for longer, resumes from ``--checkpoint`` with another ``--tokens`` as
if it had been planned so. Hidden matrices are trained by Muon (Jordan et al. 2024; the version in
``torch.optim``), embeddings and norms by AdamW.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sysconfig
import time
from pathlib import Path

import torch
from demo_corpus import Corpus, build_corpus
from tokenizers import ByteLevelBPETokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 256
BATCH = 24
VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
NOTICE = """\
The texts in text/ are parts of the standard library and the documentation of Python {version},
Copyright (c) 2001 Python Software Foundation; All Rights Reserved. They are used under the licence
in LICENSE-PYTHON.txt, with the lines that hold an address or a path left out. The model and the
tokenizer in model/ were trained on other parts of the same distribution by
experiments/train_demo_model.py and are under autocompress's own licence.
"""
WARM_UP_STEPS = 100
DECAY_FRACTION = 0.3
MUON_RATE, ADAM_RATE = 5e-3, 2e-3


def parse_tokens(text: str) -> int:
    """Read ``20M`` or a plain number of tokens."""
    return int(float(text.removesuffix("M")) * 1e6) if text.endswith("M") else int(text)


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the training documents."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        corpus.training, VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Build the untrained model: 4.0 million parameters, head tied to the embedding."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=MUON_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    return [muon, adam]


def rate_factor(step: int, steps: int) -> float:
    """Scale of the learning rate: linear warm-up, constant, linear to zero over the last part."""
    decay_from = steps * (1 - DECAY_FRACTION)
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (steps - step) / (steps - decay_from)))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Measure perplexity in fp32 over windows of the context, each token weighing the same."""
    model.eval()
    total, count = 0.0, 0
    for window in ids.split(CONTEXT):
        if len(window) > 1:
            tokens = len(window) - 1
            total += float(model(input_ids=window[None], labels=window[None]).loss) * tokens
            count += tokens
    model.train()
    return math.exp(total / count)


def write_atomically(path: Path, payload: object) -> None:
    """Save a checkpoint so that a kill in between leaves the earlier one."""
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    temporary.replace(path)


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> None:
    """Train in place, from the checkpoint when there is one."""
    steps = args.tokens // (BATCH * CONTEXT)
    optimizers = make_optimizers(model)
    base_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first = 0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        print(f"resumed at step {first}", flush=True)
    forward = torch.compile(model) if args.compile else model
    started = time.monotonic()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        starts = torch.randint(len(stream) - CONTEXT, (BATCH,), generator=generator)
        ids = stream[starts[:, None] + torch.arange(CONTEXT)]
        factor = rate_factor(step, steps)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            speed = (step - first + 1) * BATCH * CONTEXT / (time.monotonic() - started)
            print(
                f"step {step}/{steps} loss {loss.item():.4f} rate {factor:.3f} "
                f"{speed:.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % args.every == 0:
            print(
                f"step {step + 1} held-out perplexity {perplexity(model, held_out):.3f}", flush=True
            )
            saved_optimizers = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": saved_optimizers, "step": step + 1}
            write_atomically(args.checkpoint, state)


def write_package(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    training: dict[str, int],
) -> None:
    """Write the model, its tokenizer, the held-out texts and the metadata; print the metadata."""
    model_folder, text_folder = out / "model", out / "text"
    text_folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    for part, text in corpus.held_out.items():
        (text_folder / f"{part}.txt").write_text(text, encoding="utf-8")
    report = torch.tensor(tokenizer.backend_tokenizer.encode(corpus.held_out["report"]).ids)
    metadata = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": CONTEXT,
        "training_characters": sum(map(len, corpus.training)),
        **training,
        "report_perplexity": round(perplexity(model, report), 4),
        "report_tokens": len(report),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }
    (out / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    write_notice(out)
    print(json.dumps(metadata, indent=2))


def write_notice(out: Path) -> None:
    """Say where the texts come from, with the licence that they are under."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    places = (stdlib / "LICENSE.txt", stdlib.parent / "LICENSE.txt")
    shutil.copyfile(next(path for path in places if path.exists()), out / "LICENSE-PYTHON.txt")
    (out / "NOTICE").write_text(NOTICE.format(version=platform.python_version()))


def main() -> None:
    """Build the corpus, train, and write everything that the package ships."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model, its texts and metadata"
    )
    parser.add_argument(
        "--tokens", type=parse_tokens, default=parse_tokens("20M"), help="tokens to train on"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("demo-model.pt"), help="where to keep the state"
    )
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile", action="store_true", help="compile the model (needs a C++ compiler)"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    corpus = build_corpus()
    tokenizer = train_tokenizer(corpus)
    encode = tokenizer.backend_tokenizer.encode  # the texts are longer than the context, and may be
    stream = torch.tensor([i for text in corpus.training for i in [0, *encode(text).ids]])
    held_out = torch.tensor(encode(corpus.held_out["select"]).ids)
    model = make_model()
    print(
        f"{model.num_parameters()} parameters, {len(stream)} distinct training tokens", flush=True
    )
    train(model, stream, held_out[: 64 * CONTEXT], args)

    write_package(
        args.out, model, tokenizer, corpus, {"training_tokens": args.tokens, "seed": args.seed}
    )


if __name__ == "__main__":
    main()
