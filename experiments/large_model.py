r"""How much memory and time a large model takes, and how both grow with its depth.

    python experiments/large_model.py --layers 6 12
    python experiments/large_model.py                       # 350 million parameters: an hour or so
    python experiments/large_model.py --dtype bfloat16
    python experiments/large_model.py --compress 4x --layers 2 4 16 --hidden 2048 \
        --feed-forward 8192 --context 2048 --dtype bfloat16      # 16 layers: 1.2 billion parameters

A Llama with random weights is written as sharded safetensors with the bundled tokenizer, once for
each number of layers, and `autocompress profile` is run on it in a process of its own, or with a
budget `autocompress compress --effort quick`. Printed are the time by layer, the processor's or the
clock's, and the peak of that process's resident memory as a multiple of the bytes of the model's
weights. The weights are memory-mapped; the pages of their files count in the peak, and so does what
the libraries take before anything is loaded, which is measured too.

The profile's search space is a small one, below: a full menu takes minutes a matrix at this size.
What is compressed may take every form of the default space; before it, the fits and prices of
`search --effort quick --dry-run` are asked for at the same budget, which is what compressing does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# This process imports no torch: a child's peak counts what its parent held when it was started.

SPACE = """
version: 1
name: large-model
description: Two roundings of every matrix, and one factorisation of the largest
methods:
  keep: true
  quantize: {bits: [4, 3], group_sizes: [64]}
  svd: {metrics: [two_sided], rank_fractions: [0.25], bits: [8]}
rules:
  - match: {blocks: [attention, mlp]}
    methods: [keep, quantize]
"""
MAIN = "import sys; from autocompress.cli.main import main; sys.exit(main())"
FORECAST = ("dense model", "calibrating", "fitting", "pricing options")  # what compressing does
LIBRARIES = "import transformers, autocompress.api.profiling, autocompress.cli.main"
MIB = 2**20


def write_model(folder: Path, layers: int, arguments: argparse.Namespace) -> None:
    """Write a random Llama in shards, a tokenizer that knows some of its tokens, and a text."""
    import torch
    import transformers

    from autocompress.cli.output import quieten_libraries
    from autocompress.evaluation.corpus import bundled_text
    from autocompress.surgery.loading import BUNDLED_FOLDER

    quieten_libraries()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=arguments.hidden // 64,
        max_position_embeddings=arguments.context,
        tie_word_embeddings=not arguments.untied,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="100MB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED_FOLDER)
    tokenizer.save_pretrained(folder)
    text = "".join(map(bundled_text, ("calibration", "selection", "report")))
    ids = tokenizer(text)["input_ids"][: None if arguments.compress else arguments.tokens]
    (folder / "text.txt").write_text(str(tokenizer.decode(ids, skip_special_tokens=True)))


class Run(NamedTuple):
    """Seconds by the clock and of processor time that a command takes, and its peak in MiB."""

    seconds: float
    processor: float
    peak: float


def run(*command: str) -> Run:
    """Run a command."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        said = out.read()
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    kilobyte = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    processor, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte / MIB
    if "--json" in command:  # counting by stages resets what the system counts
        peak = json.loads(said)["peak_memory_bytes"] / MIB
    return Run(time.monotonic() - started, processor, peak)


def measured(folder: Path, layers: int, arguments: argparse.Namespace) -> tuple[float, Run]:
    """MiB of the weights, and what one command takes."""
    writing = multiprocessing.get_context("spawn").Process(
        target=write_model, args=(folder, layers, arguments)
    )
    writing.start()
    writing.join()
    if writing.exitcode:
        sys.exit("the model could not be written")
    (folder / "space.yaml").write_text(SPACE)
    size = sum(shard.stat().st_size for shard in folder.glob("*.safetensors")) / MIB
    if arguments.compress:
        named = ["--budget", arguments.compress, "--effort", "quick"]
        named += ["--data", str(folder / "text.txt"), "--runs-dir", str(folder / "runs")]
        forecast = ("-c", MAIN, "search", "--model", str(folder), *named, "--dry-run", "--json")
        said = subprocess.run([sys.executable, *forecast], capture_output=True, check=True)
        stages = json.loads(said.stdout)["stages"]
        seconds = sum(stage["seconds"] for stage in stages if stage["name"] in FORECAST)
        print(f"forecast of what compressing does: {seconds:.0f} s", flush=True)
        return size, run(
            "-c", MAIN, "compress", str(folder), "--out", str(folder / "out"), *named, "--json"
        )
    options = {"space": "space.yaml", "calibration-data": "text.txt", "runs-dir": "runs"}
    flags = [each for key, name in options.items() for each in (f"--{key}", str(folder / name))]
    return size, run("-c", MAIN, "profile", str(folder), *flags)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--feed-forward", type=int, default=2816)
    parser.add_argument("--vocabulary", type=int, default=40960, help="at least 4096")
    parser.add_argument("--untied", action="store_true", help="give the head a matrix of its own")
    parser.add_argument("--context", type=int, default=512, help="tokens of one window")
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate on")
    parser.add_argument("--dtype", default="float32", help="of the checkpoint")
    parser.add_argument("--folder", type=Path, help="where the models go, if not a temporary one")
    parser.add_argument("--compress", metavar="BUDGET", help="compress to it, with little effort")
    arguments = parser.parse_args()
    if not arguments.compress:
        print(f"space:{SPACE}")
        print(f"{arguments.tokens} tokens of calibration in windows of {arguments.context}")
    print(f"libraries alone: {run('-c', LIBRARIES).peak:.0f} MiB\n")
    kind = "seconds" if arguments.compress else "CPU s"
    print(
        f"{'layers':>6} {'model MiB':>10} {'peak MiB':>9} {'peak/model':>10} {kind:>8} "
        f"{'s/layer':>8} {'s per layer more':>17}"
    )
    before: tuple[int, float] | None = None
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            size, ran = measured(Path(folder), layers, arguments)
        seconds, peak = ran.seconds if arguments.compress else ran.processor, ran.peak
        more = "" if before is None else f"{(seconds - before[1]) / (layers - before[0]):17.1f}"
        before = layers, seconds
        print(
            f"{layers:6} {size:10.0f} {peak:9.0f} {peak / size:10.2f} {seconds:8.0f} "
            f"{seconds / layers:8.1f} {more}",
            flush=True,
        )


if __name__ == "__main__":
    main()
